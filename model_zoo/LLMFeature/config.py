"""LLMFeature's config keys."""

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from fuxictr_llm.common.checks import STRICT
from fuxictr_llm.config.value_tables import ValueTablesConfig


@dataclass(config=STRICT, kw_only=True)
class LLMFeatureConfig(ValueTablesConfig):
    """Which columns get vectors, on top of how these are made.

    Attributes:
        value_fields: names of categorical columns; null: the ids of the field config's entities, told by the entities'
            other columns; without entities, the columns whose values are words.
        value_scale: root mean square of the vectors' entries, which the linear layer starts from.
    """

    value_fields: Annotated[list[str], Field(min_length=1)] | None = None
    value_scale: Annotated[float, Field(gt=0)] = 0.01
