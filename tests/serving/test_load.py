"""Served models: batches of any kind, and bad folders and batches are one line."""

import json
import threading
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import digest_of_file
from fuxictr_llm.serving import load as serving
from fuxictr_llm.serving.load import load_model
from support import (
    batches,
)


def one_batch():
    return {name: column for name, column in batches("DNN", 1)[0].items() if name not in ("click", "group")}


def test_batches_of_any_size_and_kind(served, monkeypatch):
    batch = one_batch()
    expected = served.predict(batch)
    assert expected.shape == (8,) and expected.dtype == np.float32
    assert served.predict({name: column[:0] for name, column in batch.items()}).shape == (0,)
    assert np.allclose(served.predict({name: column[:1] for name, column in batch.items()}), expected[:1], atol=1e-6)
    assert np.array_equal(served.predict({name: column.numpy() for name, column in batch.items()}), expected)
    assert np.array_equal(served.predict({**batch, "other": ["words"] * 8}), expected)
    narrow = {name: column.to(torch.int16) if name in ("user", "item") else column for name, column in batch.items()}
    assert np.array_equal(served.predict(narrow), expected)
    users = batch["user"].numpy()
    read_only = users.copy()
    read_only.setflags(write=False)
    for same in (read_only, users[::-1].copy()[::-1], users.astype(np.uint32), users.astype(">i4"), pd.Series(users)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert np.array_equal(served.predict({**batch, "user": same}), expected)
    monkeypatch.setattr(serving, "SLICE_ROWS", 3)
    assert np.allclose(served.predict(batch), expected, atol=1e-6)
    assert not any(parameter.requires_grad for parameter in served.model.parameters())


def test_an_empty_batch_of_lists_is_empty(served):
    empty = {"user": [], "item": [], "price": [], "tags": np.zeros((0, 3)), "image": np.zeros((0, 6))}
    assert served.predict(empty).shape == (0,)


def test_threads_that_ask_at_once_get_their_own_rows(served):
    many = {name: column.repeat(200, *[1] * (column.dim() - 1)) for name, column in one_batch().items()}
    parts = [
        {name: column[start : start + 100 + start // 8] for name, column in many.items()}
        for start in range(0, 800, 100)
    ]
    expected = [served.predict(part) for part in parts]
    found = [[] for _ in parts]

    def ask(index):
        found[index] = [served.predict(parts[index]) for _ in range(20)]

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    for answers, wanted in zip(found, expected, strict=True):
        assert len(answers) == 20 and all(np.array_equal(answer, wanted) for answer in answers)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user": None}, "the batch lacks column 'user'"),
        ({"user": [0, 12] * 4}, "column 'user' holds id 12; the model knows the ids 0 to 11"),
        ({"user": [0, -1] * 4}, "column 'user' holds id -1; the model knows the ids 0 to 11"),
        ({"tags": torch.full((8, 3), 7)}, "column 'tags' holds id 7; the model knows the ids 0 to 6"),
        ({"tags": torch.zeros(8, 2, dtype=torch.long)}, r"column 'tags' has shape \[8, 2\]; it must be \[N, 3\]"),
        ({"image": torch.zeros(8)}, r"column 'image' has shape \[8\]; it must be \[N, 6\]"),
        ({"user": torch.zeros(8, 1, dtype=torch.long)}, r"column 'user' has shape \[8, 1\]; it must be \[N\]"),
        ({"user": torch.zeros(8)}, r"column 'user' must hold integer ids \(got float32\)"),
        ({"user": ["Rome"] * 8}, "column 'user' holds 'Rome', which is no number"),
        ({"user": [[1], [2, 3]]}, "column 'user' is no array"),
        ({"user": [True] * 8}, r"column 'user' must hold integer ids \(got bool\)"),
        ({"user": np.full(8, 2**64 - 1, dtype=np.uint64)}, "column 'user' holds id -1"),
        ({"user": 3}, r"column 'user' has shape \[\]; it must be \[N\]"),
        ({"item": torch.zeros(7, dtype=torch.long)}, "column 'item' has 7 rows, 'user' has 8"),
        ({"price": torch.tensor([0.0, float("nan")] * 4)}, "column 'price' holds a value that is not finite: nan"),
        ({"price": [None] * 8}, "column 'price' holds None, which is no number"),
    ],
)  # fmt: skip
def test_bad_columns_are_named_with_their_value(served, changes, message):
    batch = {**one_batch(), **changes}
    batch = {name: column for name, column in batch.items() if column is not None}
    with pytest.raises(UserError, match=message) as raised:
        served.predict(batch)
    assert "\n" not in str(raised.value)


def changed(**changes):
    path = Path("served/config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def without(key):
    path = Path("served/config.json")
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != key}))


def rewritten(tensors):
    save_file(tensors, "served/model.safetensors")
    changed(weights_sha256=digest_of_file("served/model.safetensors"))


def with_feature(**changes):
    feature_map = json.loads(Path("served/config.json").read_text())["feature_map"]
    feature_map["features"]["tags"] |= changes
    changed(feature_map=feature_map)


def test_what_a_killed_export_was_about_to_replace_is_put_back(served):
    """Killed between its two renames, it leaves no folder at the place."""
    left = Path(".served.abcdefgh.tmp")
    (left / ".replaced").mkdir(parents=True)
    (left / "owner.lock").touch()
    Path("served").rename(left / ".replaced" / "served")
    assert np.array_equal(load_model("served").predict(one_batch()), served.predict(one_batch()))
    assert not left.exists()


def garbage(weights=b"garbage"):
    Path("served/model.safetensors").write_bytes(weights)
    changed(weights_sha256=digest_of_file("served/model.safetensors"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda: Path("served").rename("gone"), "'served' is no exported model: it has no config.json; write it anew"),
        (lambda: Path("served/config.json").unlink(), "'served' is no exported model: it has no config.json"),
        (lambda: Path("served/config.json").write_text("{half"), "config.json' is damaged"),
        (lambda: Path("served/config.json").write_text("[1]"), "config.json' is damaged"),
        (lambda: changed(format=2), "has format 2, this version reads format 1"),
        (lambda: without("feature_map"), "lacks 'feature_map'"),
        (lambda: changed(feature_map={}), "lacks 'feature_map.dataset_id'; write it anew"),
        (lambda: changed(feature_map=[]), r"has 'feature_map': \[\]; input should be a valid dictionary"),
        (lambda: changed(params={"hidden_units": [3]}), "'served' does not give a DNN"),
        (lambda: changed(params=3), "has 'params': 3; input should be a valid dictionary"),
        (lambda: changed(model="DNNX"), "unknown backbone 'DNNX' in 'served/config.json'; did you mean 'DNN'"),
        (lambda: changed(model="os:system"), "holds a model 'os:system', which an export does not bring; load it before"),
        (lambda: changed(model=7), "has 'model': 7; input should be a valid string"),
        (lambda: changed(folded={"class": "Maths", "fields": []}), "unknown kind of folded method 'Maths'"),
        (lambda: changed(folded={"class": "PairWeights", "fields": ["user"]}), "'served' does not give a DNN"),
        (lambda: with_feature(feature_encoder="__import__('os').system('touch owned')"), "column 'tags': feature_encoder .*; allowed are only null, a layer whose"),
        (lambda: with_feature(feature_encoder="layers.MaskedAveragePooling(open('owned', 'w'))"), "column 'tags': feature_encoder .*; allowed are only null, a layer whose"),
        (lambda: with_feature(feature_encoder="layers.get_initializer(\"open('owned', 'w')\")"), "column 'tags': feature_encoder .*; allowed are only null, a layer whose"),
        (lambda: with_feature(feature_encoder="layers.Absent()"), "column 'tags': feature_encoder .*; allowed are only null, a layer whose"),
        (lambda: with_feature(feature_encoder=7), r"has 'feature_map.features.tags.feature_encoder.*': 7; input should"),
        (lambda: Path("served/model.safetensors").unlink(), "model.safetensors' is missing"),
        (lambda: Path("served/model.safetensors").write_bytes(b"x"), r"not the file that was exported \(its sha256 differs\)"),
        (garbage, "'served' does not give a DNN"),
        (lambda: rewritten({"a": torch.zeros(1)}), "'served' does not give a DNN"),
    ],
)  # fmt: skip
def test_damaged_folders_are_one_line(served, damage, message):
    damage()
    with pytest.raises(UserError, match=message) as raised:
        load_model("served")
    assert "\n" not in str(raised.value) and not Path("owned").exists()


def test_a_gpu_that_is_not_there_is_named(served):
    with pytest.raises(UserError, match="--gpu 99: this machine has"):
        load_model("served", gpu=99)


def test_settings_that_fuxictr_would_evaluate_do_not_reach_it(served):
    config = json.loads(Path("served/config.json").read_text())
    evil = "open('owned', 'w')"
    changed(
        params={**config["params"], "loss": evil, "optimizer": "x", "embedding_initializer": evil, "metrics": [evil]}
    )
    assert np.array_equal(load_model("served").predict(one_batch()), served.predict(one_batch()))
    assert not Path("owned").exists()
