"""The key of everything that is kept: a setting that changes the content changes the key, and every setting is looked at.

A setting that is not named here fails: say what it changes, or why it changes nothing.
"""

from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fuxictr_llm.common import cache as store
from fuxictr_llm.common.files import digest_of, digest_of_file, merged
from fuxictr_llm.config.keys import DatasetKeys
from fuxictr_llm.config.language_models import RowTextsConfig, ValueVectorsConfig
from fuxictr_llm.config.resolve import NOT_IN_IDENTITY, load_experiment
from fuxictr_llm.data import build
from fuxictr_llm.experiment.run import prepare_data
from fuxictr_llm.llm.model_files import DIGESTED_SUFFIXES, digest_of_model
from fuxictr_llm.llm.vectors import encoder as text_vectors
from fuxictr_llm.llm.vectors import values as value_vectors
from fuxictr_llm.llm.vectors.store import find_or_write
from fuxictr_llm.model_zoo.ELEC import click_tuning, stages, vectors
from fuxictr_llm.model_zoo.ELEC.config import ClickTuningConfig, ELECConfig
from fuxictr_llm.model_zoo.LLaCTR import field_vectors
from fuxictr_llm.model_zoo.LLaCTR.config import FieldVectorsConfig
from fuxictr_llm.model_zoo.LLaCTR.prompts import Prompt, common_prefix, sample_prompts
from fuxictr_llm.training import networks as network_store
from fuxictr_llm.training.networks import PLACES, Network, find_or_train
from support import CATALOG

LANGUAGE_MODEL = {"language_model": "b", "llm_dtype": "bfloat16", "llm_pooling": "last"}
LORA = {"lora_rank": 4, "lora_alpha": 8, "lora_dropout": 0.5, "lora_targets": ["q_proj"]}


def settings_of(config_cls, changed, of_others):
    """Each setting of a config, where all of them are looked at."""
    assert {field.name for field in fields(config_cls)} == changed.keys() | {*of_others}
    return pytest.mark.parametrize(("name", "value"), changed.items(), ids=list(changed))


def test_two_parts_that_share_a_key_are_refused():
    assert merged({"a": 1}, {}, {"b": 2}) == {"a": 1, "b": 2}
    with pytest.raises(ValueError, match="two parts of a digest have the key 'units'"):
        merged({"units": "digests", "a": 1}, {"units": 2})


# ---- field vectors, and the checkpoints of SSFT, which have the same key

FIELD_VECTORS = {
    **LANGUAGE_MODEL,
    **LORA,
    "llm_max_value_tokens": 8,
    "llm_centre": True,
    "ssft_values_per_field": 7,
    "ssft_epochs": 9,
    "ssft_batch_size": 2,
    "ssft_learning_rate": 0.1,
    "ssft_warmup_steps": 1,
    "ssft_tau": 0.5,
    "ssft_contrastive": 0.5,
    "ssft_generative": 0.5,
    "ssft_held_out": 0.5,
    "ssft_patience": 1,
    "ssft_seed": 1,
}


def field_key(config, digest="x", catalog=CATALOG, prompts=None, on_gpu=False):
    config = config.filled()
    drawn = sample_prompts(catalog, config.ssft_values_per_field, config.ssft_held_out, config.ssft_seed)
    return digest_of(field_vectors._made_from(config, digest, catalog, prompts or drawn, on_gpu))


# `ssft_preset` fills others in; the seed of placebos and their source are looked at below.
@settings_of(FieldVectorsConfig, FIELD_VECTORS, {"ssft_preset", "control_seed", "field_vectors"})
def test_field_vectors(name, value):
    config = FieldVectorsConfig(language_model="a", llm_dtype="float32")
    assert field_key(replace(config, **{name: value})) != field_key(config) == field_key(replace(config))


def test_field_vectors_of_other_words_values_or_models():
    config = FieldVectorsConfig(language_model="a", llm_dtype="float32")
    color, city = CATALOG.fields
    others = [
        {"digest": "y"},
        {"on_gpu": True},
        {"prompts": ([Prompt("red", 0)], [])},
        {"catalog": replace(CATALOG, about="other clicks")},
        {"catalog": replace(CATALOG, fields=(replace(color, text="hue"), city))},
        {"catalog": replace(CATALOG, fields=(city, color))},
    ]
    keys = {field_key(config, **other) for other in [{}, *others]}
    assert len(keys) == 1 + len(others) and common_prefix(CATALOG)
    assert field_key(replace(config, ssft_epochs=0)) not in keys


def test_placebos_of_field_vectors(monkeypatch):
    keys = []
    monkeypatch.setattr(store, "find_or_make", lambda kind, made_from, *_: keys.append(digest_of(made_from)))
    for source, of in [
        *(("random", {"of_sha256": sha, "seed": seed}) for sha in "ab" for seed in (0, 1)),
        ("shuffled", {"of_sha256": "a", "seed": 0}),
        *(("identity", {"fields": names}) for names in (["a", "b"], ["b", "a"])),
    ]:
        field_vectors._stored_control(source, of, CATALOG, lambda: None)
    assert len({*keys}) == len(keys) == 7


# ---- vectors of texts


def text_key(folder, monkeypatch, texts=("a", "b"), head="", adapter=None, gpu=-1, **changes):
    settings = {"language_model": str(folder), "llm_dtype": "float32", **changes}
    keys = []
    answer = SimpleNamespace(seconds=None, cut=0)
    monkeypatch.setattr(text_vectors, "find_or_write", lambda kind, made, *_, **__: keys.append(made) or answer)
    text_vectors.TextEncoder(RowTextsConfig(**settings), gpu, adapter).store_of(texts, head)
    return digest_of(keys)


TEXTS = {"llm_dtype": "bfloat16", "llm_pooling": "last", "llm_max_text_tokens": 8}
# The texts themselves are in the key; who encodes them changes nothing; placebos have seeds of their own.
OF_OTHERS = {"language_model", "text_units", "text_fields", "value_texts", "encoder", "ray_workers", "text_vectors"}


@settings_of(RowTextsConfig, TEXTS, {*OF_OTHERS, "control_seed"})
def test_text_vectors(name, value, tiny_llm, monkeypatch):
    assert text_key(tiny_llm, monkeypatch, **{name: value}) != text_key(tiny_llm, monkeypatch)


def test_text_vectors_of_other_texts_models_and_adapters(tiny_llm, tmp_path, monkeypatch):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "weights").write_text("a")
    others = [{}, {"texts": ("b", "a")}, {"head": "color:"}, {"gpu": 0}, {"adapter": tmp_path / "adapter"}]
    keys = [text_key(tiny_llm, monkeypatch, **other) for other in others]
    (tmp_path / "adapter" / "weights").write_text("b")
    keys.append(text_key(tiny_llm, monkeypatch, **others[-1]))
    assert len({*keys}) == len(keys)


@pytest.mark.parametrize("suffix", DIGESTED_SUFFIXES)
def test_a_language_model_is_another_with_any_of_its_files_changed(suffix, tmp_path):
    (tmp_path / f"a{suffix}").write_text("a")
    before = digest_of_model(tmp_path)
    (tmp_path / f"a{suffix}").write_text("b")
    assert digest_of_model(tmp_path) != before


# ---- vectors of values

VALUES = {
    "llm_dtype": "bfloat16",
    "llm_pooling": "last",
    "field_vectors": "shuffled",
    "llm_max_value_tokens": 8,
    "value_text": "plain",
    "value_dim": 3,
    "value_scale": 0.5,
    "control_seed": 1,
}


@settings_of(ValueVectorsConfig, VALUES, {"language_model", "value_usage", "value_freeze"})  # how files are used
def test_value_vectors(name, value, tiny_llm, monkeypatch):
    keys = []
    monkeypatch.setattr(store, "find_or_make", lambda kind, made_from, *_: keys.append(digest_of(made_from)))
    base = ValueVectorsConfig(language_model=str(tiny_llm), llm_dtype="float32", field_vectors="random")

    def add(config, words=("red", "blue"), form="npz"):
        head = "color:" if config.value_text == "described" else ""
        column = value_vectors.ColumnValues(("r", "b"), words, head, 3)
        encoder = text_vectors.TextEncoder(config, -1)
        value_vectors._file(config, encoder, "color", column, config.value_dim, form)

    add(base)
    add(replace(base, **{name: value}))
    add(base, words=("red", "green"))
    add(base, form="h5")
    assert len({*keys}) == 4


# ---- adapters tuned on clicks, and their checkpoints

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


def test_click_adapters_of_other_rows():
    rows = [drawn(texts=("a", "c")), drawn(places=((1,), (0,))), drawn(clicks=(1, 0))]
    others = [{}, {"digest": "y"}, {"gpu": 0}, *({split: of} for split in ("train", "valid") for of in rows)]
    assert len({click_key(**other) for other in others}) == len(others)


# ---- ELEC's text heads, and the vectors of rows (h) that they give


@pytest.fixture
def elec(configs, llm, tmp_path, monkeypatch):
    """The keys of the heads and of the store of h that a run with some settings asks for; nothing is trained."""
    words = tmp_path / "words.yaml"
    entities = "entities: {user: {id: user, text: [city]}, item: {id: color, text: [color, tags]}}\n"
    words.write_text(words.read_text(encoding="utf-8") + entities, encoding="utf-8")
    seen = {"heads": [], "h": None}

    class Made(Exception):
        pass

    def key_of_head(kind, identity, *_):
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

    monkeypatch.setattr(network_store.store, "find_or_make_together", key_of_head)
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


# ---- networks that are trained on the way to a run's own


@pytest.fixture
def network(configs, monkeypatch):
    """The key of a network, of a run that may be changed, and of what else it is made from."""
    run = prepare_data(load_experiment("FM_ELEC_shop", configs), "unused")
    found = []

    def note(kind, identity, *_):
        found.append(digest_of(identity))
        raise LookupError

    monkeypatch.setattr(network_store.store, "find_or_make_together", note)

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
    assert key(params={"checkpoint_minutes": 1}) == before
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


# ---- built data sets

# Places, what is refused, how ids are used and who is asked: the raw files' digests are in the key apart.
NOT_BUILT = {"dataset_id", "data_root", "train_data", "valid_data", "test_data", "raw_data", "download", "md5"}
NOT_BUILT |= {"valid_size", "test_size", "split_type", "rebuild_dataset", "field_config", "user_info", "item_info"}
NOT_BUILT |= {"prepare", "prepare_split", "timestamp", "feature_processor"}


def test_built_data_sets():
    assert {*build.BUILD_KEYS} == DatasetKeys.__annotations__.keys() - NOT_BUILT
    params = {"feature_cols": []}
    before = digest_of(build._made_from(params, {}))
    for name in build.BUILD_KEYS:
        other = [{"name": "other"}] if name == "feature_cols" else "other"
        assert digest_of(build._made_from({**params, name: other}, {})) != before, name
    Path("train.csv").write_text("a")
    keys = [before, digest_of(build._made_from(params, {"train": [Path("train.csv")]}))]
    Path("train.csv").write_text("b")
    keys.append(digest_of(build._made_from(params, {"train": [Path("train.csv")]})))
    assert len({*keys}) == 3


PROCESSOR = """
from fuxictr.preprocess import FeatureProcessor

class Own(FeatureProcessor):
    def __init__(self, digits=2, **kwargs):
        super().__init__(**kwargs)
"""


def test_built_data_sets_of_ones_own_processor(monkeypatch):
    Path("own_digits.py").write_text(PROCESSOR)
    monkeypatch.syspath_prepend(".")
    params = {"feature_cols": [], "feature_processor": "own_digits:Own"}
    others = [{}, {"digits": 3}, {"feature_processor": "criteo"}]
    keys = [digest_of(build._made_from({**params, **other}, {})) for other in others]
    assert len({*keys}) == 3 and digest_of(build._made_from({**params, "verbose": 1}, {})) == keys[0]


# ---- remembered digests of large files


def test_remembered_digests(monkeypatch):
    monkeypatch.setattr("fuxictr_llm.common.files.REMEMBERED_ABOVE", 0)
    Path("a").write_text("a")
    keys = [digest_of_file("a"), digest_of_file("a", "md5")]
    Path("a").write_text("bb")
    assert len({*keys, digest_of_file("a"), digest_of_file("a", "md5")}) == 4
