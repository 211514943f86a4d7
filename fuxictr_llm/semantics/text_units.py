"""Which columns are told of a row, and in which units of text."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fuxictr_llm.errors import UserError, unknown
from fuxictr_llm.semantics.catalog import FieldCatalog, load_catalog
from fuxictr_llm.semantics.sentences import Sentence, sentence_of
from fuxictr_llm.semantics.side_texts import side_sentences
from fuxictr_llm.semantics.text_config import RowTextsConfig

ROW = "row"
# The unit of what belongs to no entity.
CONTEXT = "context"


@dataclass(frozen=True)
class UnitPlan:
    """A unit of text: its name, the columns whose ids decide about it, what it says, and of which entity's id."""

    name: str
    columns: tuple[str, ...]
    sentences: tuple[Sentence, ...]
    id: str | None = None


def plan_units(config: RowTextsConfig, run: Any) -> list[UnitPlan]:
    """The units of text of the run's data set.

    Raises:
        UserError: nothing can be told of a row, or a named column or side table is not there.
    """
    catalog = load_catalog(run.feature_map, run.data_dir, run.params.get("field_config"))
    fields = told_fields(config, catalog, run.feature_map.features)
    sides = side_sentences(config.value_texts or {}, run)
    columns = list(dict.fromkeys([*fields, *sides]))
    if not columns:
        raise UserError(
            f"data set {run.params['dataset_id']!r} has nothing to read: no column's values are words; name columns "
            "with text_fields, give their values words in the field config, or longer texts with value_texts"
        )
    words = {field.name: field.text for field in catalog.fields}
    ids = {entity.name: entity.id for entity in catalog.entities}
    units = []
    for name, names in _grouped(config, catalog, columns).items():
        # A meta column has no words: sentence_of says that it cannot be told.
        told = [sentence_of(run, column, words.get(column, column)) for column in names if column in fields]
        sentences = (*told, *(sides[column] for column in names if column in sides))
        units.append(UnitPlan(name, tuple(names), sentences, ids.get(name)))
        logging.info("Texts of unit %r tell %s", name, ", ".join(names))
    return units


def told_fields(config: RowTextsConfig, catalog: FieldCatalog, features: Mapping[str, Any]) -> list[str]:
    """The columns that are told: those named, or else those of the entities, or else those of words.

    Raises:
        UserError: a named one is not there.
    """
    if config.text_fields is not None:
        for name in config.text_fields:
            if name not in features:
                raise unknown("column", name, features, "'text_fields'")
        return list(dict.fromkeys(config.text_fields))
    of_entities = [name for entity in catalog.entities for name in entity.text if name in features]
    return of_entities or catalog.names_of_words


def _grouped(config: RowTextsConfig, catalog: FieldCatalog, columns: Sequence[str]) -> dict[str, list[str]]:
    owner = {column: entity.name for entity in catalog.entities for column in (entity.id, *entity.text)}
    if config.text_units == "entity" and not owner.keys() & set(columns):
        logging.info("The field config has no entities of these columns: a row is one text")
    if config.text_units == ROW or not owner.keys() & set(columns):
        return {ROW: list(columns)}
    units: dict[str, list[str]] = {}
    for column in columns:
        units.setdefault(owner.get(column, CONTEXT), []).append(column)
    return units
