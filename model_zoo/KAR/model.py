"""KAR on any backbone: adapted knowledge of users and items as columns that the backbone reads as its own.

"Towards Open-World Recommendation with Knowledge Augmentation from Large Language Models", arXiv 2306.10933.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Self

import polars as pl
import torch
from torch import Tensor

from fuxictr_llm.common.errors import UserError, unknown
from fuxictr_llm.common.runs import Run
from fuxictr_llm.data.unseen import RawValues
from fuxictr_llm.enhancement.anatomy import Anatomy
from fuxictr_llm.enhancement.columns import rows_of
from fuxictr_llm.llm.texts.value_texts import ValueTexts
from fuxictr_llm.llm.vectors.value_tables import ValueTables, make_value_tables

from ..text_columns import TextColumns, columns_to_tell
from .config import KARConfig
from .experts import HybridExperts


class KAR(TextColumns):
    """The adaptor, trained with the backbone; at inference a table of what it gives, by id.

    Args:
        config: its `value_tables` names the file of knowledge vectors.
        anatomy: the backbone's.

    Raises:
        UserError: the tables are of different widths.
    """

    config: KARConfig
    colour = "#CC79A7"
    controls = {"random": {"field_vectors": "random"}, "shuffled": {"field_vectors": "shuffled"}}

    def __init__(self, config: KARConfig, anatomy: Anatomy):
        super().__init__(config, anatomy)
        widths = {name: table.shape[1] for name, table in self.vectors.tables.items()}
        if len({*widths.values()}) > 1:
            raise UserError(f"value_tables {config.value_tables!r} has vectors of several widths ({widths}); give one")
        self.adaptor = HybridExperts(config, [*widths], next(iter(widths.values())))
        self._adapted: dict[str, Tensor] | None = None  # of all ids; in evaluation mode alone

    @classmethod
    def make_tables(cls, config: KARConfig, run: Run) -> ValueTables:
        raw = RawValues(run.raw, "KAR")
        texts = ValueTexts(run, raw, config.value_texts)
        known = _given(config, run, texts) | _written(config, run, raw, texts)
        if not known:
            logging.warning(
                "KAR has no knowledge (knowledge_model, value_texts): it takes what the data itself says of users, "
                "items and so on"
            )
            told = {name: texts.columns_of(name) for name in columns_to_tell(run, texts)}
            return make_value_tables(config, run, raw, told, texts.of)
        unread = {name: {*of_column} for name, of_column in known.items()}

        def knowledge(name: str, frames: Sequence[pl.LazyFrame], values: Sequence[str]) -> dict[str, str]:
            unread[name] -= {*values}
            return {value: known[name][value] for value in values if value in known[name]}

        made = make_value_tables(config, run, raw, {name: [] for name in known}, knowledge)
        for name, left in unread.items():
            if left:
                message = (
                    "value_texts of %r has knowledge of %d values that the data does not have, as %r: it is not read"
                )
                logging.warning(message, name, len(left), min(left))
        return made

    @classmethod
    def width_of(cls, config: KARConfig, width: int) -> int:
        return config.knowledge_dim

    @classmethod
    @torch.no_grad()
    def folded_tables(
        cls, config: KARConfig, tables: Mapping[str, Tensor], state: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        adaptor = HybridExperts(config, [*tables], next(iter(tables.values())).shape[1]).eval()
        part = "adaptor."
        adaptor.load_state_dict(
            {name.removeprefix(part): value for name, value in state.items() if name.startswith(part)}
        )
        return adaptor(tables)

    def read(self, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.training:
            return self._of_distinct(columns)
        if self._adapted is None:
            with torch.no_grad():
                self._adapted = self.adaptor(self.vectors.tables)
        return {name: rows_of(table, columns[name]) for name, table in self._adapted.items()}

    def _of_distinct(self, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The adaptor is asked once for each id of a batch, not once for each row."""
        found = {name: columns[name].unique(return_inverse=True) for name in self.vectors.tables}
        adapted = self.adaptor(self.vectors({name: ids for name, (ids, _) in found.items()}))
        return {name: vectors[found[name][1].to(vectors.device)] for name, vectors in adapted.items()}

    def train(self, mode: bool = True) -> Self:
        self._adapted = None
        return super().train(mode)

    def _load_from_state_dict(self, *args: Any) -> None:
        self._adapted = None
        super()._load_from_state_dict(*args)


def _given(config: KARConfig, run: Run, texts: ValueTexts) -> dict[str, Mapping[str, str]]:
    """Column -> value -> knowledge, of `value_texts`."""
    for name in config.value_texts or ():
        if run.feature_map.features[name]["type"] != "categorical":
            known = [key for key, spec in run.feature_map.features.items() if spec["type"] == "categorical"]
            raise unknown("column of one id a row", name, known, "'value_texts'")
    return {name: texts.sides_of(name) for name in config.value_texts or ()}


def _written(config: KARConfig, run: Run, raw: RawValues, texts: ValueTexts) -> dict[str, Mapping[str, str]]:
    """The same of the columns that `value_texts` has not, written by `knowledge_model`."""
    if config.knowledge_model is None:
        return {}
    from .knowledge import Prompts, write_knowledge

    prompts = Prompts(config, run, raw, ValueTexts(run, raw))
    columns = [name for name in prompts.entities if name not in (config.value_texts or {})]
    if not columns:
        raise UserError(
            "knowledge_model has no effect: value_texts has the knowledge of all entities; leave one of the two out"
        )
    return {**write_knowledge(config, run, prompts, columns)}
