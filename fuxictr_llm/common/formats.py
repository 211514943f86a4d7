"""Text formats: YAML, read and written safely, and the Markdown of tables and lists.

Numbers are as in YAML 1.2: PyYAML alone takes `1e-3` for text.
"""

import copy
import functools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from fuxictr_llm.common.errors import UserError

AFFECTS_RESULTS = False  # see common/code_digest.py

# FuxiCTR's configs name fields that are read side by side with it. No other of Python's tags is allowed.
TUPLE = "tag:yaml.org,2002:python/tuple"
LEFT, RIGHT, CENTRE, ANY = ":--", "--:", ":---:", "---"  # where the cells of a Markdown column stand
SPECIAL = re.compile(r"[\\`*_|~$]|(?<=\])\(")

try:
    from yaml import CSafeLoader as SafeLoader  # libyaml's parser reads our configs in a third of the time
except ImportError:  # a PyYAML built without libyaml
    from yaml import SafeLoader


class _Loader(SafeLoader):
    """The safe loader, for which `1e-3` is a number and a key given twice an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        twice = next((key for index, key in enumerate(keys) if key in keys[:index]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"key {twice!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _tuple(loader: _Loader, node: yaml.Node) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(node, deep=True))


_Loader.add_constructor(TUPLE, _tuple)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


class _TextLoader(_Loader):
    """Reads keys and values as text, also `NO`, `01` and `2020-01-01`; a value may be null."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)


for _kind in ("bool", "int", "float", "timestamp"):
    _TextLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", _TextLoader.construct_yaml_str)


def read_yaml(path: Path | str, as_text: bool = False, shared: bool = False) -> dict[str, Any]:
    """The mapping in a YAML file; with `as_text`, all keys and values are texts, as written in the file.

    Args:
        shared: whoever reads the file gets the same mapping, which must not be changed; else a copy, which takes long.

    Raises:
        UserError: the file is missing, is not YAML, or holds something else than a mapping.
    """
    try:
        value = _parsed(str(path), Path(path).read_text(encoding="utf-8"), as_text)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {str(path)!r}: {error}") from error
    if not isinstance(value or {}, dict):
        raise UserError(f"{str(path)!r} must hold a mapping of names to settings (got {type(value).__name__})")
    return (value if shared else copy.deepcopy(value)) or {}


@functools.lru_cache(maxsize=256)  # a leaderboard reads the same configs for every arm
def _parsed(path: str, text: str, as_text: bool) -> Any:
    return parse_yaml(text, where=path, as_text=as_text)


def parse_yaml(text: str, where: str, as_text: bool = False) -> Any:
    """The value of a YAML text; `where` names it in an error, `as_text` is as in `read_yaml`.

    Raises:
        UserError: the text is not YAML.
    """
    try:
        return yaml.load(text, Loader=_TextLoader if as_text else _Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{where}{place} is not valid YAML: {getattr(error, 'problem', error)}") from error


class _Dumper(yaml.SafeDumper):
    """The safe dumper, with tuples as FuxiCTR writes and reads them."""


_Dumper.add_representer(tuple, lambda dumper, value: dumper.represent_sequence(TUPLE, value))


def dump_yaml(value: Any) -> str:
    """YAML text that reads back as `value`, keys in their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line, within a table or without."""
    text = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return SPECIAL.sub(lambda sign: f"\\{sign[0]}", text)


def table_of(heads: Sequence[str], rows: Iterable[Sequence[str]], places: Sequence[str] | None = None) -> str:
    """A table without a newline at its end.

    Args:
        heads, rows: texts, which are escaped.
        places: LEFT, RIGHT, CENTRE or ANY for each column; None: ANY for all.
    """
    lines = [map(escaped, heads), places or [ANY] * len(heads), *(map(escaped, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def list_of(texts: Iterable[str]) -> str:
    """A list without a newline at its end; the texts are escaped."""
    return "\n".join(f"- {escaped(text)}" for text in texts)
