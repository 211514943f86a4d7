"""KAR's config keys."""

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from fuxictr_llm.common.checks import STRICT
from fuxictr_llm.config.value_tables import ValueTablesConfig


@dataclass(config=STRICT, kw_only=True)
class KARConfig(ValueTablesConfig):
    """How knowledge is adapted, on top of how its texts become vectors.

    `value_texts` has the knowledge: for the ids of users, items or both, a table of texts. null: what the data itself
    says of the field config's entities, which is the paper's control `text_only`.

    Attributes:
        shared_experts: K_s, experts of all columns.
        dedicated_experts: K_d, experts of each column.
        expert_hidden: width of an expert's hidden layer.
        knowledge_dim: width of what the backbone gets.
        expert_dropout: dropout behind the hidden layer.
    """

    shared_experts: Annotated[int, Field(ge=0)] = 2
    dedicated_experts: Annotated[int, Field(ge=1)] = 5
    expert_hidden: Annotated[int, Field(ge=1)] = 128
    knowledge_dim: Annotated[int, Field(ge=2)] = 32
    expert_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
