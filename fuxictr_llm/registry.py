"""Finds backbones and methods by name.

A backbone of ours is a file of its name in `model_zoo/backbones/`, a method a package of its name in
`model_zoo/`. The models of a FuxiCTR checkout (`--zoo`) are backbones too, and win over ours of the same name; those
that the fuxictr wheel installs (LongCTR) are taken where neither of the two has the name.
Users add their own with `@register_backbone` or `register_method(...)`, or name a class as `package.module:Class` or
`file.py:Class`.
"""

import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fuxictr_llm.common.code_digest import FILE_PREFIX, modules_of
from fuxictr_llm.common.errors import UserError, unknown
from fuxictr_llm.host.checkout import current_checkout, import_file, installed_zoo, syntax_error

if TYPE_CHECKING:  # it imports torch, which a list of names need not wait for
    from fuxictr_llm.enhancement.base import Enhancement

AFFECTS_RESULTS = False  # see common/code_digest.py

ZOO = "fuxictr_llm.model_zoo"
_backbones: dict[str, type] = {}
_named: dict[str, type] = {}  # the users' classes that `find_backbone` has found, by module:Class
_methods: dict[str, "RegisteredMethod"] = {}


@dataclasses.dataclass(frozen=True)
class RegisteredMethod:
    """A method: its name in expids, the dataclass of its config keys, and its Enhancement class."""

    name: str
    config_cls: type[Any]
    model_cls: "type[Enhancement]"


def register_backbone(cls: type) -> type:
    """Class decorator: registers a FuxiCTR model as a backbone under its class name.

    Raises:
        UserError: the class is no FuxiCTR model, or another class has its name.
    """
    from fuxictr.pytorch.models import BaseModel

    if not (isinstance(cls, type) and issubclass(cls, BaseModel)):
        raise UserError(f"{cls!r} is not a subclass of fuxictr.pytorch.models.BaseModel; a backbone must be one")
    other = _backbones.setdefault(cls.__name__, cls)
    if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
        raise UserError(f"backbone {cls.__name__!r} of {cls.__module__} is already registered by {other.__module__}")
    _backbones[cls.__name__] = cls
    return cls


def register_method(*, name: str, config_cls: type[Any], model_cls: "type[Enhancement]") -> None:
    """Register a method under `name`, the part between backbone and data set in an expid.

    Raises:
        UserError: the name has other characters than letters and digits, or is taken (case does not count);
            `config_cls` is no dataclass; `model_cls` is no Enhancement or overrides a hook by an earlier name.
    """
    from fuxictr_llm.enhancement.base import RENAMED_HOOKS, Enhancement

    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]*", name):
        raise UserError(f"method name {name!r} must be letters and digits: an expid is split at underscores")
    if not dataclasses.is_dataclass(config_cls):
        raise UserError(f"config_cls of method {name!r} must be a dataclass (got {config_cls!r})")
    if not issubclass(model_cls, Enhancement):
        raise UserError(f"model_cls of method {name!r} must be an Enhancement (got {model_cls!r})")
    for old, new in RENAMED_HOOKS.items():
        if callable(getattr(model_cls, old, None)):
            raise UserError(f"method {name!r} defines the hook {old!r}, which is called {new!r} now; rename it")
    taken = {known.lower(): known for known in _methods if known != name}
    if name.lower() in taken:
        raise UserError(f"method {name!r} clashes with {taken[name.lower()]!r}: names differ by more than case")
    model_cls.method_name, model_cls.config_cls = name, config_cls
    _methods[name] = RegisteredMethod(name, config_cls, model_cls)


def backbone_names() -> list[str]:
    """The backbones of our zoo, of the FuxiCTR checkout and wheel, and those registered so far, sorted."""
    checkout = current_checkout()
    names = {*own_backbone_names(), *_backbones, *(checkout.names() if checkout else ())}
    in_checkout = {model.full_name for model in checkout.models} if checkout else set()
    installed = [model for model in installed_zoo().models if model.full_name not in in_checkout]
    return sorted(names | {each.full_name if each.class_name in names else each.class_name for each in installed})


def own_backbone_names() -> list[str]:
    """The backbones of our zoo, sorted."""
    return [name for name in _zoo_modules("backbones", packages=False) if name != "base"]


def method_names() -> list[str]:
    """Our zoo's methods and those registered so far, sorted."""
    return sorted({name for name in _zoo_modules(packages=True) if name != "backbones"} | {*_methods})


def find_backbone(name: str, where: str = "", also: Iterable[str] = ()) -> type[Any]:
    """The class of a backbone.

    Args:
        name: `DeepFM`, or `LongCTR/DIN` for one of FuxiCTR's classes of that name; a user's own is
            `package.module:Class` or `file.py:Class`.
        where: what asks for it, for the error message.
        also: more names that the error message lists as known: a config's entries.

    Raises:
        UserError: no such backbone, several have the name, its file fails, or it is no FuxiCTR model.
    """
    if ":" in name:
        from fuxictr.pytorch.models import BaseModel

        cls = import_class(name, "model", BaseModel)
        _named[f"{cls.__module__}:{cls.__qualname__}"] = cls
        return cls
    checkout = current_checkout()
    model = checkout.find(name) if checkout else None
    if checkout is None or model is None:
        installed = None if name in _backbones or name in own_backbone_names() else installed_zoo().find(name)
        return installed_zoo().load(installed) if installed else find_own_backbone(name, where, also)
    registered = _backbones.get(name)
    if registered is not None and not registered.__module__.startswith(ZOO):
        raise UserError(
            f"two classes have the name {name!r}: the one registered by {registered.__module__} and that of "
            f"{str(model.file)!r}; call yours another name, or name the other as FILE.py:{name}"
        )
    return checkout.load(model)


def known_classes() -> list[type]:
    """The registered backbones, and the users' classes that `find_backbone` has found in this process."""
    return [*_backbones.values(), *_named.values()]


def find_own_backbone(name: str, where: str = "", also: Iterable[str] = ()) -> type:
    """The class of a backbone of our zoo or a registered one, not of a FuxiCTR checkout.

    Raises:
        UserError: no such backbone; `where` and `also` as for `find_backbone`.
    """
    if name not in _backbones:
        if name not in own_backbone_names():
            error = unknown("backbone", name, [*backbone_names(), *also], where)
            more = "" if current_checkout() else "; --zoo DIR adds the models of a FuxiCTR checkout"
            raise UserError(f"{error}{more}")
        from fuxictr_llm.host.embeddings import completing

        module = importlib.import_module(f"{ZOO}.backbones.{name}")
        register_backbone(completing(getattr(module, name)))
    return _backbones[name]


def find_method(name: str, where: str = "", also: Iterable[str] = ()) -> RegisteredMethod:
    """The method of a name, `package.module:Class` or `file.py:Class`; its package is imported.

    Raises:
        UserError: no such method, or its file does not register it; `where` and `also` as for `find_backbone`.
    """
    if ":" in name:
        return _method_of_user(name)
    if name not in _methods:
        if name not in method_names():
            raise unknown("method", name, [*method_names(), *also], where)
        importlib.import_module(f"{ZOO}.{name}")
    return _methods[name]


def _method_of_user(name: str) -> RegisteredMethod:
    from fuxictr_llm.enhancement.base import Enhancement

    cls = import_class(name, "method", Enhancement)
    registered = next((method for method in _methods.values() if method.model_cls is cls), None)
    if registered is None:
        raise UserError(
            f"method {name!r} is not registered; end its file with "
            f"register_method(name=..., config_cls=..., model_cls={cls.__name__})"
        )
    return registered


def find_model(name: str) -> type:
    """The class of `DeepFM` or `DeepFM_LLaCTR`, as FuxiCTR's scripts look it up in their zoo.

    Raises:
        UserError: there is no such backbone or method.
    """
    backbone, _, method = name.rpartition("_")
    if ":" in name or name in backbone_names() or not backbone:
        return find_backbone(name)
    from fuxictr_llm.enhancement.model import enhance

    return enhance(find_backbone(backbone, where=repr(name)), find_method(method, where=repr(name)).model_cls)


def import_class(name: str, kind: str, base: type) -> type:
    """The class that `package.module:Class` or `file.py:Class` names; the error message calls it a `kind`.

    Raises:
        UserError: the module cannot be imported, lacks the class, or the class is no subclass of `base`.
    """
    module_name, _, class_name = name.rpartition(":")
    module = _import_module(module_name, f"{kind} {name!r}")
    cls = getattr(module, class_name, None)
    if cls is None:
        classes = [key for key, value in vars(module).items() if isinstance(value, type)]
        raise unknown("class", class_name, classes, where=f"{kind} {name!r}")
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise UserError(f"{kind} {name!r} is not a subclass of {base.__module__}.{base.__name__}")
    return cls


def _import_module(module_name: str, what: str) -> ModuleType:
    if module_name.endswith(".py"):
        try:
            return import_file(Path(module_name), Path(module_name).parent, FILE_PREFIX)
        except UserError as error:
            raise UserError(f"{what}: {error}") from error
    try:
        return importlib.import_module(module_name)
    except SyntaxError as error:
        raise UserError(f"{what}: {syntax_error(error, Path(module_name))}") from error
    except Exception as error:  # a user's module can fail in any way
        raise UserError(f"{what}: importing {module_name!r} failed: {error!r}") from error


def _zoo_modules(below: str = "", *, packages: bool) -> list[str]:
    zoo = importlib.import_module(ZOO)
    folders = [str(Path(path) / below) for path in zoo.__path__]
    return [info.name for info in pkgutil.iter_modules(folders) if info.ispkg == packages]


def method_modules(name: str) -> list[str]:
    """The modules of a method's class and of its config, which has the defaults; for digests of their code."""
    method = find_method(name)
    return [*modules_of(method.model_cls), *modules_of(method.config_cls)]
