"""`predict`: probabilities and metrics of raw files are the run's own, and bad input is one line that writes nothing."""

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fuxictr_llm.__main__ import main
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.experiment.predictions import PREDICTIONS, read_predictions
from fuxictr_llm.serving import predict as predicting
from fuxictr_llm.serving.export import export_run
from fuxictr_llm.serving.load import load_model
from fuxictr_llm.serving.predict import predict_file, served_model
from support import batches, edit, expected_of, flip_a_byte, trained
from support_serving import run_of

SAVED = Path(__file__).parents[1] / "saved"


@pytest.mark.parametrize(
    "expid",
    [
        "DeepFM_movielens100k",
        "DIN_movielens100k_seq",
        "MMoE_movielens100k_mtl",
        "DCNv2_criteo_x4_001",
        "DeepFM_kkbox_x1",
    ],
)
def test_metrics_and_probabilities_of_the_test_file_are_the_runs_own(expid, monkeypatch):
    result, run = run_of(expid)
    params, labels = result.run.params, result.record["labels"]
    test = Path(load_test_data(result))
    monkeypatch.setattr(predicting, "AT_ONCE", 70)  # of 150 rows; a batch has 64
    with served_model(run) as served:
        predicted = predict_file(served, test, Path("out/rows.csv"))
    assert predicted.metrics == result.record["metrics"]["test"] and predicted.counts.rows == len(pl.read_csv(test))
    written = pl.read_csv("out/rows.csv", infer_schema=False)
    names = [f"{label}_probability" for label in labels]
    assert written.drop(names).equals(pl.read_csv(test, infer_schema=False))
    _, expected = read_predictions(Path(result.model.checkpoint).with_suffix(PREDICTIONS))
    assert np.array_equal(written.select(names).cast(pl.Float32).to_numpy(), expected.reshape(len(expected), -1))
    assert [path.name for path in Path("out").iterdir()] == ["rows.csv"] and params["batch_size"] == 64


def load_test_data(result):
    return result.record["config"]["test_data"]


def test_rows_that_nobody_trained_on(shop, capsys):
    served = load_model("served")
    rows = pl.DataFrame(
        {
            "more": ["x", "y", "z,", None],
            "tags": ["new^old", None, "hot^^new^old^new", "cold"],
            "user": ["7", "nobody", "8", None],
            "city": ["Rome", "Paris", "", "Oslo"],
            "color": ["red", "green", "blue", ""],
        }
    )
    rows.write_csv("new.csv")
    assert main(["predict", "--model", "served", "--data", "new.csv", "--to", "out.csv"]) == 0
    out = capsys.readouterr().out
    assert "unseen values city 1, user 1, tags 1" in out and "empty cells   color 1, city 1, user 1, tags 1" in out
    assert "no metrics    the rows have no label 'click'" in out
    written = pl.read_csv("out.csv", infer_schema=False)
    assert written.columns == [*rows.columns, "click_probability"]
    assert written.drop("click_probability").equals(pl.read_csv("new.csv", infer_schema=False))
    vocabulary = json.loads(Path("data/shop/feature_vocab.json").read_text())
    batch = {
        name: [vocabulary[name].get(value or "", vocabulary[name]["__OOV__"]) for value in rows[name]]
        for name in ("color", "city", "user")
    }
    ids = vocabulary["tags"]
    batch["tags"] = [[ids["new"], ids["old"], 0], [0, 0, 0], [ids["hot"], 0, ids["new"]], [ids["__OOV__"], 0, 0]]
    expected = served.predict(batch)
    assert np.array_equal(written["click_probability"].cast(pl.Float32).to_numpy(), expected)
    for form in (rows, rows.to_pandas(), rows.to_dicts(), rows.to_dict(as_series=False)):
        assert np.array_equal(served.predict_raw(form), expected)
    assert served.predict_raw(rows.to_dicts()[1]) == pytest.approx(expected[1:2], abs=1e-6)
    assert served.predict_raw([]).shape == (0,)


def test_parquet_in_and_out_and_an_export_that_was_moved(shop, tmp_path):
    result, _ = shop
    rows = pl.read_csv("raw/test.csv", infer_schema=False).with_columns(
        pl.col("user").cast(pl.Int64), pl.col("tags").str.split("^")
    )
    rows.write_parquet("rows.parquet")
    Path("served").rename("moved")
    for gone in ("data", "checkpoints", "raw"):
        shutil.rmtree(gone)
    predicted = predict_file(load_model("moved"), Path("rows.parquet"), Path("out.parquet"))
    assert predicted.metrics == result.record["metrics"]["test"]
    assert pl.read_parquet("out.parquet").drop("click_probability").equals(rows)
    assert str(tmp_path) not in Path("moved/preprocessing.json").read_text()


def test_metrics_alone_and_why_there_are_none(shop, capsys):
    result, run = shop
    assert main(["predict", "--model", run, "--data", "raw/test.csv"]) == 0
    auc = float(capsys.readouterr().out.split("AUC")[1].split()[0])
    assert auc == result.record["metrics"]["test"]["AUC"]
    served, rows = load_model("served"), pl.read_csv("raw/test.csv", infer_schema=False)
    for label, why in (
        (pl.lit("1"), "label 'click' has one value only"),
        (pl.lit(None, pl.String), "label 'click' is empty in 150 of the rows"),
        (pl.lit("2"), "label 'click' must be 0 or 1 (got 2.0 in data file 'other.csv', row 1 below the header)"),
        (pl.lit("yes"), "column 'click' holds the text 'yes' in data file 'other.csv', row 1 below the header"),
    ):
        rows.with_columns(click=label).write_csv("other.csv")
        Path("out.csv").unlink(missing_ok=True)
        predicted = predict_file(served, Path("other.csv"), Path("out.csv"))
        assert predicted.metrics is None and predicted.unmeasured.startswith(why) and Path("out.csv").exists()


def csv_of(text):
    def write():
        Path("rows.csv").write_text(text)

    return write


HEAD = "color,city,user,tags\n"
ARGS = ["predict", "--model", "served", "--data", "rows.csv", "--to", "out.csv"]
BAD_DATA = {
    "missing column": (csv_of("color,citi,user,tags\na,b,c,d\n"), "have no column 'city'; did you mean 'citi'?"),
    "delimiter": (csv_of("color;city;user;tags\na;b;c;d\n"), "are separated by ';', not ','; say it with --sep"),
    "nothing": (csv_of(""), "data file 'rows.csv' is empty"),
    "header only": (csv_of(HEAD), "is empty: it has a header and no rows"),
    "long row": (csv_of(HEAD + "a,b,c,d\na,b,c,d,e\n"), "row 2 below the header, has 5 cells, and the header 4"),
    "no file": (lambda: None, "--data 'rows.csv' is no file"),
    "taken name": (csv_of(HEAD.strip() + ",click_probability\na,b,c,d,1\n"), "a column 'click_probability' already"),
    "no text": (lambda: Path("rows.csv").write_bytes(b"color,city,user,tags\n\xff\xfe,b,c,d\n"), "cannot be read"),
    "there": (lambda: (csv_of(HEAD + "a,b,c,d\n")(), Path("out.csv").write_text("mine")), "'out.csv' is there already"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_is_one_line_and_writes_nothing(shop, case, capsys):
    write, message = BAD_DATA[case]
    write()
    before = set(Path().rglob("*"))
    assert main(ARGS) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and error.startswith("error: ")
    assert set(Path().rglob("*")) == before
    assert case != "there" or Path("out.csv").read_text() == "mine"


def cut(path):
    Path(path).write_bytes(Path(path).read_bytes()[:-9])


def forge(old, new):
    """An export whose digests are right and whose content is not."""

    def change():
        from fuxictr_llm.common.files import digest_of_file

        before = digest_of_file("served/preprocessing.json")
        edit("served/preprocessing.json", old, new)
        edit("served/config.json", before, digest_of_file("served/preprocessing.json"))

    return change


DAMAGED = {
    "settings": (lambda: flip_a_byte("served/preprocessing.json"), "'served/preprocessing.json' is not the file"),
    "vocabularies": (lambda: cut("served/vocabularies.parquet"), "'served/vocabularies.parquet' is not the file"),
    "gone": (lambda: Path("served/vocabularies.parquet").unlink(), "'served/vocabularies.parquet' is missing"),
    "newer": (lambda: edit("served/config.json", '"format": 1', '"format": 2'), "has format 2, this version reads"),
    "code": (forge('"dtype": "str"', '"dtype": "exit(3)"'), "has 'settings.feature_cols.0.dtype': 'exit(3)'"),
    "function": (forge('"type": "sequence"', '"type": "sequence", "preprocess": "load_pickle(x)"'), "'load_pickle'"),
    "class": (forge('"feature_processor": null', '"feature_processor": "os:system"'), "needs feature_processor 'os:sys"),
    "vocabulary": (forge('"vocabulary": "tags"', '"vocabulary": "other"'), "column 'tags' has no vocabulary"),
    "earlier": (lambda: (shutil.rmtree("served"), shutil.copytree(SAVED / "exported", "served")), "by an earlier version"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_export_is_one_line(shop, case, capsys):
    damage, message = DAMAGED[case]
    damage()
    csv_of(HEAD + "a,b,c,d\n")()
    assert main(ARGS) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not Path("out.csv").exists()


def test_an_export_without_its_built_data_says_so_and_answers_ids(shop, capsys):
    _, run = shop
    rows = pl.read_csv("raw/test.csv", infer_schema=False)
    for change, why in (
        (lambda: edit("data/shop/preprocessing.json", '"max_len": 3', '"max_len": 2'), "other settings of the columns"),
        (
            lambda: edit("data/shop/build.json", '"test": [\n        "', '"test": [\n        "0'),
            "is of other raw files",
        ),
        (lambda: shutil.rmtree("data"), "is not there, or is of an earlier version"),
    ):
        change()
        assert main(["export", "--run", run, "--to", "ids_only"]) == 0
        assert why in capsys.readouterr().err
        served = load_model("ids_only")
        assert served.predict({"color": [1], "city": [1], "user": [1], "tags": [[1, 2, 0]]}).shape == (1,)
        with pytest.raises(UserError, match=why):
            served.predict_raw(rows)


PROCESSOR = """
import polars as pl
from fuxictr.preprocess import FeatureProcessor

class Shouting(FeatureProcessor):
    def shout(self, name):
        return pl.col(name).str.to_uppercase()
"""


def test_a_processor_of_ones_own_is_given_and_not_imported(configs, monkeypatch, capsys):
    Path("my_shouting.py").write_text(PROCESSOR)
    monkeypatch.syspath_prepend(".")
    columns = [{"name": "color", "active": True, "dtype": "str", "type": "categorical", "preprocess": "shout"}]
    changes = {"feature_cols": columns, "feature_processor": "my_shouting:Shouting"}
    result, run = run_of("FM_shop", configs, **changes)
    export_run(run, "served")
    args = ["predict", "--model", "served", "--data", "raw/test.csv"]
    assert main(args) == 2
    assert (
        "needs feature_processor 'my_shouting:Shouting' for raw rows (sha256 of its code: " in capsys.readouterr().err
    )
    assert main([*args, "--processor", "my_shouting:Shouting"]) == 0
    assert repr(result.record["metrics"]["test"]["AUC"]) in capsys.readouterr().out
    Path("other_shouting.py").write_text(PROCESSOR + "# changed\n")
    assert main([*args, "--processor", "other_shouting:Shouting"]) == 2
    assert "the class that was given has other code" in capsys.readouterr().err


def test_many_threads_get_their_own_answers(shop):
    served, rows = load_model("served"), pl.read_csv("raw/test.csv", infer_schema=False).to_dicts()
    expected = [served.predict_raw(row) for row in rows[:25]]
    answers = {}

    def ask(thread):
        for index in range(25):
            answers[thread, index] = served.predict_raw(rows[index])

    threads = [threading.Thread(target=ask, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(answers) == 200 and all(
        np.array_equal(answer, expected[index]) for (_, index), answer in answers.items()
    )


SERVE = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("transformers", "peft", "gguf", "accelerate", "matplotlib", "ray"):
            raise ImportError(f"{name} is not installed here")

def loaded(*own):
    return [name for name in sys.modules if name.startswith(own)]

sys.meta_path.insert(0, Blocked())
import fuxictr_llm
answers = fuxictr_llm.load_model("of_ids").predict(json.load(open("batch.json")))
assert not loaded("fuxictr_llm.llm", "fuxictr_llm.model_zoo.LLaCTR", "fuxictr_llm.data", "fuxictr_llm.experiment")
import fuxictr_llm.config.resolve
raw = fuxictr_llm.load_model("served").predict_raw({"color": "red", "city": "", "user": "7", "tags": "new"})
assert not loaded("fuxictr_llm.llm", "fuxictr_llm.experiment")
print(json.dumps([answers.tolist(), raw.tolist()]))
"""


def test_serving_ids_and_raw_rows_needs_no_language_library_and_no_ray(shop):
    model, batch = trained("DeepFM", "LLaCTR"), batches("DeepFM", 1)[0]
    export_run("runs/a", "of_ids")
    Path("batch.json").write_text(json.dumps({name: column.tolist() for name, column in batch.items()}))
    done = subprocess.run([sys.executable, "-c", SERVE], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    answers, (raw,) = json.loads(done.stdout.splitlines()[-1])
    assert np.abs(np.array(answers) - expected_of(model, batch)).max() <= 1e-6
    row = {"color": "red", "city": "", "user": "7", "tags": "new"}
    assert raw == pytest.approx(load_model("served").predict_raw(row)[0], abs=1e-6)
