"""The pages are carried out from top to bottom, in new folders: no step needs what no step before it made."""

import shlex
import shutil
from pathlib import Path

import pandas as pd
import pytest
from conftest import CITIES, small_table

import fuxictr_llm.benchmark_configs
from fuxictr_llm.common.files import read_json
from fuxictr_llm.common.run_files import RECORD
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.experiment.preparation import prepare_run
from fuxictr_llm.llm.catalog import load_catalog
from support import as_arguments
from support_readme import carry_out, files_of, write_file, write_movies, write_small_configs

pytestmark = pytest.mark.usefixtures("registry_as_before")
LEFT_OUT = {
    r"^(pip|git|cd) |-m pytest|tests/bench": "are for a checkout",
    r"^torchrun |^tensorboard ": "have tests of their own",
    r"--zoo ~/FuxiCTR": "needs a checkout of FuxiCTR",
    r"^fuxictr-llm serve ": "ends with Ctrl-C; tests/serving/test_server.py asks what curl does",
    r" verify | criteo_x1 ": "need published data",
}
ADDED = {r" leaderboard ": "--dry-run"}


@pytest.fixture
def reader(tmp_path, monkeypatch, tiny_settings):
    """A folder with nothing in it; packaged configs are small."""
    write_movies(tmp_path / "ml-100k")
    write_small_configs(tmp_path / "packaged", tmp_path / "ml-100k", tiny_settings)
    monkeypatch.setattr(fuxictr_llm.benchmark_configs, "__path__", [str(tmp_path / "packaged")])
    (tmp_path / "reader").mkdir()
    monkeypatch.chdir(tmp_path / "reader")


def write_raw_shop():
    """The raw files of the data set of "Your data"."""
    Path("raw").mkdir()
    for seed, split in enumerate(("train", "valid", "test")):
        table = small_table(300, seed).drop(columns=["user", "tags"])
        table.assign(city=table["city"].isin(CITIES[:3]) + 1).to_csv(f"raw/{split}.csv", index=False)


def test_the_readme(reader):
    write_raw_shop()
    names = {}
    assert len(carry_out("README.md", LEFT_OUT, ADDED, names)) >= 7
    params = names["experiment"].params
    assert params["lambda_fre"] == 0.1 and params["seed"] == 1
    assert len(names["clicks"]) == len(pd.read_csv("data/raw/movielens100k/test.csv"))
    records = {path.name: read_json(path) for path in Path("checkpoints").rglob(f"*{RECORD}")}
    assert records[f"MyNet_LLaCTR_movielens100k{RECORD}"]["config"]["hidden_units"] == [64, 64]
    assert records[f"DeepFM_Calm_movielens100k{RECORD}"]["config"]["lambda_calm"] == 0.2
    shop = prepare_run(load_experiment("DeepFM_shop", "my_configs"), "unused")
    catalog = load_catalog(shop.feature_map, shop.data_dir, "my_configs/shop_fields.yaml")
    assert {field.name: set(field.values) for field in catalog.fields}["city"] == {"Rome", "Oslo"}


def test_the_page_on_serving(reader):
    write_raw_shop()
    for name, block in files_of("README.md"):
        if name in ("my_configs/dataset_config.yaml", "my_configs/shop_fields.yaml"):
            write_file(name, block)
    Path("my_configs/method_config").mkdir()
    shutil.copy("raw/test.csv", "tomorrow.csv")
    assert len(carry_out("fuxictr_llm/serving/README.md", LEFT_OUT, {}, {})) >= 3
    assert len(pd.read_csv("tomorrow_scored.csv")) == 300


# The pages of the other methods show two commands each, of which neither needs the other.
@pytest.mark.parametrize("method", ["LLaCTR", "ELEC", "LLMEmb"])
def test_the_page_of_a_method(reader, llm, method):
    tiny = {r"pretrained_emb: llm| --values ": shlex.join(as_arguments(llm))}  # of no method, whose config is scaled
    assert carry_out(f"model_zoo/{method}/README.md", LEFT_OUT, {**ADDED, **tiny}, {})
