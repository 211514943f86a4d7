"""Runs with `cold_values`: films whose words decide, of which train lacks some."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from conftest import CITIES, WORDS

from fuxictr_llm.__main__ import main
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import read_json
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.data.loader import make_loaders
from fuxictr_llm.experiment.cold import metrics_of_unseen
from fuxictr_llm.experiment.preparation import prepare_run
from fuxictr_llm.experiment.run import run_experiment
from fuxictr_llm.serving.export import check_same_data, export_run
from fuxictr_llm.serving.load import load_model
from support import as_arguments, batches, build, edit

FILMS, UNSEEN = 160, 40
SETTINGS = {"epochs": 3, "learning_rate": 0.05, "batch_size": 64}


def film(index):
    """A film's row: a click depends on the color in its title, which no model reads."""
    title = f"{WORDS[index % 6]} {CITIES[index // 6 % 6]}"
    return {"item": f"i{index}", "title": title, "genre": ["new", "old", "hot"][index % 3]}


def table_of(rows, items, seed):
    draw = np.random.default_rng(seed)
    films = [film(index) for index in draw.choice(items, rows)]
    table = pd.DataFrame(films)
    table["user"] = draw.integers(0, 20, rows).astype(str)
    table["watched"] = ["^".join(f"i{index}" for index in draw.choice(items, 2)) for _ in range(rows)]
    liked = table["title"].str.split().str[0].isin(WORDS[:3])
    table["click"] = (draw.random(rows) < np.where(liked, 0.9, 0.1)).astype(int)
    return table


@pytest.fixture
def films(configs, tmp_path):
    """The config directory with a data set `films`, in whose valid and test rows half of the films are unseen."""
    known, everything = np.arange(FILMS), np.arange(FILMS + UNSEEN)
    unseen = np.concatenate([everything, *[everything[FILMS:]] * 4])
    for split, rows, items in (("train", 1500, known), ("valid", 200, unseen), ("test", 400, unseen)):
        table_of(rows, items, len(split) + rows).to_csv(tmp_path / "raw" / f"film_{split}.csv", index=False)
    (tmp_path / "films.yaml").write_text(
        "about: films\nentities: {item: {id: item, text: [title]}}\n"
        "fields: {item: id of the film, genre: genre of the film, user: id of the user, watched: id of a film}\n"
    )
    with (configs / "dataset_config.yaml").open("a") as file:
        file.write(
            f"""
films:
    data_root: {tmp_path}/data
    data_format: csv
    train_data: {tmp_path}/raw/film_train.csv
    valid_data: {tmp_path}/raw/film_valid.csv
    test_data: {tmp_path}/raw/film_test.csv
    field_config: {tmp_path}/films.yaml
    min_categr_count: 1
    feature_cols:
    - {{name: [item, genre, user], active: true, dtype: str, type: categorical}}
    - {{name: title, active: true, dtype: str, type: meta}}
    - {{name: watched, active: true, dtype: str, type: sequence, splitter: ^, max_len: 2, share_embedding: item}}
    label_col: {{name: click, dtype: float}}
"""
        )
    return configs


@pytest.fixture
def run(films, llm):
    def run_it(expid="DeepFM_LLMEmb_films", seed=None, **changes):
        settings = {**llm, **SETTINGS, **changes}
        return run_experiment(load_experiment(expid, films, seed=seed, overrides=settings))

    return run_it


def unseen(result, split="test"):
    return result.record["cold_values"]["unseen"][split]


def test_words_that_decide_are_used_and_training_is_as_without(run):
    plain, words = run(), run(cold_values="words")
    column = words.record["cold_values"]["columns"]["item"]
    assert column["columns"] == ["item", "watched"] and column["without_words"] == 0
    assert 0.9 * UNSEEN <= len(column["values"]) <= UNSEEN and column["values"] == sorted(column["values"])
    size = column["first_id"]
    assert size == plain.run.feature_map.features["item"]["vocab_size"]
    # Training is the same, bit by bit: of each table, all rows but the new ones.
    state = words.model.state_dict()
    longer = [name for name, value in plain.model.state_dict().items() if state[name].shape != value.shape]
    assert (
        len([name for name, _ in words.model.named_parameters() if name in longer]) == 3
    )  # the vectors that both columns share, and the numbers of the linear part, of each its own
    assert all(len(state[name]) == size + len(column["values"]) for name in longer)
    for name, value in plain.model.state_dict().items():
        assert torch.equal(state[name][: len(value)] if name in longer else state[name], value), name
    assert words.record["parameters"] == plain.record["parameters"]
    assert words.record["best_epoch"] == plain.record["best_epoch"]
    # Without rows of their own, unseen values are what they were.
    assert unseen(words)["any"]["rows"] > 300
    first = make_loaders(plain.run.feature_map, plain.run.params, "test")
    y_pred, item = plain.model.predict(first), np.concatenate([batch["item"].numpy() for batch in first])
    y_true = np.concatenate([batch["click"].numpy() for batch in first])
    rows = item == size - 1
    chance = np.clip(y_pred[rows], 1e-15, 1)
    logloss = -np.mean(np.where(y_true[rows] == 1, np.log(chance), np.log(1 - chance)))
    assert unseen(words)["item"]["rows"] == rows.sum()
    assert unseen(words)["item"]["without"]["logloss"] == pytest.approx(logloss, rel=1e-6)
    # The words decide.
    assert unseen(words)["item"]["AUC"] > unseen(words)["item"]["without"]["AUC"] + 0.2
    assert words.record["metrics"]["test"]["AUC"] > plain.record["metrics"]["test"]["AUC"] + 0.1
    for control in ("mean", "shuffled"):
        other = run(cold_values=control)
        assert unseen(other)["item"]["without"] == unseen(words)["item"]["without"]
        assert unseen(other)["item"]["AUC"] < unseen(words)["item"]["AUC"] - 0.2, control
    assert plain.record["cold_values"] is None


def test_every_unseen_value_of_a_sequence_is_counted():
    rows = batches()
    for batch in rows:
        batch["tags"] = torch.where(batch["tags"] > 0, 1, 0)
    rows[0]["tags"][0] = torch.tensor([3, 4, 5])  # 3 and 4 are the largest of no row
    rows[1]["tags"][2] = torch.tensor([0, 1, 5])
    tags = SimpleNamespace(columns=("tags",), first_id=3, oov_id=2)
    item = SimpleNamespace(columns=("item",), first_id=18, oov_id=1)
    measured = metrics_of_unseen(build("DeepFM"), SimpleNamespace(columns=[tags, item]), rows)
    items = torch.cat([batch["item"] for batch in rows]).reshape(-1)
    assert {key: measured["tags"][key] for key in ("rows", "values")} == {"rows": 2, "values": 3}
    assert measured["item"]["rows"] == (items >= 18).sum() and measured["item"]["values"] == 2
    either = (items >= 18) | (torch.cat([batch["tags"] for batch in rows]) >= 3).any(dim=1)
    assert measured["any"]["rows"] == either.sum()


def test_saved_loaded_and_exported_models_answer_alike(run, films, tmp_path):
    pl.DataFrame({"item": ["x1", "x2"], "title": ["red Rome", "grey Rome"]}).write_csv(tmp_path / "new.csv")
    result = run(cold_values="words", cold_catalog={"item": str(tmp_path / "new.csv")})
    record = result.record
    loader = make_loaders(result.run.feature_map, result.run.params, "test")
    expected = result.model.predict(loader)
    batches = list(loader)
    batch = {name: torch.cat([batch[name] for batch in batches]) for name in result.run.feature_map.features}
    served = load_model(export_run(Path("checkpoints/films", record["model_id"]), tmp_path / "served"))
    assert np.abs(served.predict(batch) - expected).max() < 1e-6
    rows = pl.read_csv(tmp_path / "raw" / "film_test.csv", infer_schema=False)
    assert np.array_equal(served.predict_raw(rows), served.predict(batch))
    ids = served.cold_ids["item"]
    assert ids == served.cold_ids["watched"] and list(ids) == record["cold_values"]["columns"]["item"]["values"]
    assert served.model.feature_map.features["item"]["vocab_size"] == max(ids.values()) + 1
    assert str(tmp_path) not in (tmp_path / "served" / "config.json").read_text()
    asked = {name: values[:1].repeat_interleave(2, dim=0) for name, values in batch.items()}
    liked, not_liked = served.predict({**asked, "item": torch.tensor([ids["x1"], ids["x2"]])})
    assert liked > not_liked + 0.1
    loaded = torch.load(f"checkpoints/films/{record['model_id']}/{record['model_id']}.model", weights_only=True)
    assert all(torch.equal(value, result.model.state_dict()[name]) for name, value in loaded.items())
    # A teacher with more ids teaches a student without.
    student = prepare_run(load_experiment("DeepFM_films", films), "unused")
    check_same_data(dict(served.config), record["data"], student.feature_map, "teacher")
    edit(tmp_path / "served" / "config.json", '"x2"\n', '"x2", "x3"\n')
    with pytest.raises(UserError, match="has [0-9]+ cold_values of 'item', which are not its last ids; write it anew"):
        load_model(tmp_path / "served")


def test_no_label_of_valid_or_test_reaches_what_is_fitted(run, films, tmp_path):
    def states():
        result = run(cold_values="words", epochs=1)
        # Those of rows have their labels.
        files = [path for kind in ("text_vectors", "value_vectors") for path in (tmp_path / "cache" / kind).rglob("*")]
        files = {str(path): path.read_bytes() for path in files if path.is_file() and path.suffix != ".json"}
        return result.model.state_dict(), result.record["cold_values"]["columns"], files

    before = states()
    for split in ("valid", "test"):
        path = tmp_path / "raw" / f"film_{split}.csv"
        table = pd.read_csv(path)
        table["click"] = 1 - table["click"]
        table.to_csv(path, index=False)
    shutil.rmtree(tmp_path / "cache")
    state, columns, files = states()
    assert all(torch.equal(value, before[0][name]) for name, value in state.items())
    assert columns == before[1] and files == before[2] and files


def test_columns_that_ask_by_themselves_and_values_without_words(run, films, tmp_path):
    path = tmp_path / "raw" / "film_test.csv"
    table = pd.read_csv(path)
    lost = f"i{FILMS + 1}"
    table.loc[table["item"] == lost, "title"] = ""
    table.loc[0, "genre"] = "brand new"
    table.to_csv(path, index=False)
    valid = pd.read_csv(tmp_path / "raw" / "film_valid.csv")
    valid[valid["item"] != lost].to_csv(tmp_path / "raw" / "film_valid.csv", index=False)
    specs = [{"name": "genre", "pretrained_emb": "llm", "pretrain_usage": "sum"}]
    result = run("DeepFM_films", feature_specs=specs, cold_values="words")
    columns = result.record["cold_values"]["columns"]
    assert list(columns) == ["genre", "item"] and columns["genre"]["values"] == ["brand new"]
    assert columns["item"]["without_words"] == 1 and lost not in columns["item"]["values"]
    assert result.record["cold_values"]["unseen"]["test"]["genre"]["rows"] == 1
    only = run("DeepFM_films", feature_specs=specs, cold_values="words", cold_fields=["watched"])
    assert list(only.record["cold_values"]["columns"]) == ["item"]  # whose embedding it is


def test_longer_texts_tell_ids(run, films, tmp_path):
    edit(tmp_path / "films.yaml", "entities: {item: {id: item, text: [title]}}\n", "")
    texts = pl.DataFrame([film(index) for index in range(FILMS + UNSEEN)]).select("item", "title")
    texts.write_parquet(tmp_path / "texts.parquet")
    side = {"item": {"file": str(tmp_path / "texts.parquet"), "key": "item", "text": "title"}}
    result = run(cold_values="words", cold_fields=["item"], value_texts=side)
    without = run(cold_values="words", cold_fields=["item"])
    assert unseen(result)["item"]["AUC"] > unseen(without)["item"]["AUC"] + 0.1
    digests = result.record["sources"]["files"]
    assert str(tmp_path / "texts.parquet") in digests


def test_nothing_unseen_changes_nothing(llm, films, caplog):
    caplog.set_level("INFO")
    settings = {**llm, "cold_values": "words", "value_fields": ["color"]}
    prepared = prepare_run(load_experiment("DeepFM_LLMEmb_shop", films, overrides=settings), "unused")
    assert "cold_values changes nothing: no value that train lacks has words" in caplog.text
    assert prepared.cold is None


BAD = [
    ({"cold_values": "word"}, "config key 'cold_values' is 'word'"),
    ({"cold_fields": ["item"]}, "cold_fields has no effect without cold_values; set cold_values: words"),
    ({"cold_values": "words", "cold_fields": ["itm"]}, "unknown column 'itm' in 'cold_fields'; did you mean 'item'?"),
    ({"cold_values": "words", "cold_fields": ["title"]}, "column 'title' is of type meta: no model reads it"),
    ({"cold_values": "words", "cold_catalog": {"user": "new.csv"}}, "unknown column 'user' in 'cold_catalog'"),
    ({"cold_values": "words", "cold_catalog": {"item": "none.csv"}}, "'none.csv' is missing"),
    ({"cold_values": "words", "cold_catalog": {"item": "seen.csv"}}, "has 'i3', which, as 1 more, train has already"),
    ({"cold_values": "words", "cold_catalog": {"item": "twice.csv"}}, "has 'x1' more than once"),
    ({"cold_values": "words", "cold_catalog": {"item": "empty.csv"}}, "has no item in row 2"),
    ({"cold_values": "words", "cold_catalog": {"item": "wordless.csv"}}, "1 of its 2 values have no words \\('x2'\\)"),
    ({"cold_values": "words", "cold_catalog": {"item": "titles.csv"}}, "unknown column 'item' in cold_catalog"),
    ({"cold_values": "words", "cold_catalog": {"item": "a.txt"}}, "'a.txt' must end in .csv or .parquet"),
    ({"value_texts": {"item": {"file": "a.csv", "key": "a", "text": "b"}}}, "value_texts has no effect without cold_"),
    ({"cold_values": "words", "value_texts": {"item": {"file": "a.csv"}}}, "value_texts of 'item' lacks 'key'"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=range(len(BAD)))
def test_bad_settings_are_one_line(films, llm, changes, message, capsys):
    Path("seen.csv").write_text("item,title\nx1,red Rome\ni3,red Oslo\ni4,red Bern\n")
    Path("twice.csv").write_text("item,title\nx1,red Rome\nx1,red Oslo\n")
    Path("empty.csv").write_text("item,title\nx1,red Rome\n,red Oslo\n")
    Path("wordless.csv").write_text("item,title\nx1,red Rome\nx2,\n")
    Path("titles.csv").write_text("film,title\nx1,red Rome\n")
    settings = {key: json.dumps(value) for key, value in {**llm, **changes}.items()}
    args = ["run", "--config", str(films), "--expid", "DeepFM_LLMEmb_films", *as_arguments(settings)]
    assert main(args) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(message, last), last


def test_built_data_sets_and_other_rows_are_refused(run, films, tmp_path):
    run()
    folder = tmp_path / "data" / "films"
    edit(films / "dataset_config.yaml", "data_format: csv\n    train_data: " + str(tmp_path / "raw/film"), "X")
    text = (films / "dataset_config.yaml").read_text()
    text = text.replace("X_train.csv", f"data_format: parquet\n    train_data: {folder}/train.parquet")
    for split in ("valid", "test"):
        text = text.replace(str(tmp_path / f"raw/film_{split}.csv"), f"{folder}/{split}.parquet")
    (films / "dataset_config.yaml").write_text(text)
    with pytest.raises(UserError, match="cold_values needs the raw files of data set 'films': a built one"):
        run(cold_values="words")


def test_rows_of_another_order_are_refused(films, llm, tmp_path, monkeypatch):
    from fuxictr_llm.data import unseen as module

    read = module.RawValues.frame
    monkeypatch.setattr(module.RawValues, "frame", lambda self, *args: read(self, *args).reverse())
    experiment = load_experiment("DeepFM_LLMEmb_films", films, overrides={**llm, "cold_values": "words"})
    with pytest.raises(UserError, match="the rows of built data .* are not those of .* \\(column 'item' differs\\)"):
        prepare_run(experiment, "unused")
    assert read_json(tmp_path / "data" / "films" / "build.json")
