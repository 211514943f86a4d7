"""Config keys of tables of frozen text vectors."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fuxictr_llm.common.checks import STRICT
from fuxictr_llm.config.language_models import LanguageModelConfig, check_side_tables


@dataclass(config=STRICT, kw_only=True)
class ValueTablesConfig(LanguageModelConfig):
    """Tables of frozen vectors of the texts of a column's values, those that train lacks included.

    Attributes:
        value_texts: for columns, a table of longer texts of their values: `{item_id: {file: items.csv, key: item_id,
            text: description}}`.
        llm_max_text_tokens: a text longer than that is cut.
        field_vectors: `llm`, or a placebo made of its vectors: `random` (Gaussian, same norms) or `shuffled` (handed
            round over the values of the column).
        value_tables: a file of such tables that an earlier run made: no language model is asked. A value that train
            lacks has zeros then.
    """

    of_language_model: ClassVar[bool] = True  # its keys change what a language model computes

    value_texts: dict[str, dict[str, str]] | None = None
    llm_max_text_tokens: Annotated[int, Field(ge=1)] = 128
    field_vectors: Literal["llm", "random", "shuffled"] = "llm"
    value_tables: Annotated[str, Field(min_length=1)] | None = None

    def __post_init__(self) -> None:
        check_side_tables(self.value_texts or {})
