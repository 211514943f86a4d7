"""The key of a network that is trained on the way to a run's own has all that changes it."""

from dataclasses import replace

import pytest

from fuxictr_llm.common.files import digest_of
from fuxictr_llm.config.resolve import NOT_IN_IDENTITY, load_experiment
from fuxictr_llm.experiment.preparation import prepare_data
from fuxictr_llm.training import networks as network_store
from fuxictr_llm.training.networks import AFTER_TRAINING, PLACES, find_or_train


@pytest.fixture
def network(configs, monkeypatch):
    """The key of a network, of a run that may be changed, and of what else it is made from."""
    run = prepare_data(load_experiment("FM_ELEC_shop", configs), "unused")
    found = []

    def note(kind, identity, *_, **__):
        found.append(digest_of(identity))
        raise LookupError

    monkeypatch.setattr(network_store.store, "find_or_make", note)

    def key(name="gain", leave_out=(), params=None, feature_map=None, **made_from):
        changed = replace(run, params={**run.params, **(params or {})}, feature_map=feature_map or run.feature_map)
        with pytest.raises(LookupError):
            find_or_train(changed, name, None, made_from, leave_out=leave_out)
        return found[-1]

    return key, run


def test_networks(network):
    key, run = network
    # Names of classes, and where files are: their content is in the key.
    without = {*NOT_IN_IDENTITY, *PLACES, "method", "model", "dataset_id"}
    before = key()
    for name in run.params.keys() - without:
        assert key(params={name: f"other {run.params[name]}"}) != before, name
    for name, value in {"optimizer_impl": "fuxictr", "embedding_update": "rows", "precision": "bf16"}.items():
        assert key(params={name: value}) != before, name
    assert key(params={"checkpoint_minutes": 1, **dict.fromkeys(AFTER_TRAINING, "other")}) == before
    assert key(leave_out=["epochs"], params={"epochs": 1}) == key(leave_out=["epochs"]) != before
    others = [{}, {"name": "plain"}, {"params": {"gpu": 0}}, {"params": {"model": "LR"}}, {"params": {"method": None}}]
    others += [{"vectors": "a"}, {"vectors": "b"}]
    assert len({key(**other) for other in others}) == len(others)
    with pytest.raises(ValueError, match="have the key 'params'"):
        find_or_train(run, "gain", None, {"params": {}})


def test_networks_of_other_labels_columns_and_given_vectors(network, tmp_path):
    key, run = network
    before, keys = key(), []
    run.feature_map.labels = ["like"]
    keys.append(key())
    run.feature_map.features["city"]["pretrained_emb"] = str(tmp_path / "city.npz")
    for content in "ab":
        (tmp_path / "city.npz").write_text(content)
        keys.append(key())
    assert len({before, *keys}) == 4
