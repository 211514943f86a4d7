"""What the fields of a data set mean, in words, and which values they take in the train split."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fuxictr_llm.config_sources import packaged_configs
from fuxictr_llm.data.build import built_columns
from fuxictr_llm.errors import UserError, nearest, unknown
from fuxictr_llm.files import read_json
from fuxictr_llm.yamls import read_yaml

# Ids that FuxiCTR reserves; they are no values.
RESERVED = ("__PAD__", "__OOV__")
KEYS = ("about", "fields", "values")


@dataclass(frozen=True)
class FieldEntry:
    """A field: its name in the data, what it means in words, and its train values in words, as FuxiCTR ordered them."""

    name: str
    text: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class FieldCatalog:
    """The K fields of a data set in feature-map order, and what the data set is about."""

    about: str
    fields: tuple[FieldEntry, ...]

    @property
    def names(self) -> list[str]:
        return [field.name for field in self.fields]


def load_catalog(feature_map: Any, data_dir: Path, field_config: str | None) -> FieldCatalog:
    """Words from the field config, values from the built data set's vocabulary, which holds train values alone.

    Args:
        feature_map: FuxiCTR's; meta columns and labels are left out.
        data_dir: the built data set's folder, with feature_vocab.json.
        field_config: an entry of the packaged field_config/, or a YAML file; None: column names serve as words.

    Raises:
        UserError: no such field config, or it names a field that the data set lacks.
    """
    words = read_field_config(field_config)
    vocabulary = read_json(data_dir / "feature_vocab.json") or {}
    built = [name for name, spec in built_columns(data_dir).items() if spec["type"] != "meta"]
    names = [name for name, spec in feature_map.features.items() if spec["type"] != "meta"]
    texts, value_texts = words.get("fields") or {}, words.get("values") or {}
    for name in [*texts, *value_texts]:
        if name not in built:  # words for fields that use_features leaves out do no harm
            hint = nearest(name, built) or ";"
            raise UserError(f"field config {field_config!r} has words for {name!r}{hint} fields: {', '.join(built)}")
    fields = []
    for name in names:
        if not texts.get(name):
            logging.warning("no words for field %r in field config %r: its name is used", name, field_config)
        known = _train_values(name, feature_map, data_dir, vocabulary)
        # YAML reads coded values as numbers, FuxiCTR's vocabulary holds texts.
        in_words = {str(value): str(text) for value, text in (value_texts.get(name) or {}).items()}
        if unused := sorted(in_words.keys() - set(known)):
            logging.warning(
                "field config %r has words for values of %r that train does not have: %s",
                field_config,
                name,
                ", ".join(unused[:5]),
            )
        values = [in_words.get(value, value) for value in known]
        fields.append(FieldEntry(name, str(texts.get(name) or name.replace("_", " ")), tuple(values)))
    return FieldCatalog(str(words.get("about") or "rows of a click-through-rate data set"), tuple(fields))


def _train_values(name: str, feature_map: Any, data_dir: Path, vocabulary: Mapping[str, Any]) -> list[str]:
    """The values of a field in the train split, in FuxiCTR's order.

    Fields that share an embedding share one vocabulary, with the values of all: there the column itself is asked.
    """
    ids = {value: index for value, index in vocabulary.get(name, {}).items() if value not in RESERVED}
    specs = feature_map.features
    shares = specs[name].get("share_embedding") or any(spec.get("share_embedding") == name for spec in specs.values())
    if shares:
        present = set()
        for part in sorted([*data_dir.glob("train.parquet"), *data_dir.glob("train/*.parquet")]):
            column = pq.read_table(part, columns=[name]).column(name).combine_chunks()
            column = column.flatten() if pa.types.is_nested(column.type) else column
            present |= set(pc.unique(column).to_pylist())
        ids = {value: index for value, index in ids.items() if index in present}
    return list(ids)


def read_field_config(name: str | None) -> Mapping[str, Any]:
    """The entry of that name in the packaged field_config/, or the mapping in a YAML file.

    Raises:
        UserError: there is none, or it has other keys than `about`, `fields` and `values`.
    """
    if not name:
        return {}
    if Path(name).suffix in (".yaml", ".yml"):
        words = read_yaml(name)
    else:
        entries: dict[str, Any] = {}
        for path in sorted((packaged_configs() / "field_config").glob("*.yaml")):
            entries |= read_yaml(path)
        if name not in entries:
            raise unknown("field config", name, [*entries, "a .yaml file"])
        words = entries[name]
    if not all(isinstance(words.get(key) or {}, dict) for key in ("fields", "values")) or not all(
        isinstance(texts or {}, dict) for texts in (words.get("values") or {}).values()
    ):
        raise UserError(f"field config {name!r}: 'fields' maps fields to words, 'values' fields to value: words")
    wrong = [key for key in words if key not in KEYS]
    if wrong:
        raise UserError(f"field config {name!r} has the unknown key {wrong[0]!r}; known: {', '.join(KEYS)}")
    return words
