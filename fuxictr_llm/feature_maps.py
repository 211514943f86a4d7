"""FuxiCTR's feature map as plain values, so that a model can be built where its data set is not."""

import contextlib
import json
import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from fuxictr.features import FeatureMap

from fuxictr_llm.evaluated import check_columns


def describe_feature_map(feature_map: FeatureMap) -> dict[str, Any]:
    """What a model's constructor reads of it; JSON takes it."""
    return {
        "dataset_id": feature_map.dataset_id,
        "embedding_dim": feature_map.default_emb_dim,
        "labels": list(feature_map.labels),
        "features": {name: dict(spec) for name, spec in feature_map.features.items()},
    }


def make_feature_map(described: Mapping[str, Any], where: str) -> FeatureMap:
    """The feature map that was described; `where` says in what, for errors.

    Raises:
        UserError: a column has an encoder that FuxiCTR must not evaluate.
    """
    check_columns(described["features"], where)
    feature_map = FeatureMap(described["dataset_id"], data_dir="")
    feature_map.features = OrderedDict((name, dict(spec)) for name, spec in described["features"].items())
    feature_map.labels = list(described["labels"])
    feature_map.default_emb_dim = described["embedding_dim"]
    feature_map.num_fields = feature_map.get_num_fields()
    feature_map.set_column_index()
    return feature_map


@contextlib.contextmanager
def without_pretrained_files(feature_map: FeatureMap) -> Iterator[None]:
    """For the block, models are built without the files of pretrained embeddings: their weights are loaded later.

    FuxiCTR's constructors read such a file and feature_vocab.json; here they find empty ones.
    """
    specs = {name: spec for name, spec in feature_map.features.items() if "pretrained_emb" in spec}
    if not specs:
        yield
        return
    before = {name: spec["pretrained_emb"] for name, spec in specs.items()}, feature_map.data_dir
    with tempfile.TemporaryDirectory() as folder:
        # FuxiCTR looks at the second key of the vocabulary, whichever it is.
        vocabulary = {"__first__": {}, "__second__": {}, **{name: {} for name in specs}}
        (Path(folder) / "feature_vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        for spec in specs.values():
            # Its width: FuxiCTR takes the embedding's where none is given.
            width = spec.get("pretrain_dim") or spec.get("embedding_dim") or feature_map.default_emb_dim
            spec["pretrained_emb"] = str(Path(folder) / f"{width}.npz")
            np.savez(spec["pretrained_emb"], key=np.array([], dtype=str), value=np.zeros((0, width)))
        feature_map.data_dir = folder
        try:
            yield
        finally:
            for name, spec in specs.items():
                spec["pretrained_emb"] = before[0][name]
            feature_map.data_dir = before[1]
