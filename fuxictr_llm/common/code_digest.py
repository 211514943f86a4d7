"""A digest of the code that computes a result: the sources of some modules and all that they import.

Our own files count without their comments and docstrings, users' files as they are. Installed libraries, FuxiCTR among
them, do not count: records have their versions.
"""

import ast
import contextlib
import functools
import hashlib
import os
import pkgutil
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path

from fuxictr_llm.common.files import digest_of

OURS = "fuxictr_llm"
# A module or package that sets this name to False cannot change a result, or what it writes has a digest of its own: it
# is left out, with what it imports.
RESULTS = "AFFECTS_RESULTS"
# The same for the vectors of language models, whose keys have digests of what such a module makes.
VECTORS = "AFFECTS_VECTORS"
# The names of modules that were imported by their path begin with one of these.
CHECKOUT_PREFIX = "fuxictr_zoo"
FILE_PREFIX = "model_file"
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
LIBRARIES = frozenset({"fuxictr", *sys.stdlib_module_names})


def digest_of_code(modules: Iterable[str], without: Iterable[str] = (), marks: Iterable[str] = (RESULTS,)) -> str:
    """One digest of the code of these modules and all they import, the same in every process and on every machine.

    Args:
        modules: names, as in `__module__`.
        without: modules and packages to leave out.
        marks: those that set one of these names to False are left out too.
    """
    return digest_of(sources_below(modules, without, marks))


def sources_below(
    modules: Iterable[str], without: Iterable[str] = (), marks: Iterable[str] = (RESULTS,)
) -> dict[str, str]:
    """Module name -> digest, of the modules and all that they import, directly or through others."""
    modules, left_out, marks = list(modules), {*without}, {*marks}
    own = frozenset(_top(name) for name in modules) - LIBRARIES
    digests: dict[str, str] = {}
    visited, waiting = set(), modules
    while waiting:
        name = waiting.pop()
        if name in visited:
            continue
        visited.add(name)
        parents = _with_parents(name)
        if not left_out.isdisjoint(parents) or not _is_followed(_top(name), own):
            continue
        if any((source := _source_of(parent)) and not source.marks.isdisjoint(marks) for parent in parents):
            continue
        waiting += parents  # a module's packages run before it
        if source := _source_of(name):
            digests[_portable(name, source.file)] = source.sha256
            waiting += source.imported
        else:
            waiting += _lazy(name)
    return digests


def modules_of(cls: type) -> list[str]:
    """The modules of a class and its bases, without libraries."""
    names = dict.fromkeys(base.__module__ for base in cls.__mro__)
    return [name for name in names if _top(name) == _top(cls.__module__) or _is_followed(_top(name), frozenset())]


def _lazy(name: str) -> list[str]:
    """The module from which a package lazily loads a name; if that is unknown, all modules of the package."""
    package, _, wanted = name.rpartition(".")
    source = _source_of(package) if package else None
    if source is None or not source.is_lazy or wanted in source.defined:
        return []
    if wanted in source.homes:
        return [f"{package}.{source.homes[wanted]}"]
    return [f"{package}.{module.name}" for module in pkgutil.iter_modules(_folders_of(package))]


def _top(name: str) -> str:
    return name.partition(".")[0]


@functools.cache
def _with_parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: length + 1]) for length in range(len(parts))]


def _is_followed(top: str, own: frozenset[str]) -> bool:
    """Whether what lies below a top-level name is ours or the user's; `own` are names that are, installed or not."""
    return top == OURS or (top not in LIBRARIES and (top in own or _is_loose(top)))


@functools.cache
def _is_loose(top: str) -> bool:
    """Whether a top-level name is no installed library's: a folder or file of the user's, an editable package."""
    if _is_of_file(top):
        return True
    spec = _spec_of(top)
    places = [*(spec.submodule_search_locations or ()), *filter(None, [_file_of(top)])] if spec else [_file_of(top)]
    return any(places) and not any(_is_installed(Path(place)) for place in filter(None, places))


def _is_installed(path: Path) -> bool:
    standard = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    packages = {"site-packages", "dist-packages"}
    return any(path.is_relative_to(folder) for folder in standard) or not packages.isdisjoint(path.parts)


def _is_of_file(name: str) -> bool:
    """Whether a module is one that was run by where it lies, as `file.py:Class` or of a FuxiCTR checkout."""
    return name.startswith((f"{FILE_PREFIX}_", f"{CHECKOUT_PREFIX}_"))


def _file_of(name: str) -> str | None:
    """The file of a module; None of a namespace, a builtin one, or what is no module."""
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None and (spec := _spec_of(name)) and spec.has_location:
        file = spec.origin
    return file


@functools.cache
def _spec_of(name: str) -> ModuleSpec | None:
    """Where a module is. `importlib.util.find_spec` would import its packages, and with them all of torch."""
    parent = name.rpartition(".")[0]
    folders = _folders_of(parent) if parent else None
    if parent and not folders:
        return None
    for finder in sys.meta_path:
        with contextlib.suppress(Exception):  # anyone's finders may fail in any way
            if spec := finder.find_spec(name, folders):
                return spec
    return None


def _folders_of(package: str) -> list[str]:
    if package in sys.modules:
        return list(getattr(sys.modules[package], "__path__", ()))
    spec = _spec_of(package)
    return list(spec.submodule_search_locations or ()) if spec else []


def _portable(name: str, file: str) -> str:
    """A module's name without what depends on the place of its file."""
    if name in ("__main__", "__mp_main__"):
        return Path(file).name
    return name.partition(".")[2] if _is_of_file(name) else name


@dataclass(frozen=True)
class _Source:
    """A parsed source file.

    Attributes:
        imported: the modules that it imports, and names in them, which may be modules too.
        defined: the names that it assigns, defines or imports at its top level.
        is_lazy: whether it is a package that has a `__getattr__`.
        marks: the names that it sets to False.
        homes: the items of its dicts of texts; a lazy package has in one which name is loaded from which module.
    """

    file: str
    sha256: str
    imported: tuple[str, ...] = ()
    defined: frozenset[str] = frozenset()
    is_lazy: bool = False
    marks: frozenset[str] = frozenset()
    homes: Mapping[str, str] = field(default_factory=dict)


def _source_of(name: str) -> _Source | None:
    file = _file_of(name)
    if file is None:
        return None
    with contextlib.suppress(OSError):  # it may have been removed since it was run
        stat = os.stat(file)  # noqa: PTH116 (asked hundreds of times a run)
        return _read(file, name, stat.st_mtime_ns, stat.st_size)
    return None


@functools.cache
def _read(file: str, name: str, _mtime: int, _size: int) -> _Source:
    content = Path(file).read_bytes()
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):  # a compiled extension, say
        return _Source(file, hashlib.sha256(content).hexdigest())
    package = name if Path(file).name == "__init__.py" else name.rpartition(".")[0]
    imported = tuple(dict.fromkeys(_imports(tree, package)))
    defined, homes = frozenset(_defined(tree)), dict(_texts_by_name(tree))
    for node in _statements(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    counted = ast.dump(tree).encode() if _top(name) == OURS else content
    digest = hashlib.sha256(counted).hexdigest()
    is_lazy = package == name and "__getattr__" in defined
    return _Source(file, digest, imported, defined, is_lazy, frozenset(_marks(tree)), homes)


def _defined(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or _top(alias.name) for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def _marks(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and node.value.value is False:
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def _texts_by_name(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for key, value in zip(node.value.keys, node.value.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(value, ast.Constant):
                    yield str(key.value), str(value.value)


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """The module and all statements in it; walking through their expressions too would take ten times as long."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        for part in ("body", "orelse", "finalbody", "handlers", "cases"):
            waiting += getattr(node, part, ())


def _imports(tree: ast.Module, package: str) -> Iterator[str]:
    for node in _statements(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            outer = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*outer, *filter(None, [node.module])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
