"""The keys of adapters tuned on clicks, of ELEC's text heads and of the vectors of rows (h) have all that changes them.

A setting that is not named here fails: say what it changes, or why it changes nothing.
"""

from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fuxictr_llm.common.files import digest_of
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.experiment.preparation import prepare_data
from fuxictr_llm.llm.vectors.store import find_or_write
from fuxictr_llm.model_zoo.ELEC import click_tuning, stages, vectors
from fuxictr_llm.model_zoo.ELEC.config import ClickTuningConfig, ELECConfig
from fuxictr_llm.training import networks as network_store
from fuxictr_llm.training.networks import Network, find_or_train
from support_keys import LANGUAGE_MODEL, LORA

CLICKS = {
    **LANGUAGE_MODEL,
    **LORA,
    "llm_max_text_tokens": 8,
    **{f"click_{name}": 3 for name in ("rows", "valid_rows", "epochs", "batch_size", "warmup_steps", "patience")},
    "click_learning_rate": 0.1,
    "click_seed": 1,
}


def drawn(texts=("a", "b"), places=((0,), (1,)), clicks=(0, 1)):
    return click_tuning.DrawnRows([list(texts)], np.array(places), np.array(clicks, np.float32))


def click_key(digest="x", train=None, valid=None, gpu=-1, **changes):
    config = ELECConfig(**{"language_model": "a", "llm_dtype": "float32", **changes})
    return digest_of(click_tuning._made_from(config, gpu, digest, train or drawn(), valid or drawn()))


OF_CLICKS = {field.name for field in fields(ClickTuningConfig)}


@pytest.mark.parametrize("name", [*CLICKS])
def test_click_adapters(name):
    assert {*CLICKS} >= OF_CLICKS and click_key(**{name: CLICKS[name]}) != click_key()


def test_click_adapters_that_other_threads_tuned():
    keys = set()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        keys |= {click_key(), click_key(gpu=0)}
    assert len(keys) == 3


def test_click_adapters_of_other_rows():
    rows = [drawn(texts=("a", "c")), drawn(places=((1,), (0,))), drawn(clicks=(1, 0))]
    others = [{}, {"digest": "y"}, {"gpu": 0}, *({split: of} for split in ("train", "valid") for of in rows)]
    assert len({click_key(**other) for other in others}) == len(others)


@pytest.fixture
def elec(configs, llm, tmp_path, monkeypatch):
    """The keys of the heads and of the store of h that a run with some settings asks for; nothing is trained."""
    words = tmp_path / "words.yaml"
    entities = "entities: {user: {id: user, text: [city]}, item: {id: color, text: [color, tags]}}\n"
    words.write_text(words.read_text(encoding="utf-8") + entities, encoding="utf-8")
    seen = {"heads": [], "h": None}

    class Made(Exception):
        pass

    def key_of_head(kind, identity, *_, **__):
        seen["heads"].append(digest_of(identity))
        raise Made

    def head(*args, **options):
        with pytest.raises(Made):
            find_or_train(*args, **options)
        return Network(SimpleNamespace(h=None), {}, seen["heads"][-1])

    def rows(kind, made_from, *others):
        if kind == vectors.PLACEBOS:
            return find_or_write(kind, made_from, *others)
        seen["h"] = digest_of(made_from)
        return SimpleNamespace(sha256="h", dim=4, gather=None)

    monkeypatch.setattr(network_store.store, "find_or_make", key_of_head)
    monkeypatch.setattr(stages, "find_or_train", head)
    monkeypatch.setattr(vectors, "find_or_write", rows)

    def keys(expid="FM_ELEC_shop", **changes):
        experiment = load_experiment(expid, configs, overrides={**llm, **OF_HEADS, **changes})
        run = prepare_data(experiment, "unused")
        names = ELECConfig.__dataclass_fields__.keys()
        config = ELECConfig(**{key: value for key, value in experiment.params.items() if key in names})
        seen["heads"].clear()
        stages.adapt(config, run)
        return tuple(seen["heads"]), seen["h"]

    return keys


OF_TEXTS = {"llm_pooling": "last", "llm_max_text_tokens": 2, "llm_dtype": "bfloat16", "text_units": "row"}
OF_TEXTS |= {"text_fields": ["city", "tags"]}
OF_TRAINING = {"learning_rate": 0.1, "epochs": 3, "batch_size": 64, "seed": 1, "optimizer": "SGD", "monitor": "logloss"}
OF_TRAINING |= {"weight_decay": 0.1, "shuffle": False, "early_stop_patience": 3}
OF_HEAD = {"h_hidden": 7, "h_dim": 5, "h_dropout": 0.5}
OF_ROWS = {"h_crossfit": 2, "inject_vector": "joint"}
OF_GAIN = {"inject": "logit", "h_decay": 0.5, "gain_backbone": "fresh", "s_dim": 5}
OF_GAIN |= {"embedding_dim": 8, "regularizer": 0.1, "alpha": 0.5, "teacher": "shuffled"}
OF_HEADS = {"inject_vector": "h", "h_crossfit": 0}


def test_text_heads_and_vectors_of_rows(elec):
    heads, h = elec()
    for name, value in {**OF_TEXTS, **OF_TRAINING, **OF_HEAD}.items():
        other_heads, other_h = elec(**{name: value})
        assert heads != other_heads and h != other_h, name
    for name, value in OF_ROWS.items():
        changes = {"h_crossfit": None} if name == "inject_vector" else {}
        other_heads, other_h = elec(**changes, **{name: value})
        assert other_heads[0] == heads[0] and h != other_h, name
        assert len({*other_heads}) == (3 if name == "h_crossfit" else 1)
    for kind in ("noise", "shuffled"):
        assert len({h, elec(h=kind)[1], elec(h=kind, control_seed=1)[1]}) == 3
        assert len({heads, elec(h=kind)[0], elec(h=kind, control_seed=1)[0]}) == 3
    for name, value in OF_GAIN.items():  # many backbones share a head
        assert elec(**{name: value}) == (heads, h), name
    assert elec("DeepFM_ELEC_shop") == (heads, h)


OF_S = {"inject_vector": "joint", "h_crossfit": None}


def test_vectors_of_rows_without_a_head(elec):
    h = elec(**OF_S)[1]
    assert elec(**OF_S, s_dim=5)[1] != h and elec(**{**OF_S, "inject_vector": "s"})[1] == h
    for name, value in {**OF_TRAINING, **OF_HEAD}.items():
        assert elec(**OF_S, **{name: value})[1] == h, name


def test_vectors_of_histories(elec):
    asked = {"of": "color", "liked": "click"}
    histories = [None, asked, {**asked, "rows": "past"}, {**asked, "user": "city"}]
    keys = [elec(**OF_S, text_history=one)[1] for one in histories]
    assert (
        len({*keys, elec(**OF_S, text_history=asked, s_dim=5)[1], elec(**OF_S, text_history=asked, h="noise")[1]}) == 6
    )


def test_gain_networks(configs, monkeypatch):
    run = prepare_data(load_experiment("DeepFM_ELEC_shop", configs), "unused")
    made = {"vectors": "v", "plain": "p"}
    monkeypatch.setattr(stages, "adapt", lambda *_: (SimpleNamespace(width=4), {"vectors": made["vectors"]}))
    monkeypatch.setattr(stages, "plain_network", lambda run: SimpleNamespace(sha256=made["plain"]))

    def key(**changes):
        return digest_of(stages._teacher_to_train(ELECConfig(**changes), run)[2])

    before = key()
    changes = {"inject": "logit", "inject_vector": "s", "h_decay": 0.5, "gain_backbone": "fresh", **OF_HEAD}
    for name, value in changes.items():
        assert key(**{name: value}) != before, name
    assert key(gain_backbone="fixed") == key(alpha=0.1, tau=3.0) == before != key(gain_backbone="tuned")
    for name in made:
        made[name] = "other"
        assert key() != before, name
        made |= {"vectors": "v", "plain": "p"}


def test_a_setting_that_a_method_and_a_backbone_both_take_counts_for_the_gain_network(configs, monkeypatch, llm):
    from fuxictr_llm.registry import find_backbone

    told = []

    def train(*_, leave_out, **__):
        told.append({*leave_out})
        raise LookupError

    monkeypatch.setattr(stages, "find_or_train", train)
    run = prepare_data(load_experiment("FM_ELEC_shop", configs), "unused")
    cls = find_backbone("FM")

    class Own(cls):
        def __init__(self, feature_map, tau=1.0, **kwargs):
            super().__init__(feature_map, **kwargs)

    for backbone in (cls, Own):
        monkeypatch.setattr(stages.registry, "find_backbone", lambda name, found=backbone: found)
        with pytest.raises(LookupError):
            stages.prepare_teacher(ELECConfig(teacher="self"), run)
    assert told[0] - told[1] == {"tau"}
