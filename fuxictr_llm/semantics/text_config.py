"""The config keys of texts of rows, and of the vectors that a language model makes of them."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fuxictr_llm.checks import STRICT
from fuxictr_llm.errors import UserError, unknown
from fuxictr_llm.semantics.config import LanguageModelConfig

# Of a table of longer texts: a csv or parquet file, its column of a column's raw values, its column of the texts.
SIDE_TABLE = ("file", "key", "text")


@dataclass(config=STRICT, kw_only=True)
class RowTextsConfig(LanguageModelConfig):
    """Which texts a row has, and how the language model is asked for their vectors.

    Attributes:
        text_units: `entity`: the texts of user, item and so on are encoded apart, and their vectors concatenated;
            `row`: all in one text.
        text_fields: the columns that are told, in this order; null: those of the field config's entities; without
            entities, the columns whose values are words.
        value_texts: for columns, a table of longer texts of their values: `{item_id: {file: items.csv, key: item_id,
            text: description}}`.
        llm_max_text_tokens: a text longer than that is cut.
        encoder: `local`: in this process; `ray`: by `ray_workers` processes under Ray Data, on one machine or many that
            share the cache folder.
        ray_workers: how many processes, each with the language model in its memory.
        text_vectors: a folder of vectors made elsewhere, as the stage `encode` writes them; the language model is
            not asked then.
    """

    text_units: Literal["entity", "row"] = "entity"
    text_fields: list[str] | None = None
    value_texts: dict[str, dict[str, str]] | None = None
    llm_max_text_tokens: Annotated[int, Field(ge=1)] = 128
    encoder: Literal["local", "ray"] = "local"
    ray_workers: Annotated[int, Field(ge=1)] = 2
    text_vectors: Annotated[str, Field(min_length=1)] | None = None

    def __post_init__(self) -> None:
        for column, table in (self.value_texts or {}).items():
            where = f"value_texts of {column!r}"
            for key in table:
                if key not in SIDE_TABLE:
                    raise unknown("key", key, SIDE_TABLE, where)
            if missing := [key for key in SIDE_TABLE if not table.get(key)]:
                raise UserError(f"{where} lacks {missing[0]!r}; it needs {', '.join(SIDE_TABLE)}")
