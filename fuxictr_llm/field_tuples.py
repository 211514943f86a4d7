"""Fields that a model reads side by side: tuples in FuxiCTR's constructors, lists in settings, records and exports.

    din_target_field: [!!python/tuple [item_id, cate_id]]  # FuxiCTR's configs
    din_target_field: [[item_id, cate_id]]                 # the same

JSON has no tuples, and an identity must not depend on which of the two was written.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from fuxictr_llm.errors import UserError


def as_lists(params: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with lists in place of tuples; a tuple of texts on its own is one group of fields: `[[a, b]]`.

    Raises:
        UserError: a value holds itself, or half of a character, as a name in another encoding than UTF-8 does.
    """
    try:
        return _all_listed(params)
    except RecursionError as error:
        raise UserError("a value of the config holds itself; a YAML anchor must not stand inside of itself") from error
    except UnicodeEncodeError as error:
        raise UserError(f"the config holds {error.object[:80]!r}, which cannot be written as text (UTF-8)") from error


def _all_listed(params: Mapping[str, Any]) -> dict[str, Any]:
    alone = {key: [value] for key, value in params.items() if isinstance(value, tuple) and _is_group(value)}
    return _listed({**params, **alone})


def as_tuples(params: Mapping[str, Any], cls: type) -> dict[str, Any]:
    """Settings as the constructor of a model wants them: tuples where its defaults or the names of its keys say so.

    FuxiCTR's models ask for the type: of `[[a, b]]` they take the inner list for the name of a field.
    """
    defaults = _defaults(cls)
    return {key: _tupled(key, value, defaults[key]) if key in defaults else value for key, value in params.items()}


def _tupled(key: str, value: Any, default: Any) -> Any:
    if not isinstance(value, list):
        return value
    if isinstance(default, tuple):
        if len(value) == 1 and isinstance(value[0], list):
            return tuple(value[0])
        if not any(isinstance(each, list) for each in value):
            return tuple(value)
    inner = {type(each) for each in default} if isinstance(default, list) else set()
    if tuple in inner or (list not in inner and ("field" in key or isinstance(default, tuple))):
        return [tuple(each) if isinstance(each, list) and _is_group(each) else each for each in value]
    return value


def _is_group(value: list | tuple) -> bool:
    return len(value) > 0 and all(isinstance(each, str) for each in value)


def _listed(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_listed(each) for each in value]
    if isinstance(value, str) and not value.isascii():
        value.encode("utf-8")
    if not isinstance(value, dict):
        return value
    # A digest sorts keys, and a record has them as texts.
    sortable = all(isinstance(key, int | float) for key in value)
    return {key if sortable else _listed(str(key)): _listed(each) for key, each in value.items()}


def _defaults(cls: type) -> dict[str, Any]:
    """The defaults of a model's constructor and its bases'."""
    found: dict[str, Any] = {}
    for each in reversed(cls.__mro__):
        if "__init__" in vars(each) and each.__module__.split(".")[0] not in ("torch", "builtins"):
            found |= {name: of.default for name, of in inspect.signature(each.__init__).parameters.items()}
    return found
