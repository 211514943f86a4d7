"""KAR's config keys."""

from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from fuxictr_llm.common.checks import STRICT
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.config.value_tables import ValueTablesConfig

Names = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]


@dataclass(config=STRICT, kw_only=True)
class KnowledgeKeys:
    """How a language model writes knowledge of the field config's entities, from what train says of them.

    Attributes:
        knowledge_model: the language model that writes it, a causal one, named as `language_model` is; null: none is
            written.
        knowledge_entities: those it is written of; null: all that have an id and something to tell.
        knowledge_factors: entity -> by what it is described, or a user's tastes are; null, and for entities that are
            not in it: general ones.
        knowledge_history: how many train rows of a user, the earliest, its prompt tells at most; of few rows the first
            half.
        knowledge_max_new_tokens: a longer answer is cut. 0: none is written, the knowledge is what the prompt tells,
            the paper's control `text_only`.
        knowledge_temperature: of drawing tokens; 0: the likeliest each time.
        knowledge_seed: of drawing.
    """

    of_language_model: ClassVar[bool] = True  # its keys change what a language model computes

    knowledge_model: Annotated[str, Field(min_length=1)] | None = None
    knowledge_entities: Names | None = None
    knowledge_factors: dict[str, Names] | None = None
    knowledge_history: Annotated[int, Field(ge=1)] = 30
    knowledge_max_new_tokens: Annotated[int, Field(ge=0)] = 128
    knowledge_temperature: Annotated[float, Field(ge=0)] = 0.0
    knowledge_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


@dataclass(config=STRICT, kw_only=True)
class KARConfig(KnowledgeKeys, ValueTablesConfig):
    """How knowledge is adapted, on top of how it is written and how its texts become vectors.

    `value_texts` has knowledge that was written elsewhere: for the ids of users, items or both, a table of texts. With
    neither, the knowledge is what the data itself says of the field config's entities.

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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.knowledge_entities and self.knowledge_model is None:
            raise UserError(
                "knowledge_entities has no effect without knowledge_model; name a language model that writes"
            )
