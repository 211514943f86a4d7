"""LLMEmb on any backbone: `pretrained_emb: llm` for the columns whose values are words.

The plainest use of a language model in a CTR model, and the baseline of the others: no term, no tap, no parameter of
its own. What it does, the backbone's own embedding layer does.
"""

import copy
import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers.embeddings.pretrained_embedding import PretrainedEmbedding

from fuxictr_llm.common.errors import UserError, unknown
from fuxictr_llm.common.runs import Run
from fuxictr_llm.config.language_models import LLM
from fuxictr_llm.enhancement.anatomy import Anatomy
from fuxictr_llm.enhancement.base import Enhancement, NotTried, Trial
from fuxictr_llm.enhancement.model import enhance
from fuxictr_llm.host.tables import check_tables
from fuxictr_llm.training.build import build

from .config import LLMEmbConfig

# Of a self-check: the width of its random vectors, and how many values get one.
TRIAL_WIDTH, MOST_VALUES = 8, 1000


class LLMEmb(Enhancement):
    """Nothing but a check that the backbone was given vectors.

    Args:
        config: its `feature_specs` name a file of vectors for some column.
        anatomy: not used.

    Raises:
        UserError: they do not. `prepare` sees to it; scripts of FuxiCTR's do not call it.
    """

    colour = "#0072B2"
    controls = {
        "shuffled": {"field_vectors": "shuffled"},
        # Of cold_values: words. They count only where that is set.
        "cold_mean": {"cold_values": "mean"},
        "cold_shuffled": {"cold_values": "shuffled"},
    }
    reads_embeddings = False

    def __init__(self, config: LLMEmbConfig, anatomy: Anatomy):
        super().__init__(config, anatomy)
        if not config.given_files:
            raise UserError(
                "LLMEmb needs feature_specs that name files of vectors; "
                "'python -m fuxictr_llm encode --expid EXPID' makes and prints them"
            )

    @classmethod
    def prepare(cls, config: LLMEmbConfig, run: Run) -> dict[str, Any]:
        """`feature_specs` that ask for vectors of the chosen columns; the files are made where the specs are read."""
        if config.given_files and config.value_fields is None:
            return {}
        names = config.value_fields or columns_of_words(run)
        columns = run.feature_map.features
        for name in names:
            if name not in columns:
                raise unknown("column", name, columns, "'value_fields'")
        logging.info("LLMEmb: vectors for the values of %s", ", ".join(names))
        return {"feature_specs": [{"name": names, "pretrained_emb": LLM}, *(config.feature_specs or [])]}

    @classmethod
    def self_check(cls, trial: Trial) -> Sequence[str]:
        """The embeddings of a column start from random vectors of its values, are trained, and get more rows."""
        column = _column_to_try(trial.feature_map)
        with tempfile.TemporaryDirectory() as folder:
            feature_map = with_random_vectors(trial.feature_map, column, Path(folder))
            specs = [{"name": column, "pretrained_emb": feature_map.features[column]["pretrained_emb"]}]
            settings = {**trial.settings, "seed": 1, "feature_specs": specs}
            model = build(enhance(trial.cls, cls), feature_map, settings)
        tables = [module.pretrain_embedding for module in model.modules() if isinstance(module, PretrainedEmbedding)]
        if not tables:
            raise UserError(f"{trial.cls.__name__} reads no vectors of values")
        before = [table.weight.detach().clone() for table in tables]
        trial.trained(model)
        if any(torch.equal(table.weight, weight) for table, weight in zip(tables, before, strict=True)):
            raise UserError(f"{trial.cls.__name__} does not train the vectors that it was given")
        try:
            check_tables(model, {column: [column]}, {column: 1})
        except UserError:
            return ["embeddings of unseen values (cold_values)"]
        return []


def _column_to_try(feature_map: FeatureMap) -> str:
    """A column of ids, if possible one that shares its embedding with no other.

    Raises:
        NotTried: there is no such column.
    """
    features = feature_map.features
    names = [name for name, spec in features.items() if spec["type"] == "categorical" and spec["vocab_size"] > 2]
    names = [name for name in names if "share_embedding" not in features[name]]
    if not names:
        raise NotTried("the data set has no categorical column")
    shared = {spec.get("share_embedding") for spec in features.values()}
    return next((name for name in names if name not in shared), names[0])


def with_random_vectors(feature_map: FeatureMap, column: str, folder: Path) -> FeatureMap:
    """A copy of the feature map that names random vectors for values of one column, and no others.

    Args:
        folder: where they are written, with the vocabulary that FuxiCTR reads beside them.
    """
    feature_map = copy.deepcopy(feature_map)
    for spec in feature_map.features.values():
        spec.pop("pretrained_emb", None)
    spec, width = feature_map.features[column], TRIAL_WIDTH
    values = {f"value {index}": index for index in range(1, min(spec["vocab_size"] - 1, MOST_VALUES))}
    # FuxiCTR looks at the second column of a vocabulary.
    (folder / "feature_vocab.json").write_text(json.dumps({column: values, "other": {"": 1}}), encoding="utf-8")
    vectors = np.random.default_rng(0).normal(size=(len(values), width))
    np.savez(folder / "vectors.npz", key=np.array(list(values)), value=vectors)
    spec |= {"pretrained_emb": str(folder / "vectors.npz"), "pretrain_dim": width, "pretrain_usage": "init"}
    spec |= {"freeze_emb": False, "oov_idx": spec["vocab_size"] - 1}
    feature_map.data_dir = str(folder)
    return feature_map


def columns_of_words(run: Run) -> list[str]:
    """The columns most of whose train values are words.

    Raises:
        UserError: there is none.
    """
    from fuxictr_llm.llm.catalog import load_catalog
    from fuxictr_llm.llm.texts.sentences import vocabulary_of
    from fuxictr_llm.llm.vectors.values import can_be_read

    catalog = load_catalog(run.feature_map, run.data_dir, run.params.get("field_config"))
    names = catalog.names_of_words
    too_long = [name for name in names if not can_be_read(vocabulary_of(run, name)[0])]
    if too_long:
        logging.warning("LLMEmb leaves out %s: FuxiCTR cannot read keys of that length", ", ".join(too_long))
        names = [name for name in names if name not in too_long]
    if not names:
        raise UserError(
            f"no column of data set {run.params['dataset_id']!r} has values that are words; name columns with "
            "value_fields, or give their values words in the field config"
        )
    return names
