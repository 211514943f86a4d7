"""LLMFeature on any backbone: what industry does first, text vectors as frozen input columns."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fuxictr_llm.common.errors import UserError, unknown
from fuxictr_llm.common.runs import Run
from fuxictr_llm.data.unseen import RawValues
from fuxictr_llm.llm.texts.value_texts import ValueTexts
from fuxictr_llm.llm.vectors.value_tables import ValueTables, make_value_tables

from ..text_columns import TextColumns, columns_to_tell
from .config import LLMFeatureConfig


class LLMFeature(TextColumns):
    """`x_c = scale * z_c` beside the backbone's other columns; each of its tables reads it as `P x_c`.

    No term and no parameter of its own: P is FuxiCTR's linear layer of a column of vectors.
    """

    config: LLMFeatureConfig
    colour = "#E69F00"
    controls = {"random": {"field_vectors": "random"}, "shuffled": {"field_vectors": "shuffled"}}

    @classmethod
    def make_tables(cls, config: LLMFeatureConfig, run: Run) -> ValueTables:
        raw = RawValues(run.raw, "LLMFeature")
        texts = ValueTexts(run, raw, config.value_texts)
        names = config.value_fields or columns_to_tell(run, texts)
        for name in names:
            if name not in run.feature_map.features:
                raise unknown("column", name, run.feature_map.features, "'value_fields'")
            kind = run.feature_map.features[name]["type"]
            if kind != "categorical":
                raise UserError(f"value_fields: column {name!r} is of type {kind}; a row must have one value in it")
        return make_value_tables(config, run, raw, {name: texts.columns_of(name) for name in names}, texts.of)

    @classmethod
    def folded_tables(cls, config: LLMFeatureConfig, tables: Any, state: Any) -> dict[str, Tensor]:
        return {name: config.value_scale * table for name, table in tables.items()}

    def read(self, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self.config.value_scale * vectors for name, vectors in super().read(columns).items()}
