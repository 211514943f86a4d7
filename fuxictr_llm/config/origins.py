"""The origin of a backbone's class, which a run records, and by which an exported model finds its class again."""

import contextlib
import inspect
import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from fuxictr.pytorch.models import BaseModel

from fuxictr_llm import registry
from fuxictr_llm.common.code_digest import CHECKOUT_PREFIX, FILE_PREFIX
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import digest_of_file
from fuxictr_llm.host.checkout import VARIABLE, current_checkout, installed_zoo, is_imported_as

Kind = Literal["fuxictr-llm", "fuxictr", "checkout", "file", "module"]


@dataclass(frozen=True)
class Origin:
    """Where a class comes from.

    Attributes:
        kind: our zoo, the fuxictr wheel, a FuxiCTR checkout, `file.py:Class`, or a module that Python finds.
        name: by which `registry.find_backbone` finds it.
        file: its path, or None for a class that has none.
        sha256: of the file.
    """

    kind: Kind
    name: str
    file: str | None
    sha256: str | None

    def record(self) -> dict[str, Any]:
        """The origin as a run records it."""
        return asdict(self)

    def portable(self) -> tuple[str, dict[str, Any]]:
        """Name and record without paths of this machine."""
        name, file = self.name, self.file and Path(self.file).name
        if self.kind == "file":
            name = f"{file}:{self.name.rpartition(':')[2]}"
        return name, {"kind": self.kind, "file": file, "sha256": self.sha256}


def origin_of(cls: type) -> Origin:
    """The origin of a backbone's class."""
    file = digest = None
    with contextlib.suppress(OSError, TypeError):  # a class made at a prompt has no file, and one may be gone since
        file = inspect.getsourcefile(cls)
        digest = file and digest_of_file(file)
    kind, name = _kind_and_name(cls, file)
    return Origin(kind, name, file, digest)


def _kind_and_name(cls: type, file: str | None) -> tuple[Kind, str]:
    if is_imported_as(cls, FILE_PREFIX):
        return "file", f"{file}:{cls.__qualname__}"
    if is_imported_as(cls, CHECKOUT_PREFIX):
        checkout = current_checkout()
        model = checkout.model_of(cls) if checkout else None
        if checkout and model:
            return "checkout", checkout.name_of(model)
        if model := installed_zoo().model_of(cls):
            return "fuxictr", model.full_name
        return "file", f"{file}:{cls.__qualname__}"
    if cls.__module__ == f"{registry.ZOO}.backbones.{cls.__name__}":
        return "fuxictr-llm", cls.__name__
    return "module", f"{cls.__module__}:{cls.__qualname__}"


def find_exported(name: str, origin: Mapping[str, Any], where: str, given: type | str | None = None) -> type:
    """The class of an exported model, by its origin; no code that the export names is run.

    Args:
        name: the model, as the export has it.
        origin: its `backbone`, an `Origin.portable`.
        where: the file that names them, for error messages.
        given: the class or its name, where the caller gives one.

    Raises:
        UserError: there is no such class; it is of a FuxiCTR checkout and none is set; it is a user's and not loaded.
    """
    if given is not None:
        cls = _class_given(given, name, where)
    elif ":" in name:
        cls = _registered_class(name, where)
    elif origin.get("kind") == "checkout":
        cls = _class_in_checkout(name, where)
    elif origin.get("kind") == "fuxictr":
        cls = _class_in_wheel(name, where)
    else:
        cls = registry.find_own_backbone(name, where)
    _warn_of_change(cls, name, origin, where)
    return cls


def find_trained(name: str, origin: Mapping[str, Any], where: str) -> type:
    """The class of a run that was trained on this machine, by its `Origin.record`; `name` is the one in its config.

    Raises:
        UserError: there is no such class, or it is of a FuxiCTR checkout and none is set.
    """
    if origin.get("kind") == "checkout":
        cls = _class_in_checkout(name, where)
    elif origin.get("kind") == "fuxictr":
        cls = _class_in_wheel(origin.get("name", name), where)
    elif origin.get("kind") == "fuxictr-llm":
        cls = registry.find_own_backbone(origin.get("name", name), where)
    else:  # a user's, or of a record without an origin
        cls = registry.find_backbone(name, where)
    _warn_of_change(cls, name, origin, where)
    return cls


def _class_in_checkout(name: str, where: str) -> type:
    if current_checkout() is None:
        raise UserError(f"{where} holds a {name} of a FuxiCTR checkout; set {VARIABLE} to one (or give --zoo)")
    return registry.find_backbone(name, where)


def _class_in_wheel(name: str, where: str) -> type:
    model = installed_zoo().find(name)
    if model is None:
        raise UserError(f"{where} holds a {name} of the fuxictr package, and the one that is installed has none")
    return installed_zoo().load(model)


def _warn_of_change(cls: type, name: str, origin: Mapping[str, Any], where: str) -> None:
    if origin.get("sha256") and origin["sha256"] != origin_of(cls).sha256:
        logging.warning("%s: the file of %s has changed since the model was trained", where, name)


def _class_given(given: type | str, name: str, where: str) -> type:
    """The class that the caller gives, checked: another one than the export's would fail deep inside."""
    cls = registry.find_backbone(given, "backbone") if isinstance(given, str) else given
    if not (isinstance(cls, type) and issubclass(cls, BaseModel)):
        raise UserError(f"backbone={given!r} is no class of a FuxiCTR model, nor a name of one")
    if cls.__qualname__ != re.split("[:/]", name)[-1]:
        raise UserError(f"{where} holds a {name}, which is no {cls.__qualname__} (backbone={given!r})")
    return cls


def _registered_class(name: str, where: str) -> type:
    """The class of a `package.module:Class` or `file.py:Class` that the caller has registered or named."""
    for cls in registry.known_classes():
        if name in (origin_of(cls).portable()[0], f"{cls.__module__}:{cls.__qualname__}"):
            return cls
    raise UserError(
        f"{where} holds a model {name!r}, which an export does not bring; load it before: give load_model its class "
        "as backbone=..., or call fuxictr_llm.registry.find_backbone('path/to/file.py:Class')"
    )
