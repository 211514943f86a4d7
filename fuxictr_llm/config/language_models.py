"""Config keys of language models: which one it is, how it is tuned, and how texts and vectors are made with it."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fuxictr_llm.common.checks import STRICT, checked
from fuxictr_llm.common.errors import UserError, unknown

# Keys of a table of longer texts: a csv or parquet file, its column of raw values, its column of texts.
SIDE_TABLE = ("file", "key", "text")
# The value of `pretrained_emb` that asks for a language model's vectors, in place of a file's name.
LLM = "llm"
SOURCES = ("llm", "random", "shuffled")
# FuxiCTR's keys of a column with given vectors; they are no part of the built data set.
COLUMN_KEYS = ("pretrained_emb", "pretrain_usage", "pretrain_dim", "freeze_emb")


@dataclass(config=STRICT, kw_only=True)
class LanguageModelConfig:
    """The language model, and how it makes the vector of a text.

    Attributes:
        language_model: a named model (`python run_expid.py --list`), a Hugging Face id or a folder.
        llm_dtype: what the language model computes in. auto: bfloat16 on a GPU, and on a CPU that has instructions for
            it; float32 on others, where bfloat16 can be fifty times slower.
        llm_pooling: which hidden states make the vector of a text. auto: of fields the last token (causal model) or the
            mean (encoder), of values the mean.
        control_seed: seed of the placebos `random` and `shuffled`.
    """

    of_language_model: ClassVar[bool] = True  # its keys change what a language model computes

    language_model: Annotated[str, Field(min_length=1)] = "SmolLM2-135M-Instruct"
    llm_dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    llm_pooling: Literal["auto", "last", "mean"] = "auto"
    control_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    def dtype_on(self, gpu: int) -> str:
        """`llm_dtype` with `auto` decided, for the GPU of that index or, at -1, the CPU."""
        if self.llm_dtype != "auto":
            return self.llm_dtype
        import torch

        cpu = getattr(torch.cpu, "get_capabilities", dict[str, Any])()
        return "bfloat16" if gpu >= 0 or cpu.get("avx512_bf16") or cpu.get("amx_bf16") else "float32"


@dataclass(config=STRICT, kw_only=True)
class LoraKeys:
    """How a language model is tuned, for any purpose.

    Attributes:
        lora_rank, lora_alpha, lora_dropout: LoRA's; the defaults are those of LLaCTR's paper.
        lora_targets: names of the tuned projections; null: peft's choice for the model (Llama: q_proj, v_proj).
    """

    of_language_model: ClassVar[bool] = True  # its keys change what a language model computes

    lora_rank: Annotated[int, Field(ge=1)] = 8
    lora_alpha: Annotated[int, Field(ge=1)] = 16
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    lora_targets: list[str] | None = None


@dataclass(config=STRICT, kw_only=True)
class RowTextsConfig(LanguageModelConfig):
    """Which texts a row has, and how the language model encodes them.

    Attributes:
        text_units: `entity`: the texts of user, item and so on are encoded apart, and their vectors concatenated;
            `row`: all in one text.
        text_fields: the columns whose values the texts have, in this order; null: those of the field config's entities;
            without entities, the columns whose values are words.
        value_texts: for columns, a table of longer texts of their values: `{item_id: {file: items.csv, key: item_id,
            text: description}}`.
        llm_max_text_tokens: a text longer than that is cut.
        encoder: `local`: in this process; `ray`: by `ray_workers` processes under Ray Data, on one machine or many that
            share the cache folder.
        ray_workers: how many processes, each with the language model in its memory.
        text_vectors: a folder of vectors made elsewhere, as the stage `encode` writes them; the language model is
            not asked then.
    """

    of_language_model: ClassVar[bool] = True  # its keys change what a language model computes

    text_units: Literal["entity", "row"] = "entity"
    text_fields: list[str] | None = None
    value_texts: dict[str, dict[str, str]] | None = None
    llm_max_text_tokens: Annotated[int, Field(ge=1)] = 128
    encoder: Literal["local", "ray"] = "local"
    ray_workers: Annotated[int, Field(ge=1)] = 2
    text_vectors: Annotated[str, Field(min_length=1)] | None = None

    def __post_init__(self) -> None:
        check_side_tables(self.value_texts or {})


def check_side_tables(tables: Mapping[str, Mapping[str, str]]) -> None:
    for column, table in tables.items():
        where = f"value_texts of {column!r}"
        for key in table:
            if key not in SIDE_TABLE:
                raise unknown("key", key, SIDE_TABLE, where)
        if missing := [key for key in SIDE_TABLE if not table.get(key)]:
            raise UserError(f"{where} lacks {missing[0]!r}; it needs {', '.join(SIDE_TABLE)}")


@dataclass(config=STRICT, kw_only=True)
class ColdValuesConfig(LanguageModelConfig):
    """Embeddings for values outside train's vocabulary, made after training from their words.

    Attributes:
        cold_values: what such a value gets in place of FuxiCTR's `__OOV__`. `words`: an embedding of its own, given by
            a ridge map from text vectors to trained embeddings, which is fitted on train values alone, weighted by how
            often they occur. `mean`: the weighted mean of the trained embeddings. `shuffled`: as `words`, with the text
            vectors handed round over these values. null: nothing.
        cold_fields: the columns whose unseen values get embeddings; null: those with vectors of their values, and the
            ids of the field config's entities that have other columns.
        cold_catalog: for columns, a csv or parquet file with values that will come and the columns that describe them,
            named and written as in the raw files: `{item_id: new_items.csv}`. They get embeddings too, and an export
            knows their ids.
        value_texts: for columns, a table of longer texts of their values, which these texts end with: `{item_id: {file:
            items.csv, key: item_id, text: description}}`.
        llm_max_text_tokens: a text of a value that is longer than that is cut, for this purpose.
    """

    of_language_model: ClassVar[bool] = True  # its keys change what a language model computes

    cold_values: Literal["words", "mean", "shuffled"] | None = None
    cold_fields: Annotated[list[str], Field(min_length=1)] | None = None
    cold_catalog: Annotated[dict[str, str], Field(min_length=1)] | None = None
    value_texts: dict[str, dict[str, str]] | None = None
    llm_max_text_tokens: Annotated[int, Field(ge=1)] = 128

    def __post_init__(self) -> None:
        check_side_tables(self.value_texts or {})
        given = [key for key in ("cold_fields", "cold_catalog") if getattr(self, key)]
        if given and self.cold_values is None:
            raise UserError(f"{given[0]} has no effect without cold_values; set cold_values: words, or leave it out")

    def refuse_unread_texts(self) -> None:
        """
        Raises:
            UserError: nothing reads `value_texts`. A method of which they are a key of its own does.
        """
        if self.value_texts and self.cold_values is None:
            raise UserError("value_texts has no effect without cold_values; set cold_values: words, or leave it out")


@dataclass(config=STRICT, kw_only=True)
class ValueVectorsConfig(ColdValuesConfig):
    """How the vectors `[N, D]` of a column's N train values are made and used.

    Attributes:
        field_vectors: `llm`, or a placebo made of its vectors: `random` (Gaussian, same norms) or `shuffled` (handed
            round over the values of the column).
        llm_max_value_tokens: longer values are cut; the words before them never are.
        value_text: `described` puts the field's words before the value (title of the movie: Toy Story), `plain` has the
            value alone.
        value_dim: D; null: the width of the column's embedding; `full`: the language model's own width. Vectors are
            reduced by a PCA of the column's train values; components that there are not are zeros. A column's
            `pretrain_dim` wins.
        value_scale: root mean square of the vectors' entries, after their mean is taken off; null leaves mean and scale
            as they are (a PCA takes the mean off all the same). FuxiCTR starts its embeddings at 1e-4.
        value_usage: FuxiCTR's: `init` the embedding with the vectors, `sum` or `concat` them with an embedding of ids.
            A column's `pretrain_usage` wins.
        value_freeze: whether the vectors stay as they are in training. A column's `freeze_emb` wins.
    """

    of_language_model: ClassVar[bool] = True  # its keys change what a language model computes

    field_vectors: Literal["llm", "random", "shuffled"] = "llm"
    llm_max_value_tokens: Annotated[int, Field(ge=1)] = 32
    value_text: Literal["described", "plain"] = "described"
    value_dim: Annotated[int, Field(ge=1)] | Literal["full"] | None = None
    value_scale: Annotated[float, Field(gt=0)] | None = 0.01
    value_usage: Literal["init", "sum", "concat"] = "init"
    value_freeze: bool = False


def value_config(params: Mapping[str, Any]) -> ValueVectorsConfig:
    """The ValueVectorsConfig in flat settings.

    `field_vectors` of a method may have more values: its placebos hold for the values of columns too, with the others
    the language model makes them.

    Raises:
        UserError: a value is wrong.
    """
    if params.get("method") and params.get("field_vectors") not in SOURCES:
        params = {**params, "field_vectors": LLM}
    config = checked(ValueVectorsConfig, params)
    if not params.get("method"):
        config.refuse_unread_texts()
    return config


def asks_for_vectors(params: Mapping[str, Any]) -> bool:
    """Whether a column of the settings has `pretrained_emb: llm`."""
    lists = [params.get(key) for key in ("feature_cols", "feature_specs")]
    columns = [column for columns in lists if isinstance(columns, list) for column in columns]
    return any(isinstance(column, dict) and column.get("pretrained_emb") == LLM for column in columns)


def moved_to_specs(params: dict[str, Any]) -> dict[str, Any]:
    """Settings with requests for language-model vectors moved from `feature_cols` to `feature_specs`.

    The data set is then built as without them, and can be shared. Specs that are there already win.
    """
    columns = params.get("feature_cols") or []
    if not asks_for_vectors({"feature_cols": columns}):
        return params
    asked = [column for column in columns if isinstance(column, dict) and column.get("pretrained_emb") == LLM]
    kept = [_without(column, COLUMN_KEYS) if column in asked else column for column in columns]
    specs = [
        {"name": column["name"], **{key: column[key] for key in COLUMN_KEYS if key in column}}
        for column in asked
        if column.get("active", True)
    ]
    return {**params, "feature_cols": kept, "feature_specs": [*specs, *(params.get("feature_specs") or [])]}


def _without(mapping: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key not in keys}
