"""Checks of what users give: config values by their type hints, the GPU, and names that files are called by."""

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from fuxictr_llm.common.errors import UserError

# Strict: "8" is no number and true is no integer. What YAML has not read as the right type is an error.
STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True)
# A file name has at most 255 bytes on usual file systems. The names of a run's files add to its label the control, the
# seed, a digest, endings such as `.field_similarities.png`, and those of unfinished files.
LONGEST = 150


def checked(config_cls: type[Any], params: Mapping[str, Any]) -> Any:
    """An instance of the pydantic dataclass `config_cls`, made of the flat settings; other keys are ignored.

    Raises:
        UserError: a value has the wrong type or is out of range.
    """
    try:
        return config_cls(**{name: params[name] for name in field_names(config_cls) if name in params})
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        raise _wrong_value(key, params.get(key), first["msg"]) from error


def field_names(config_cls: type[Any]) -> frozenset[str]:
    """The config keys that a dataclass declares."""
    return frozenset(field.name for field in dataclasses.fields(config_cls))


def check_value(key: str, value: Any, hint: Any) -> None:
    """Check one value against a type hint, which may have pydantic's ranges.

    Raises:
        UserError: the value has the wrong type or is out of range.
    """
    try:
        adapter = _adapter(hint)
    except TypeError:  # Annotated with something that cannot be hashed
        adapter = _adapter.__wrapped__(hint)
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        problems = error.errors()
        first = problems[0]
        if first["loc"] and isinstance(first["loc"][0], int):  # an entry of a list is wrong: show only that one
            key, value = f"{key}[{first['loc'][0]}]", value[first["loc"][0]]
            parts = [part for part in first["loc"][1:] if isinstance(value, dict)]
            raise _wrong_value(key, value, " ".join([*map(repr, parts[:1]), first["msg"]])) from error
        messages: dict[str, None] = {}  # one for each type that the hint allows, in order, each once
        for problem in problems:
            is_inner = isinstance(value, dict) and len(problem["loc"]) > 1  # of a key in the mapping
            messages[f"{problem['loc'][-1]!r} {problem['msg']}" if is_inner else problem["msg"]] = None
        raise _wrong_value(key, value, " or ".join(messages)) from error


def fits(value: Any, hint: Any) -> bool:
    """Whether `check_value` finds nothing wrong."""
    try:
        check_value("", value, hint)
    except UserError:
        return False
    return True


@functools.cache
def _adapter(hint: Any) -> TypeAdapter:
    """pydantic's checker of a hint; a plan of many runs checks the same hints over and over."""
    return TypeAdapter(hint, config=STRICT)


def check_gpu(gpu: int) -> None:
    """Check that torch has the GPU; FuxiCTR would silently take the CPU.

    Raises:
        UserError: torch cannot use the GPU of that index.
    """
    import torch

    count = torch.cuda.device_count()
    if gpu >= count:
        have = f"{count} GPUs" if count else "no GPU that torch can use"
        raise UserError(f"--gpu {gpu}: this machine has {have}; --gpu -1 takes the CPU")


def _wrong_value(key: str, value: Any, problem: str) -> UserError:
    return UserError(f"config key {key!r} is {value!r} ({type(value).__name__}): {problem[:1].lower()}{problem[1:]}")


def check_name(kind: str, name: str, where: str = "", longest: int = LONGEST) -> None:
    """Check that a file in a folder can have the name: it is no path, and all of it is printable.

    Args:
        kind: what the name is, for the message: `dataset_id` for example.
        where: where it was given, for the message.
        longest: the most bytes it may have.

    Raises:
        UserError: a file cannot have it.
    """
    if problem := _problem(name, longest):
        shown = name if len(name) <= LONGEST else f"{name[:40]}...{name[-10:]}"
        place = f" in {where}" if where and len(where) <= 2 * LONGEST else ""
        raise UserError(f"{kind} {shown!r}{place} {problem}; files are called by it, so give it another name")


def check_label(label: str, where: str = "") -> None:
    """`check_name` for an expid, in which `/` is allowed: files of `LongCTR/DIN_movies` are named `LongCTR-DIN_movies`.

    Raises:
        UserError: files cannot have the name.
    """
    if any(part in ("", ".", "..") for part in label.split("/")):
        check_name("expid", label, where)
    check_name("expid", label.replace("/", "-"), where)


def _problem(name: str, longest: int) -> str | None:
    if not name:
        return "is empty"
    if "/" in name or "\\" in name:
        return "holds a path separator"
    if name.startswith(".") or name.endswith("."):
        return "begins or ends with a dot"
    if not name.isprintable():
        return "holds a line break, or a character that does not print"
    if name != name.strip():
        return "begins or ends with a space"
    if any(sign in name for sign in "*?["):
        return "holds *, ? or [, which FuxiCTR takes for a pattern of file names"
    try:
        length = len(os.fsencode(name))
    except UnicodeEncodeError:
        return "holds a character that this system cannot have in a file name"
    return f"is {length} bytes long, and {longest} is the most" if length > longest else None
