"""LLMEmb on any backbone: `pretrained_emb: llm` for the columns whose values are words.

The plainest use of a language model in a CTR model, and the baseline of the others: no term, no tap, no parameter of
its own. What it does, the backbone's own embedding layer does.
"""

import logging
from typing import Any

from fuxictr_llm.common.errors import UserError, unknown
from fuxictr_llm.config.language_models import LLM
from fuxictr_llm.enhancement.anatomy import Anatomy
from fuxictr_llm.enhancement.base import Enhancement
from fuxictr_llm.model_zoo.LLMEmb.config import LLMEmbConfig


class LLMEmb(Enhancement):
    """Nothing but a check that the backbone was given vectors.

    Args:
        config: its `feature_specs` name a file of vectors for some column.
        anatomy: not used.

    Raises:
        UserError: they do not. `prepare` sees to it; scripts of FuxiCTR's do not call it.
    """

    controls = {"shuffled": {"field_vectors": "shuffled"}}
    reads_embeddings = False

    def __init__(self, config: LLMEmbConfig, anatomy: Anatomy):
        super().__init__(config, anatomy)
        if not config.given_files:
            raise UserError(
                "LLMEmb needs feature_specs that name files of vectors; "
                "'python -m fuxictr_llm encode --expid EXPID' makes and prints them"
            )

    @classmethod
    def prepare(cls, config: LLMEmbConfig, experiment: Any) -> dict[str, Any]:
        """`feature_specs` that ask for vectors of the chosen columns; the files are made where the specs are read."""
        if config.given_files and config.value_fields is None:
            return {}
        names = config.value_fields or columns_of_words(experiment)
        columns = experiment.feature_map.features
        for name in names:
            if name not in columns:
                raise unknown("column", name, columns, "'value_fields'")
        logging.info("LLMEmb: vectors for the values of %s", ", ".join(names))
        return {"feature_specs": [{"name": names, "pretrained_emb": LLM}, *(config.feature_specs or [])]}


def columns_of_words(experiment: Any) -> list[str]:
    """The columns most of whose train values are words.

    Raises:
        UserError: there is none.
    """
    from fuxictr_llm.llm.catalog import load_catalog
    from fuxictr_llm.llm.texts.vocabulary import vocabulary_of
    from fuxictr_llm.llm.vectors.values import can_be_read

    catalog = load_catalog(experiment.feature_map, experiment.data_dir, experiment.params.get("field_config"))
    names = catalog.names_of_words
    too_long = [name for name in names if not can_be_read(vocabulary_of(experiment, name)[0])]
    if too_long:
        logging.warning("LLMEmb leaves out %s: FuxiCTR cannot read keys of that length", ", ".join(too_long))
        names = [name for name in names if name not in too_long]
    if not names:
        raise UserError(
            f"no column of data set {experiment.params['dataset_id']!r} has values that are words; name columns with "
            "value_fields, or give their values words in the field config"
        )
    return names
