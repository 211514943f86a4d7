"""LLMEmb's config keys."""

from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from fuxictr_llm.common.checks import STRICT
from fuxictr_llm.config.language_models import LLM, ValueVectorsConfig


@dataclass(config=STRICT, kw_only=True)
class LLMEmbConfig(ValueVectorsConfig):
    """Which columns get vectors of their values, on top of how these are made and used.

    Attributes:
        value_fields: names of categorical and sequence columns; null: those for which `feature_specs` has a file, or
            else those most of whose train values are words (three letters in a row).
        feature_specs: FuxiCTR's changes to columns; those that name vectors for a column win over LLMEmb's.
    """

    value_fields: Annotated[list[str], Field(min_length=1)] | None = None
    feature_specs: list[dict[str, Any]] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse_unread_texts()

    @property
    def given_files(self) -> list[str]:
        """The files of vectors that `feature_specs` names."""
        files = [spec.get("pretrained_emb") for spec in self.feature_specs or ()]
        return [file for file in files if file and file != LLM]
