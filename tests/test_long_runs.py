"""Data sets of long sequences (tuple batches) from the command line: what runs on them, and what says why not."""

import re
from pathlib import Path

import pandas as pd
import pytest

from fuxictr_llm import export_run
from fuxictr_llm.__main__ import main
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import digest_of_file, read_json, write_json
from support_long import ITEMS, long_data
from support_zoo import write_checkout


@pytest.fixture
def data(tmp_path):
    """Writes the data set `views`, its configs and a checkout; the settings that name its files."""
    data = long_data(tmp_path / "data" / "views")
    folder = tmp_path / "long_configs"
    (folder / "method_config").mkdir(parents=True)
    keys = "".join(f"  {key}: {value}\n" for key, value in data.items() if key != "max_len")
    views = f"views:\n  data_root: {tmp_path}/data\n  data_format: parquet\n{keys}"
    (folder / "dataset_config.yaml").write_text(views)
    base = "{model_root: runs, seed: 7, num_threads: 1, verbose: 0, batch_size: 16, epochs: 2, max_len: 4}"
    (folder / "model_config.yaml").write_text(f"Base: {base}\n")
    write_checkout(tmp_path / "fx")
    return data


def run(expid, *settings):
    options = [option for setting in settings for option in ("--set", setting)]
    return main(["run", "--zoo", "fx", "--config", "long_configs", "--expid", expid, *options])


def test_a_model_of_tuple_batches_trains_and_is_not_served(data):
    assert run("LongCTR/DIN_views") == 0
    record = read_json("runs/views/LongCTR-DIN_views/LongCTR-DIN_views.run.json")
    assert record["backbone"]["name"] == "LongCTR/DIN" and record["stages"]["train"]["rows"] == 80
    assert record["data"]["sha256"]["item_info"] == [digest_of_file(data["item_info"])]
    assert run("LongCTR/DIN_views", "short_seq_len=5") == 2
    with pytest.raises(UserError, match="tuple"):
        export_run("runs/views", "served")


def test_a_model_of_the_fuxictr_wheel_trains_without_a_checkout(data):
    settings = ["short_seq_len=2", "topk=2", "dnn_hidden_units=[8]"]
    options = [option for setting in settings for option in ("--set", setting)]
    assert main(["run", "--config", "long_configs", "--expid", "SIM_views", *options]) == 0
    (path,) = Path("runs/views").glob("*/SIM_views*.run.json")
    record = read_json(path)
    assert (record["backbone"]["kind"], record["backbone"]["name"]) == ("fuxictr", "LongCTR/SIM")


@pytest.mark.parametrize(
    ("method", "setting"), [("LLaCTR", "field_vectors=identity"), ("ELEC", "teacher=self"), ("ELEC", "schedule=joint")]
)
def test_methods_that_need_no_texts_of_rows_train_on_it(data, method, setting):
    assert run(f"LongCTR/DIN_{method}_views", setting, "teacher=self" if method == "ELEC" else setting) == 0


def test_elec_tells_the_rows_with_their_target_items(data, tiny_settings, caplog):
    words = {str(number): number for number in range(1, ITEMS)} | {"__OOV__": ITEMS}
    write_json("data/views/feature_vocab.json", {"item_id": words, "gender": {"f": 1, "m": 2, "__OOV__": 3}})
    llm = [f"{key}={tiny_settings[key]}" for key in ("language_model", "llm_dtype")]
    assert run("LongCTR/DIN_ELEC_views", "text_fields=[item_id, gender]", "h_dim=4", *llm) == 0
    (path,) = Path("runs/views").glob("*/*.run.json")
    record = read_json(path)
    pairs = {
        (item, gender)
        for split in ("train", "valid", "test")
        for item, gender in pd.read_parquet(data[f"{split}_data"])[["item_index", "gender"]].itertuples(index=False)
    }
    assert record["stages"]["texts"]["rows"] == len(pairs) > 20 and {"text", "gain"} <= record["networks"].keys()


@pytest.mark.parametrize(
    ("expid", "error"),
    [
        ("LongCTR/DIN_ELEC_views", "data set 'views' has nothing to read: no column's values are words"),
        ("LongCTR/DIN_LLMEmb_views", "no column of data set 'views' has values that are words"),
        (
            "DeepFM_views",
            "DeepFM fails in its first step of training on data set 'views' .*; the data has long sequences",
        ),
    ],
)
def test_what_does_not_work_on_it_says_so(data, capsys, expid, error):
    assert run(expid) == 2
    assert re.search(error, capsys.readouterr().err)


def test_a_model_of_tuple_batches_says_which_data_it_takes(configs, tmp_path, capsys):
    write_checkout(tmp_path / "fx")
    assert main(["run", "--zoo", "fx", "--config", str(configs), "--expid", "LongCTR/DIN_shop"]) == 2
    assert "if it is a LongCTR model, it needs data with user_info and item_info" in capsys.readouterr().err
