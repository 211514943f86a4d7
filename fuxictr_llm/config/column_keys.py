"""Keys inside of columns: which ones FuxiCTR reads for which column type, and their names in older versions.

FuxiCTR ignores a key that it does not know: a misspelt `spliter` leaves the default. A FeatureProcessor of the user's
may read more keys of `feature_cols`, and a model of the user's more keys of `feature_specs`.
"""

import logging
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fuxictr_llm.common.errors import UserError, nearest
from fuxictr_llm.config.keys import Column, FeatureSpec, GivenVectors, Label

# Keys of columns and models in FuxiCTR 1 -> their names now; BARS's published configs have some of them.
RENAMED = {
    "na_value": "fill_na",
    "encoder": "feature_encoder",
    "embedding_callback": "feature_encoder",
    "patience": "early_stop_patience",
    "every_x_epochs": "eval_steps",
    "workers": "num_workers",
}
_VECTORS = {*GivenVectors.__annotations__}
_OF_EVERY = {"name", "active", "dtype", "type", "source", "fill_na", "preprocess"}
_OF_EMBEDDING = _OF_EVERY | {"embedding_dim", "feature_encoder"}
_OF_IDS = _OF_EMBEDDING | _VECTORS | {"min_categr_count", "remap", "vocab_size", "share_embedding", "emb_output_dim"}
OF_TYPE = {
    "meta": _OF_EVERY | {"remap"},
    "numeric": _OF_EMBEDDING | {"normalizer"},
    "embedding": _OF_EMBEDDING | {"pretrain_dim"},
    "categorical": _OF_IDS | {"category_processor", "num_buckets"},
    "sequence": _OF_IDS | {"splitter", "max_len", "padding"},
}
OF_LABEL = {*Label.__annotations__}
# Keys of `feature_specs`: what a model's layers read. How values became ids is part of the built data set.
OF_SPEC = {*FeatureSpec.__annotations__}
_WITHOUT_IDS = OF_SPEC - _VECTORS - {"vocab_size", "padding_idx", "oov_idx"}
SPEC_OF_TYPE = {
    "meta": {"name", "type", "source"},
    "numeric": _WITHOUT_IDS,
    "embedding": _WITHOUT_IDS | {"pretrain_dim"},
    "categorical": OF_SPEC,
    "sequence": OF_SPEC,
}


@dataclass(frozen=True)
class Unread:
    """A key without effect.

    Attributes:
        setting: `feature_cols`, `label_col` or `feature_specs`.
        index: of the column in it.
        key: the key inside of the column.
        message: what is wrong, and the way out.
    """

    setting: str
    index: int
    key: Any
    message: str


def check_columns(params: Mapping[str, Any], where: str, strict: Container[str]) -> list[Unread]:
    """Check the keys inside of columns, whose values fit already; returns the keys without effect.

    Args:
        where: the config, for messages.
        strict: the settings in which a key without effect is an error; in others it is a warning.

    Raises:
        UserError: a key without effect in a strict setting, a `fill_na` that does not fit its column's dtype, or two
            active columns of one name.
    """
    _refuse_twice(params, where)
    unread = [*unread_keys(params)]
    for setting, message in [*((one.setting, one.message) for one in unread), *unfit_fills(params)]:
        if setting in strict:
            raise UserError(f"{message} ({where})")
        logging.warning("%s (%s)", message, where)
    return unread


def _columns_of(params: Mapping[str, Any], setting: str) -> list[dict[str, Any]]:
    """The columns of `feature_cols`, `label_col` or `feature_specs`; a single one need be no list."""
    columns = params.get(setting) or []
    return columns if isinstance(columns, list) else [columns]


def _names_of(col: Mapping[str, Any]) -> list[str]:
    """The names of the columns that one entry declares."""
    return col["name"] if isinstance(col["name"], list) else [col["name"]]


def unread_keys(params: Mapping[str, Any]) -> Iterator[Unread]:
    """The keys of columns that FuxiCTR does not read."""
    types: dict[str, str] = {}
    for index, col in enumerate(_columns_of(params, "feature_cols")):
        types |= dict.fromkeys(_names_of(col), col["type"])
        yield from _unread("feature_cols", index, col, OF_TYPE[col["type"]], f"type {col['type']}")
    for index, col in enumerate(_columns_of(params, "label_col")):
        yield from _unread("label_col", index, col, OF_LABEL, "a label")
    for index, spec in enumerate(_columns_of(params, "feature_specs")):
        kinds = {spec.get("type") or types.get(name, "") for name in _names_of(spec)}
        read = set().union(*(SPEC_OF_TYPE.get(kind, OF_SPEC) for kind in kinds))
        yield from _unread("feature_specs", index, spec, read, f"type {' and '.join(sorted(kinds))}")


def _unread(setting: str, index: int, col: Mapping[str, Any], read: set[str], kind: str) -> Iterator[Unread]:
    for key in col:
        if key not in read:
            where = f"{setting} of {_named(col)}"
            yield Unread(
                setting, index, key, f"key {key!r} in {where} has no effect{_way_out(key, setting, read, kind)}"
            )


def _way_out(key: Any, setting: str, read: set[str], kind: str) -> str:
    if key in RENAMED:
        return f"; FuxiCTR calls it {RENAMED[key]!r} now"
    if setting == "feature_specs" and key in Column.__annotations__ and key not in OF_SPEC:
        return ": it decides how the data set is built; give it in feature_cols"
    keys_by_type = OF_TYPE if setting == "feature_cols" else SPEC_OF_TYPE
    if readers := [name for name, keys in keys_by_type.items() if key in keys]:
        return f" on {kind}; FuxiCTR reads it of columns of type {', '.join(readers)}"
    return nearest(key, read) or f"; known: {', '.join(sorted(read))}"


def unfit_fills(params: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Setting and message of each `fill_na` of another type than its column.

    FuxiCTR compares a text column's values with it as it is given: a number equals none of them.
    """
    kinds: dict[str, type | tuple[type, ...]] = {"str": str, "int": int, "float": (int, float)}
    for setting in ("feature_cols", "label_col"):
        for col in _columns_of(params, setting):
            fill, dtype = col.get("fill_na"), col["dtype"]
            if fill is not None and (isinstance(fill, bool) or not isinstance(fill, kinds[dtype])):
                fitting = (
                    f"a text, as in fill_na: '{fill}'" if dtype == "str" else "a number" if dtype == "float" else ""
                )
                problem = f"fill_na in {setting} of {_named(col)} is {fill!r} where dtype is {dtype}"
                yield setting, f"{problem}; it must be {fitting or 'a whole number'}"


def without(params: dict[str, Any], unread: Iterable[Unread]) -> dict[str, Any]:
    """Settings without those keys: they are neither printed nor part of the run's identity."""
    drop = {(one.setting, one.index, one.key) for one in unread}
    changed = {}
    for setting in {setting for setting, _, _ in drop}:
        columns = enumerate(_columns_of(params, setting))
        kept = [{k: v for k, v in col.items() if (setting, index, k) not in drop} for index, col in columns]
        changed[setting] = kept if isinstance(params[setting], list) else kept[0]
    return {**params, **changed}


def _refuse_twice(params: Mapping[str, Any], where: str) -> None:
    active = [col for col in _columns_of(params, "feature_cols") if col["active"]]
    names = [name for col in (*_columns_of(params, "label_col"), *active) for name in _names_of(col)]
    twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if twice is not None:
        raise UserError(
            f"column {twice!r} stands twice in feature_cols and label_col of {where}; leave it in one place"
        )


def _named(col: Mapping[str, Any]) -> str:
    names = _names_of(col)
    return ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
