"""Values of config keys, checked against type hints: a wrong one is a line that names key, value and way out."""

import functools
from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from fuxictr_llm.errors import UserError

# "8" is no number and true is no integer: what YAML did not read as the right type is an error.
STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True)


def checked(config_cls: type, params: Mapping[str, Any]) -> Any:
    """An instance of the pydantic dataclass `config_cls`, from those of the flat `params` that are its fields.

    Raises:
        UserError: a value has the wrong type or is out of range.
    """
    fields = config_cls.__dataclass_fields__
    try:
        return config_cls(**{name: params[name] for name in fields if name in params})
    except ValidationError as error:
        first = error.errors()[0]
        raise _wrong_value(str(first["loc"][0]), params.get(first["loc"][0]), first["msg"]) from error


def check_value(key: str, value: Any, hint: Any) -> None:
    """Check one value against a type hint, which may carry pydantic's ranges.

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
        if first["loc"] and isinstance(first["loc"][0], int):  # an entry of a list is at fault: show that one alone
            key, value = f"{key}[{first['loc'][0]}]", value[first["loc"][0]]
            parts = [part for part in first["loc"][1:] if isinstance(value, dict)]
            raise _wrong_value(key, value, " ".join([*map(repr, parts[:1]), first["msg"]])) from error
        told = {}
        for problem in problems:
            inner = isinstance(value, dict) and len(problem["loc"]) > 1  # of one form of the mapping, a key
            told[f"{problem['loc'][-1]!r} {problem['msg']}" if inner else problem["msg"]] = None
        raise _wrong_value(key, value, " or ".join(told)) from error


def fits(value: Any, hint: Any) -> bool:
    """Whether `check_value` finds nothing wrong."""
    try:
        check_value("", value, hint)
    except UserError:
        return False
    return True


@functools.cache
def _adapter(hint: Any) -> TypeAdapter:
    """Made once: a plan of many runs asks for the same hints over and over."""
    return TypeAdapter(hint, config=STRICT)


def check_gpu(gpu: int) -> None:
    """FuxiCTR would silently take the CPU.

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
