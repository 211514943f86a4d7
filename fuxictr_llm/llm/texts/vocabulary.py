"""The values of a column of a built data set: FuxiCTR's vocabulary of them, and their words."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import read_json
from fuxictr_llm.common.runs import Run
from fuxictr_llm.data.field_words import RESERVED, read_field_config, values_for_missing
from fuxictr_llm.data.fills import not_a_number
from fuxictr_llm.llm.catalog import in_words_of

NO_VALUES = {
    "numeric": "numbers are no values of a vocabulary",
    "embedding": "its rows are vectors already",
    "meta": "no model reads it",
}


def train_ids(run: Run, name: str) -> tuple[dict[str, int], int]:
    """Train value -> id of the embedding of a column, in FuxiCTR's order, and the id of unseen ones.

    Values that stand for missing ones in this column are left out.

    Raises:
        UserError: the column is of a type that has no vocabulary, or there are no values in it.
    """
    return _ids_without_missing(run, name, [name])


def vocabulary_of(run: Run, name: str) -> tuple[tuple[str, ...], int]:
    """The train values alone, and the id of unseen ones, without what is missing in a column of this embedding."""
    ids, oov_idx = _ids_without_missing(run, name, _sharing(name, run.feature_map.features))
    return tuple(ids), oov_idx


def _ids_without_missing(run: Run, name: str, columns: Iterable[str]) -> tuple[dict[str, int], int]:
    features = run.feature_map.features
    kind = features[name]["type"]
    if kind in NO_VALUES:
        raise UserError(f"column {name!r} is of type {kind}: {NO_VALUES[kind]}; name a categorical or sequence column")
    path = run.data_dir / "feature_vocab.json"
    vocabulary = (read_json(path) or {}).get(owner_of(name, features)) or {}
    oov_idx = vocabulary.get("__OOV__", len(vocabulary))
    # A file of vectors that FuxiCTR built in puts values of other splits behind the id of unseen ones.
    ids = {value: index for value, index in vocabulary.items() if value not in RESERVED and index < oov_idx}
    if not ids:
        raise UserError(f"column {name!r} has no values in {str(path)!r}, so there is nothing to make vectors of")
    missing = {value for column in columns for value in missing_values(run, column, ids)}
    return {value: index for value, index in ids.items() if value not in missing}, oov_idx


def missing_values(run: Run, name: str, values: Iterable[str] = ()) -> list[str]:
    """The values that stand for missing ones in a column; in a warning, those that rows also have as such."""
    filled = values_for_missing(run.data_dir, name)
    for value, (missing, as_such) in filled.items():
        if as_such and (value in values or run.feature_map.features[name]["type"] == "numeric"):
            logging.warning(
                "column %r: %d rows lack a value and get %s for it, as %d rows have in the raw files: no text can tell "
                "them apart, so texts leave it out; give the column a fill_na that does not occur in it",
                name,
                missing,
                value,
                as_such,
            )
    return list(filled) if filled else not_a_number(values)


def words_of(run: Run, name: str, values: Sequence[str]) -> dict[str, str]:
    """The words that the field config has for values of a column, or of one that shares its embedding."""
    columns = run.feature_map.features
    words = read_field_config(run.params.get("field_config")).get("values") or {}
    # The same words whichever of the columns with this embedding asks.
    sharing = _sharing(name, columns)
    return {value: text for column in sharing for value, text in in_words_of(words.get(column) or {}, values).items()}


def _sharing(name: str, columns: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [other for other in columns if owner_of(other, columns) == owner_of(name, columns)]


def owner_of(name: str, columns: Mapping[str, Mapping[str, Any]]) -> str:
    """The column whose embedding a column uses."""
    shared = columns[name].get("share_embedding", name)
    return shared if shared in columns else name
