"""Fixtures: a cache folder of the test's own, tiny csv data, and a tiny random language model."""

import functools
import gc
import logging
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # pytest-xdist has a process for each core

WORDS = ["red", "green", "blue", "black", "white", "grey"]
CITIES = ["Rome", "Oslo", "Bern", "Cairo", "Lima", "Malmö"]


def pytest_addoption(parser):
    # As `--zoo=DIR`: of `--zoo DIR`, pytest takes DIR for the tests to run before it has read this file.
    parser.addoption("--zoo", metavar="DIR", help="run the test matrix, over the models of this FuxiCTR checkout")


def pytest_configure(config):
    from fuxictr_llm.common.errors import UserError
    from fuxictr_llm.host.checkout import VARIABLE, use_checkout

    os.environ.pop(VARIABLE, None)
    try:
        use_checkout(config.getoption("--zoo"))
    except UserError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.xdist_group("ray"))  # Ray starts once, in one of pytest-xdist's processes
    if config.getoption("--zoo"):
        items[:] = [item for item in items if item.get_closest_marker("zoo")]
    if getattr(config.option, "loadgroup", False):  # in one of pytest-xdist's processes
        for item in items:
            if group := item.get_closest_marker("xdist_group"):
                _add_group(item, group.args[0])


def _add_group(item, name):
    """Put the group at the end of a test's id, where pytest-xdist looks for it.

    pytest-xdist 3.8 writes it into an attribute that pytest 9.2 does not read: every process would start Ray, torchrun
    and the fake GPU (https://github.com/pytest-dev/pytest-xdist/issues/1386).
    """
    if hasattr(item, "_id") and not item.nodeid.endswith(f"@{name}"):
        item._id = type(item._id).parse(f"{item.nodeid}@{name}")


def pytest_runtest_logfinish():
    """Keep the collector away from libraries: accelerate collects garbage at each end of a training, 0.4 s a time."""
    if len(sys.modules) > _modules_at_freeze[0] + 100:
        _modules_at_freeze[0] = len(sys.modules)
        gc.collect()
        gc.freeze()


_modules_at_freeze = [0]


@pytest.fixture(scope="session", autouse=True)
def _one_fork_server():
    """The server of worker processes starts once; it has what any test needs, whoever starts it.

    Its modules are named before anybody does: one that starts it by other ways, as `ProcessPoolExecutor`, names none,
    and each process that is forked of it afterwards would import torch and all the rest anew.
    """
    from multiprocessing import forkserver

    from fuxictr_llm.leaderboard.run import PRELOADED_FOR_RUNS

    set_preload = forkserver.set_forkserver_preload
    forkserver.set_forkserver_preload = lambda modules: set_preload(
        [*PRELOADED_FOR_RUNS, "fuxictr_llm.diagnosis.doctor"]
    )
    forkserver.set_forkserver_preload([])
    yield
    forkserver.set_forkserver_preload = set_preload


@pytest.fixture(scope="session")
def _one_ray():
    """Ray starts once for all tests that are marked `ray`, without its dashboard.

    By itself Ray has its workers step back (nice 15) behind all else, which here is the tests of other processes.
    """
    import ray

    settings = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    ray.init(num_cpus=2, _system_config={"worker_niceness": 0}, **settings)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


@pytest.fixture
def registry_as_before():
    """Methods that a test registers are gone afterwards."""
    from fuxictr_llm import registry

    before = {*registry.method_names()}
    yield
    for name in {*registry.method_names()} - before:
        registry._methods.pop(name)


@pytest.fixture(autouse=True)
def _own_place(tmp_path, monkeypatch, request):
    """Every test runs in a folder of its own; only tests of the real model share the user's cache."""
    if request.node.get_closest_marker("ray"):
        request.getfixturevalue("_one_ray")
    monkeypatch.chdir(tmp_path)
    # A test that sets it, or a command of it, sets it for itself alone.
    monkeypatch.setenv("FUXICTR_ZOO", request.config.getoption("--zoo") or "")
    if not request.node.get_closest_marker("llm"):  # the keywords have the folder `llm` as well
        monkeypatch.setenv("FUXICTR_LLM_CACHE", str(tmp_path / "cache"))
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    threads = torch.get_num_threads()
    yield
    root.handlers, root.level = handlers, level
    torch.set_num_threads(threads)


@pytest.fixture
def shown_at_once(monkeypatch):
    """Progress is shown at every update, however short a stage is."""
    monkeypatch.setattr("fuxictr_llm.common.progress.DELAY", 0.0)
    monkeypatch.setattr("fuxictr_llm.common.progress.INTERVALS", (0.0, 0.0))


def small_table(rows: int, seed: int) -> pd.DataFrame:
    """Clicks that depend on two of the columns, so that there is something to learn."""
    draw = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "color": draw.choice(WORDS, rows),
            "city": draw.choice(CITIES, rows),
            "user": draw.integers(0, 30, rows).astype(str),
            "tags": ["^".join(draw.choice(["new", "old", "hot"], size=draw.integers(1, 4))) for _ in range(rows)],
        }
    )
    chance = 0.2 + 0.5 * (table["color"].isin(WORDS[:3]) ^ table["city"].isin(CITIES[:3]))
    table["click"] = (draw.random(rows) < chance).astype(int)
    return table


@functools.cache
def _small_csv(rows: int, seed: int) -> str:
    return small_table(rows, seed).to_csv(index=False)


@pytest.fixture
def configs(tmp_path) -> Path:
    """A config directory of ours with a small csv data set `shop` (1,200 rows), beside its files."""
    return write_configs(tmp_path)


def write_configs(tmp_path: Path) -> Path:
    """The folder of `configs`, in this one."""
    raw = tmp_path / "raw"
    raw.mkdir()
    for seed, (split, rows) in enumerate({"train": 900, "valid": 150, "test": 150}.items()):
        (raw / f"{split}.csv").write_text(_small_csv(rows, seed), encoding="utf-8")
    folder = tmp_path / "my_configs"
    (folder / "method_config").mkdir(parents=True)
    (folder / "dataset_config.yaml").write_text(
        f"""
shop:
    data_root: {tmp_path}/data
    data_format: csv
    train_data: {raw}/train.csv
    valid_data: {raw}/valid.csv
    test_data: {raw}/test.csv
    field_config: {tmp_path}/words.yaml
    min_categr_count: 1
    feature_cols:
    - {{name: [color, city, user], active: true, dtype: str, type: categorical}}
    - {{name: tags, active: true, dtype: str, type: sequence, splitter: ^, max_len: 3}}
    label_col: {{name: click, dtype: float}}
""",
        encoding="utf-8",
    )
    (tmp_path / "words.yaml").write_text(
        "about: clicks in a shop\nfields: {color: color of the shirt, city: city of the shop, user: id of the user, "
        "tags: tag of the shirt}\nvalues: {tags: {hot: on sale}}\n",
        encoding="utf-8",
    )
    (folder / "model_config.yaml").write_text(
        """
Base:
    model_root: ./checkpoints/
    seed: 7
    num_threads: 1
    verbose: 0
    pictures: false
    batch_size: 128
    epochs: 2
    embedding_dim: 4
    learning_rate: 0.01
DeepFM: {hidden_units: [8], net_dropout: 0.1, batch_norm: true, embedding_regularizer: 1e-5, net_regularizer: 1e-5}
""",
        encoding="utf-8",
    )
    return folder


METHOD_FILE = """
from pydantic.dataclasses import dataclass

from fuxictr_llm.common.checks import STRICT
from fuxictr_llm.enhancement.base import Enhancement
from fuxictr_llm.registry import register_method


@dataclass(config=STRICT, kw_only=True)
class MineConfig:
    kind: str = "real"


class MineModel(Enhancement):
    controls = {"fake": {"kind": "fake"}}


register_method(name="Mine", config_cls=MineConfig, model_cls=MineModel)
"""


@pytest.fixture
def method_file(tmp_path):
    """Name of a file in the test's folder with a method that does nothing and has a placebo `fake`; gone afterwards."""
    from fuxictr_llm import registry

    (tmp_path / "mine.py").write_text(METHOD_FILE)
    yield "mine.py:MineModel"
    registry._methods.pop("Mine", None)


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory) -> Path:
    """A folder with a random Llama (2 layers, width 16) and a tokenizer trained on a few words, with a BOS token."""
    return _save_tiny_llama(tmp_path_factory.mktemp("tiny_llama"))


def _save_tiny_llama(folder: Path) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([" ".join(WORDS + CITIES), "Data: clicks. Fields: color; city; tag. Value:"], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_settings(tiny_llm) -> dict:
    """Settings that make LLaCTR use the tiny language model."""
    return {
        "language_model": str(tiny_llm),
        "llm_dtype": "float32",
        "ssft_epochs": 1,
        "ssft_values_per_field": 4,
        "ssft_held_out": 0.25,
        "ssft_batch_size": 4,
        "ssft_warmup_steps": 0,
        "ssft_learning_rate": 0.01,
    }


@pytest.fixture
def llm(tiny_llm) -> dict:
    """Settings that make vectors of values come from the tiny language model."""
    return {"language_model": str(tiny_llm), "llm_dtype": "float32"}


@pytest.fixture
def prepared(configs, llm):
    """Prepares a run of a plain DeepFM whose columns ask for vectors: `{column: its other keys}`."""

    from fuxictr_llm.config.resolve import load_experiment
    from fuxictr_llm.experiment.preparation import prepare_run

    def prepare(columns, expid="DeepFM_shop", **changes):
        specs = [{"name": name, "pretrained_emb": "llm", **keys} for name, keys in columns.items()]
        overrides = {**llm, "feature_specs": specs, **changes}
        return prepare_run(load_experiment(expid, configs, overrides=overrides), "unused")

    return prepare


@pytest.fixture
def served():
    """A small DNN_LLaCTR, exported to the folder `served` and loaded; its run is runs/a."""
    from fuxictr_llm import export_run, load_model
    from support import trained

    trained("DNN", "LLaCTR")
    return load_model(export_run("runs/a", "served"))


@pytest.fixture
def model(tiny_llm):
    """The tiny Llama, loaded."""
    from fuxictr_llm.llm.language_model import load_language_model

    return load_language_model(tiny_llm, "float32", "auto", gpu=-1)


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory, tiny_llm):
    """A folder with a random BERT and a tokenizer that frames texts with two tokens."""
    from tokenizers import Tokenizer, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny_bert")
    tokenizer = Tokenizer.from_file(str(tiny_llm / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<s>").save_pretrained(folder)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder
