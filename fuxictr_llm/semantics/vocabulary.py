"""The values of a column of a built data set: FuxiCTR's vocabulary of them, and their words."""

from collections.abc import Mapping, Sequence
from typing import Any

from fuxictr_llm.data.field_texts import RESERVED
from fuxictr_llm.errors import UserError
from fuxictr_llm.files import read_json
from fuxictr_llm.semantics.catalog import in_words_of, read_field_config

NO_VALUES = {
    "numeric": "numbers are no values of a vocabulary",
    "embedding": "its rows are vectors already",
    "meta": "no model reads it",
}


def train_ids(run: Any, name: str) -> tuple[dict[str, int], int]:
    """Train value -> id of the embedding of a column, in FuxiCTR's order, and the id of unseen ones.

    Raises:
        UserError: the column is of a type that has no vocabulary, or there are no values in it.
    """
    columns = run.feature_map.features
    kind = columns[name]["type"]
    if kind in NO_VALUES:
        raise UserError(f"column {name!r} is of type {kind}: {NO_VALUES[kind]}; name a categorical or sequence column")
    path = run.data_dir / "feature_vocab.json"
    vocabulary = (read_json(path) or {}).get(owner_of(name, columns)) or {}
    oov_idx = vocabulary.get("__OOV__", len(vocabulary))
    # A file of vectors that FuxiCTR built in puts values of other splits behind the id of unseen ones.
    ids = {value: index for value, index in vocabulary.items() if value not in RESERVED and index < oov_idx}
    if not ids:
        raise UserError(f"column {name!r} has no values in {str(path)!r}, so there is nothing to make vectors of")
    return ids, oov_idx


def vocabulary_of(run: Any, name: str) -> tuple[tuple[str, ...], int]:
    """The train values of `train_ids` alone, and the id of unseen ones."""
    ids, oov_idx = train_ids(run, name)
    return tuple(ids), oov_idx


def words_of(run: Any, name: str, values: Sequence[str]) -> dict[str, str]:
    """The words that the field config has for values of a column, or of one that shares its embedding."""
    columns = run.feature_map.features
    words = read_field_config(run.params.get("field_config")).get("values") or {}
    # The same words whichever of the columns with this embedding asks.
    sharing = [other for other in columns if owner_of(other, columns) == owner_of(name, columns)]
    return {value: text for of in sharing for value, text in in_words_of(words.get(of) or {}, values).items()}


def owner_of(name: str, columns: Mapping[str, Mapping[str, Any]]) -> str:
    """The column whose embedding a column uses."""
    shared = columns[name].get("share_embedding")
    return shared if shared in columns else name
