"""The config keys of language-model vectors of feature values, and the columns that ask for such vectors."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fuxictr_llm.checks import STRICT, checked
from fuxictr_llm.semantics.config import LanguageModelConfig

# What stands in `pretrained_emb`, where FuxiCTR has the name of a file.
LLM = "llm"
SOURCES = ("llm", "random", "shuffled")
# FuxiCTR's keys of a column with given vectors. They are no part of the data: a built data set serves both arms.
COLUMN_KEYS = ("pretrained_emb", "pretrain_usage", "pretrain_dim", "freeze_emb")


@dataclass(config=STRICT, kw_only=True)
class ValueVectorsConfig(LanguageModelConfig):
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

    field_vectors: Literal["llm", "random", "shuffled"] = "llm"
    llm_max_value_tokens: Annotated[int, Field(ge=1)] = 32
    value_text: Literal["described", "plain"] = "described"
    value_dim: Annotated[int, Field(ge=1)] | Literal["full"] | None = None
    value_scale: Annotated[float, Field(gt=0)] | None = 0.01
    value_usage: Literal["init", "sum", "concat"] = "init"
    value_freeze: bool = False


def value_config(params: Mapping[str, Any]) -> ValueVectorsConfig:
    """The keys above out of flat settings.

    A method with field vectors has more sources for them than there are here: its placebos are placebos here too,
    the others leave the values to the language model.

    Raises:
        UserError: a value is wrong.
    """
    if params.get("method") and params.get("field_vectors") not in SOURCES:
        params = {**params, "field_vectors": LLM}
    return checked(ValueVectorsConfig, params)


def asks_for_vectors(params: Mapping[str, Any]) -> bool:
    """Whether a column of the settings has `pretrained_emb: llm`."""
    lists = [params.get(key) for key in ("feature_cols", "feature_specs")]
    columns = [column for columns in lists if isinstance(columns, list) for column in columns]
    return any(isinstance(column, dict) and column.get("pretrained_emb") == LLM for column in columns)


def moved_to_specs(params: dict[str, Any]) -> dict[str, Any]:
    """Settings whose `feature_cols` ask for language-model vectors, with that request in `feature_specs`.

    What is built from `feature_cols` is then the plain arm's. Specs that were there win.
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


def specs_by_column(specs: list[dict[str, Any]] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and keys of each column that `feature_specs` speaks of, a list of names taken apart."""
    for spec in specs or ():
        for name in spec["name"] if isinstance(spec["name"], list) else [spec["name"]]:
            yield name, _without(spec, ("name",))


def _without(mapping: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key not in keys}
