"""Model classes of a FuxiCTR checkout (`--zoo`, FUXICTR_ZOO) and of its wheel; Python files imported by their path.

A checkout is parsed and not run: the file of a model runs when its class is asked for. It is named by an environment
variable, so that the processes that a run starts have it too. Importing a file leaves `sys.path` as it is and runs no
`__init__.py` around it.
"""

import ast
import functools
import importlib
import importlib.metadata
import inspect
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from fuxictr_llm.common.code_digest import CHECKOUT_PREFIX
from fuxictr_llm.common.errors import UserError, reason_of
from fuxictr_llm.common.files import digest_of

AFFECTS_RESULTS = False  # see common/code_digest.py
VARIABLE = "FUXICTR_ZOO"
BASES = ("BaseModel", "MultiTaskModel")
SCRIPTS = ("run_expid.py", "fuxictr_version.py")


def import_file(path: Path, root: Path, prefix: str) -> ModuleType:
    """The module of a file below the folder `root`; in a process, a file runs once.

    The folders from `root` on become empty packages of ours, so that `from .other import X` in the file works.

    Args:
        path: the file.
        root: the folder that is the outermost package.
        prefix: how the names of these packages begin; `is_imported_as` recognizes a class by it.

    Raises:
        UserError: there is no such file, it has a syntax error, or it fails.
    """
    path, root = path.resolve(), root.resolve()
    if not path.is_file():
        raise UserError(f"there is no file {str(path)!r}")
    package = _empty_package(f"{prefix}_{digest_of(str(root))[:12]}", root)
    for part in path.relative_to(root).parts[:-1]:
        root = root / part
        package = _empty_package(f"{package}.{_quoted(part)}", root)
    name = f"{package}.{_quoted(path.stem)}"
    return sys.modules[name] if name in sys.modules else _run(name, path)


def is_imported_as(cls: type, prefix: str) -> bool:
    """Whether a class comes from a file that `import_file` ran under this prefix."""
    return cls.__module__.startswith(f"{prefix}_")


def _empty_package(name: str, folder: Path) -> str:
    if name not in sys.modules:
        importlib.invalidate_caches()
        package = ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    return name


def _quoted(part: str) -> str:
    return part.replace(".", "%2E")  # a dot would stand for one more package


def _run(name: str, path: Path) -> ModuleType:
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:  # Python has a loader for the endings that it knows
        raise UserError(f"file {str(path)!r} cannot be imported: its name must end with .py")
    module = sys.modules[name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        del sys.modules[name]
        raise syntax_error(error, path) from error
    except (Exception, SystemExit) as error:  # a user's file can fail in any way
        del sys.modules[name]
        raise UserError(f"file {str(path)!r} cannot be imported: {error!r}") from error
    except BaseException:
        del sys.modules[name]
        raise
    return module


def syntax_error(error: SyntaxError, path: Path) -> UserError:
    """The error for a file that Python cannot parse; `path` names it where Python's own error does not."""
    line = f", line {error.lineno}" if error.lineno else ""  # Python gives none for null bytes
    return UserError(f"file {error.filename or str(path)!r}{line}: {error.msg}")


@dataclass(frozen=True)
class ZooModel:
    """A model class of a checkout: its name, its name with the zoo's folder (`LongCTR/DIN`), and its file."""

    class_name: str
    full_name: str
    file: Path

    @property
    def is_in_its_own_folder(self) -> bool:
        """Whether the zoo's folder has the class's name (`DIN/src/DIN.py`)."""
        return self.full_name == f"{self.class_name}/{self.class_name}"


@dataclass(frozen=True)
class Checkout:
    """A parsed FuxiCTR checkout.

    Attributes:
        folder: the zoo, `model_zoo` of the checkout.
        models: every torch model class in it.
        damaged: files that Python cannot parse, and why; their models are missing above.
    """

    folder: Path
    models: tuple[ZooModel, ...]
    damaged: dict[Path, str]

    def names(self) -> list[str]:
        """The name of each model: its class name, or the full one where the class name is not unique."""
        return sorted({self.name_of(model) for model in self.models})

    def name_of(self, model: ZooModel) -> str:
        """The shortest name that `find` finds the model by."""
        return model.class_name if self._by_class_name(model.class_name) == [model] else model.full_name

    def find(self, name: str) -> ZooModel | None:
        """The model with that class name or full name; None where the checkout has none.

        Raises:
            UserError: several models have the name, or the file of that name is damaged.
        """
        matches = [m for m in self.models if m.full_name == name] if "/" in name else self._by_class_name(name)
        if len(matches) > 1:
            raise self._ambiguous(name, matches)
        if not matches:
            for file, reason in self.damaged.items():
                if file.stem == name.rpartition("/")[2]:
                    raise UserError(f"backbone {name!r} cannot be loaded: {reason}")
        return matches[0] if matches else None

    def load(self, model: ZooModel) -> type:
        """The class itself; its file runs at the first call.

        Raises:
            UserError: the file fails, or its class of the name is no FuxiCTR model.
        """
        from fuxictr.pytorch.models import BaseModel

        cls = getattr(import_file(model.file, self.folder, CHECKOUT_PREFIX), model.class_name, None)
        if not (isinstance(cls, type) and issubclass(cls, BaseModel)):
            raise UserError(
                f"backbone {model.full_name!r} of {str(model.file)!r} is not a subclass of "
                "fuxictr.pytorch.models.BaseModel"
            )
        return cls

    def model_of(self, cls: type) -> ZooModel | None:
        """The model whose class `cls` is; None for a class that comes from elsewhere."""
        if not is_imported_as(cls, CHECKOUT_PREFIX):
            return None
        file = Path(inspect.getfile(cls))
        return next((m for m in self.models if (m.file, m.class_name) == (file, cls.__name__)), None)

    def _by_class_name(self, name: str) -> list[ZooModel]:
        matches = [model for model in self.models if model.class_name == name]
        own = [model for model in matches if model.is_in_its_own_folder]
        return own if len(matches) > 1 and own else matches

    def _ambiguous(self, name: str, matches: list[ZooModel]) -> UserError:
        names = sorted({model.full_name for model in matches})
        if len(names) == len(matches):
            return UserError(f"backbone {name!r} is ambiguous in {str(self.folder)!r}; name one of {', '.join(names)}")
        files = ", ".join(f"{str(model.file)!r}" for model in matches)
        return UserError(f"two classes have the name {name!r}: {files}; name one as FILE.py:{matches[0].class_name}")


def current_checkout() -> Checkout | None:
    """The checkout that FUXICTR_ZOO names, or None where it is not set.

    Raises:
        UserError: it names no folder, or one without models.
    """
    folder = os.environ.get(VARIABLE)
    return _read_checkout(Path(folder).resolve()) if folder else None


def use_checkout(folder: str | None) -> None:
    """Use the checkout in this process and those that it starts; None leaves what FUXICTR_ZOO says.

    Raises:
        UserError: it is no folder, or one without models.
    """
    folder = folder or os.environ.get(VARIABLE)
    if folder:
        os.environ[VARIABLE] = str(Path(folder).resolve())
        current_checkout()


@functools.cache
def _read_checkout(folder: Path) -> Checkout:
    if not folder.is_dir():
        raise UserError(f"--zoo {str(folder)!r} is no folder; name a FuxiCTR checkout or its model_zoo")
    folder = folder / "model_zoo" if (folder / "model_zoo").is_dir() else folder
    zoo = _parsed(folder, folder.rglob("*.py"))
    if not zoo.models and not zoo.damaged:
        raise UserError(f"--zoo {str(folder)!r} has no torch models; name a FuxiCTR checkout or its model_zoo")
    for reason in zoo.damaged.values():
        logging.warning("left out of the zoo: %s", reason)
    return zoo


@functools.cache
def installed_zoo() -> Checkout:
    """The models that the fuxictr wheel installs beside its package (LongCTR); empty where it installs none.

    The wheel's own list of files names them. Importing a top-level `model_zoo` would not do: other packages and
    checkouts have one too.
    """
    try:
        wheel = importlib.metadata.distribution("fuxictr")
    except importlib.metadata.PackageNotFoundError:  # FuxiCTR's source is on the path, not installed
        return Checkout(Path(), (), {})
    files = [Path(str(file.locate())).resolve() for file in wheel.files or () if file.parts[0] == "model_zoo"]
    folder = Path(str(wheel.locate_file("model_zoo"))).resolve()
    return _parsed(folder, [file for file in files if file.suffix == ".py" and file.is_file()])


def _parsed(folder: Path, files: Iterable[Path]) -> Checkout:
    """The models in the files of a zoo; none of them is run."""
    trees, damaged = {}, {}
    for file in sorted(files):
        # The zoo's own __init__.py imports all of it, and what begins with a dot is no part of a checkout.
        if file.name in SCRIPTS or file == folder / "__init__.py" or _is_hidden(file.relative_to(folder)):
            continue
        try:
            trees[file] = ast.parse(file.read_bytes(), filename=str(file))
        except SyntaxError as error:
            damaged[file] = str(syntax_error(error, file))
        except (ValueError, OSError, RecursionError, MemoryError) as error:  # the last two of deep nesting
            damaged[file] = f"file {str(file)!r} cannot be read: {reason_of(error)}"
    return Checkout(folder, tuple(_models(folder, trees)), damaged)


def _models(folder: Path, trees: dict[Path, ast.Module]) -> Iterator[ZooModel]:
    """Classes that derive from FuxiCTR's base models, directly or through classes of the zoo."""
    bases_of = {
        (file, node.name): _bases(node, tree)
        for file, tree in trees.items()
        if not _uses_tensorflow(tree)
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }
    derived: set[tuple[Path, str]] = set()
    while True:
        names = {*BASES, *(name for _, name in derived)}
        # A base is the class of that name in the same file, or else one of another file.
        more = {
            (file, name)
            for (file, name), bases in bases_of.items()
            if any((file, base) in derived if (file, base) in bases_of else base in names for base in bases)
        }
        if more == derived:
            break
        derived = more
    for file, name in sorted(derived):
        top = file.relative_to(folder).parts[:-1][:1]
        yield ZooModel(name, "/".join([*top, name]), file)


def _bases(node: ast.ClassDef, tree: ast.Module) -> set[str]:
    """The names of a class's bases in the modules that define them."""
    imported = {
        alias.asname or alias.name: alias.name
        for statement in tree.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    names = [base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "") for base in node.bases]
    return {imported.get(name, name) for name in names}


def _uses_tensorflow(tree: ast.Module) -> bool:
    modules = [node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    return any(module.split(".")[0] == "tensorflow" or "fuxictr.tensorflow" in module for module in modules)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
