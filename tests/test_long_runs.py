"""Data sets of long sequences (tuple batches) from the command line: what runs on them, and what says why not."""

import re

import pytest

from fuxictr_llm import export_run
from fuxictr_llm.__main__ import main
from fuxictr_llm.errors import UserError
from fuxictr_llm.files import digest_of_file, read_json
from support_long import long_data
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
    record = read_json("runs/views/LongCTR-DIN_views.run.json")
    assert record["backbone"]["name"] == "LongCTR/DIN" and record["stages"]["train"]["rows"] == 80
    assert record["data"]["sha256"]["item_info"] == [digest_of_file(data["item_info"])]
    assert run("LongCTR/DIN_views", "short_seq_len=5") == 2
    with pytest.raises(UserError, match="tuple"):
        export_run("runs/views", "served")


@pytest.mark.parametrize(
    ("method", "setting"), [("LLaCTR", "field_vectors=identity"), ("ELEC", "teacher=self"), ("ELEC", "schedule=joint")]
)
def test_methods_that_need_no_texts_of_rows_train_on_it(data, method, setting):
    assert run(f"LongCTR/DIN_{method}_views", setting, "teacher=self" if method == "ELEC" else setting) == 0


@pytest.mark.parametrize(
    ("expid", "error"),
    [
        ("LongCTR/DIN_ELEC_views", "no texts can be made of the rows of data set 'views': it has long sequences"),
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
