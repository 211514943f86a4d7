"""Python files that are run by where they lie: `sys.path` stays as it is, and no `__init__.py` around them runs."""

import importlib
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from fuxictr_llm.errors import UserError
from fuxictr_llm.files import digest_of


def import_file(path: Path, root: Path, prefix: str) -> ModuleType:
    """The module of a file below the folder `root`; a file runs once a process.

    The folders from `root` on become empty packages of our own, so that `from .other import X` in the file works.

    Args:
        path: the file.
        root: the folder that is the outermost package.
        prefix: what the names of these packages begin with; `is_of` finds a class by it.

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


def is_of(cls: type, prefix: str) -> bool:
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
    return part.replace(".", "%2E")  # a dot would be one more package


def _run(name: str, path: Path) -> ModuleType:
    spec = spec_from_file_location(name, path)
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
    """What is wrong with a file's text, and where; `path` where Python does not say which file it is."""
    line = f", line {error.lineno}" if error.lineno else ""  # of null bytes, say, Python gives none
    return UserError(f"file {error.filename or str(path)!r}{line}: {error.msg}")
