"""Rows to texts: what is told, what is skipped, and that every row of every loader finds its own."""

import logging
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import WORDS

from fuxictr_llm.common.checks import checked
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import write_json
from fuxictr_llm.config.language_models import RowTextsConfig
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.data.in_memory import count_rows
from fuxictr_llm.data.loader import make_loaders
from fuxictr_llm.experiment.preparation import prepare_data
from fuxictr_llm.llm.texts import row_texts
from fuxictr_llm.llm.texts import units as row_keys
from fuxictr_llm.llm.texts.row_texts import index_rows
from fuxictr_llm.llm.texts.units import KeyLookup, RowKeys
from support import edit

ENTITIES = {"user": {"id": "user", "text": ["city"]}, "item": {"text": ["color", "tags"]}}
PRICES = [0.25, 3.0, 1_200_000.0, np.nan]


@pytest.fixture
def shop(configs, tmp_path):
    """A run of the small shop with prices, missing and unseen values; `shop(text_fields=...)` is its index."""

    class Shop:
        def __init__(self):
            for split in ("train", "valid", "test"):
                raw = tmp_path / "raw" / f"{split}.csv"
                table = pd.read_csv(raw, dtype=str).assign(price=lambda t: np.resize(PRICES, len(t)))
                table.loc[0, ["color", "city"]] = [None, "Testville"]
                table.loc[1, ["color", "city", "tags"]] = None
                if split != "train":
                    table = pd.concat([table, table.tail(2)])
                else:
                    table.loc[0, "city"] = "Rome"
                table.to_csv(raw, index=False)
            edit(
                configs / "dataset_config.yaml",
                "    label_col:",
                "    - {name: price, active: true, dtype: float, type: numeric}\n    label_col:",
            )
            self.entities(ENTITIES)
            self.run = prepare_data(load_experiment("DeepFM_shop", configs), "unused")

        def entities(self, entities):
            words = yaml.safe_load((tmp_path / "words.yaml").read_text())
            (tmp_path / "words.yaml").write_text(yaml.safe_dump(words | {"entities": entities}, sort_keys=False))

        def __call__(self, **changes):
            return index_rows(RowTextsConfig(**changes), self.run)

        def batches(self, split="train", **changes):
            params = self.run.params | {"shuffle": False} | changes
            loaders = make_loaders(self.run.feature_map, params, "test" if split == "test" else "train")
            return list(loaders if split == "test" else loaders[("train", "valid").index(split)])

    return Shop()


def literal(row, fields):
    """The text of a row of the raw table, the slow way."""
    words = {
        "color": "color of the shirt",
        "city": "city of the shop",
        "tags": "tag of the shirt",
        "user": "id of the user",
        "price": "price",
    }
    sentences = []
    for field in fields:
        value = row[field]
        if field == "price":
            value = "" if value in ("", "nan") else {0.25: "0.25", 3.0: "3", 1.2e6: "1200000"}[float(value)]
        elif field == "tags":
            value = ", ".join({"hot": "on sale"}.get(tag, tag) for tag in value.split("^") if tag)
        if value and value != "Testville":
            sentences.append(f"{words[field]} is {value}.")
    return " ".join(sentences)


@pytest.mark.parametrize(
    ("changes", "units"),
    [
        ({}, {"user": ["city"], "item": ["color", "tags"]}),
        ({"text_units": "row"}, {"row": ["city", "color", "tags"]}),
        ({"text_fields": ["price", "tags", "user"]}, {"context": ["price"], "item": ["tags"], "user": ["user"]}),
    ],
)
@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_every_row_has_the_text_that_its_values_say(shop, tmp_path, changes, units, split):
    index = shop(**changes)
    assert [(unit.name, list(unit.fields)) for unit in index.units] == list(units.items())
    table = pd.read_csv(tmp_path / "raw" / f"{split}.csv", dtype=str, keep_default_na=False)
    rows = torch.cat([index.row_of(batch) for batch in shop.batches(split)])
    assert rows.dtype == torch.int64
    assert len(rows) == len(table)
    for number, (unit, fields) in enumerate(zip(index.units, units.values(), strict=True)):
        told = [unit[position] for position in index.positions[rows, number].tolist()]
        assert told == [literal(row, fields) for row in table.to_dict("records")]
    if split == "train":
        assert index.train_rows[rows].all() and not index.train_rows.all()


def test_equal_texts_are_one_and_the_index_is_in_order(shop):
    index = shop(text_fields=["color"])
    (unit,) = index.units
    assert sorted(unit[:]) == sorted(
        {"", *(f"color of the shirt is {word}." for word in ("red", "green", "blue", "black", "white", "grey"))}
    )
    assert unit.ids.dtype == np.int32
    assert unit.ids.shape == (7, 1)
    assert unit[unit.empty] == ""
    assert torch.equal(index.keys, index.keys.unique()) and index.keys.dtype == torch.int64
    assert index.positions.dtype == torch.int32 and index.positions.shape == (len(index), 1)
    again = shop(text_fields=["color"])
    assert again.sha256 == index.sha256
    assert shop(text_fields=["color", "city"], text_units="row").units[0].sha256 != unit.sha256


def test_rows_without_any_text_are_counted(shop, caplog):
    shop(text_fields=["color"], text_units="row")
    assert "1 of 7 distinct rows have an empty text of unit 'row'" in caplog.text


def test_npz_files_and_folders_of_blocks_have_the_same_index(shop):
    expected = shop(text_fields=["price", "tags", "city"])
    for split in ("train", "valid", "test"):
        table = pd.read_parquet(shop.run.params[f"{split}_data"])
        folder = Path("blocks") / split
        folder.mkdir(parents=True)
        for number, part in enumerate((table.iloc[:40], table.iloc[40:])):
            columns = {name: np.stack(part[name]) if name == "tags" else part[name].to_numpy() for name in part}
            np.savez(folder / f"part{number}.npz", **columns)
        shop.run.params[f"{split}_data"] = str(folder)
    assert shop(text_fields=["price", "tags", "city"]).sha256 == expected.sha256


def test_columns_that_a_run_leaves_out_are_not_told(shop):
    shop.run.feature_map.features.pop("color")
    assert [unit.fields for unit in shop().units] == [("city",), ("tags",)]


def test_without_entities_the_columns_of_words_make_one_text(shop, caplog):
    shop.entities({})
    with caplog.at_level(logging.INFO):
        (unit,) = shop().units
    assert unit.name == "row"
    assert unit.fields == ("color", "city", "tags")
    assert "a row is one text" in caplog.text
    assert caplog.text.count("the texts leave out user, price, whose values are no words: name all columns") == 1


def test_a_row_that_was_not_there_is_named(shop):
    index = shop()
    batch = {name: column.clone() for name, column in shop.batches("test")[0].items()}
    batch["color"][:3] = 77
    with pytest.raises(UserError, match="3 of 128 rows of a batch are not in the index of texts"):
        index.row_of(batch)


def test_keys_depend_on_column_and_place_and_not_on_how_a_number_is_held():
    keys = RowKeys([["a", "s"], ["x"]], {"x"})
    batch = {
        "a": torch.tensor([1, 2]),
        "s": torch.tensor([[1, 2], [2, 1]], dtype=torch.int32),
        "x": torch.tensor([0.5, 0.5]),
    }
    same = {"a": batch["a"].int(), "s": batch["s"].long(), "x": batch["x"].double()}
    assert torch.equal(keys(batch), keys(same)) and keys(batch).unique().numel() == 2
    assert not torch.equal(keys(batch), RowKeys([["s", "a"], ["x"]], {"x"}, salt=1)(batch))
    numbers = torch.tensor([0.0, -0.0, torch.nan, -torch.nan, 1.0])
    assert RowKeys([["x"]], {"x"})({"x": numbers}).unique().numel() == 3
    literal = sum(int(f) * int(v) for f, v in zip(row_keys._factors(0, "s", 2), (2, 1), strict=True))
    assert keys.of_units({**batch, "a": torch.zeros(2).long()})[0][1].item() == (literal + 2**63) % 2**64 - 2**63


@pytest.mark.parametrize("keys", [[], [5], [-(2**63), -1, 0, 1, 2**63 - 1], list(range(50)), "random"])
def test_keys_are_found_where_bisection_finds_them(keys):
    draw = np.random.default_rng(0)
    keys = np.sort(draw.integers(-(2**63), 2**63 - 1, 5000)) if keys == "random" else np.array(keys, np.int64)
    strange = np.array([-(2**63), 7, 2**62, 2**63 - 1], np.int64)
    asked = draw.permutation(np.concatenate([keys, strange]))
    places = KeyLookup(keys)(asked)
    assert np.array_equal(places >= 0, np.isin(asked, keys))
    assert np.array_equal(places[places >= 0], np.searchsorted(keys, asked[places >= 0]))


@pytest.mark.parametrize("broken", [{0}, set(range(9))])
def test_colliding_keys_are_made_anew(shop, monkeypatch, broken):
    factors = row_keys._factors
    monkeypatch.setattr(
        row_keys, "_factors", lambda salt, name, width: [1] * width if salt in broken else factors(salt, name, width)
    )
    if len(broken) > 1:
        with pytest.raises(UserError, match="have the same 64-bit keys, whatever the salt"):
            shop()
    else:
        index = shop()
        assert index.row_keys.salt == 1 and len(index.row_of(shop.batches("test")[0])) == 128


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_fields": ["colour"]}, "unknown column 'colour' in 'text_fields'; did you mean 'color'"),
        ({"text_fields": []}, "data set 'shop' has nothing to read: .* text_fields, .* value_texts"),
        ({"text_fields": "color"}, "config key 'text_fields' is 'color'"),
        ({"text_units": "rows"}, "config key 'text_units' is 'rows'"),
        ({"llm_max_text_tokens": 0}, "config key 'llm_max_text_tokens' is 0"),
        (
            {"value_texts": {"color": {"file": "a.csv", "key": "k"}}},
            "value_texts of 'color' lacks 'text'; it needs file, key, text",
        ),
        (
            {"value_texts": {"color": {"file": "a.csv", "kye": "k"}}},
            "unknown key 'kye' in value_texts of 'color'; did you mean 'key'",
        ),
    ],
)
def test_bad_settings_are_one_line(shop, changes, message):
    with pytest.raises(UserError, match=message):
        index_rows(checked(RowTextsConfig, changes), shop.run)


@pytest.mark.parametrize("kind", ["meta", "embedding"])
def test_a_column_of_a_type_that_cannot_be_told_is_named(shop, kind):
    shop.run.feature_map.features["color"] = {"type": kind}
    with pytest.raises(UserError, match=f"column 'color' is of type {kind}: .*; name a categorical or sequence column"):
        shop(text_fields=["color"])


def test_numbers_that_were_normalized_are_not_told(shop):
    (price,) = (column for column in shop.run.params["feature_cols"] if column["name"] == "price")
    price["normalizer"] = "StandardScaler"
    with pytest.raises(UserError, match="column 'price' is normalized, so its numbers mean nothing in words"):
        shop(text_fields=["price"])


def test_ids_alone_are_nothing_to_read(shop):
    shop.entities({"user": {"id": "user"}})
    for name in ("color", "city", "tags", "price"):
        shop.run.feature_map.features.pop(name)
    with pytest.raises(
        UserError, match="has nothing to read: no column's values are words; name columns with text_fields"
    ):
        shop()


@pytest.mark.parametrize(
    ("entities", "message"),
    [
        ({"user": {"id": "usr"}}, "unknown column 'usr' in entity 'user' of field config .* did you mean 'user'"),
        (
            {"user": {"text": ["city"]}, "item": {"text": ["city"]}},
            "column 'city' is in the entities 'user' and 'item'; leave it in one",
        ),
        ({"user": {"texts": ["city"]}}, "'entities' maps names to {id: column, text: \\[columns\\]}"),
        (["user"], "'entities' maps names to"),
        ({"user": {"text": "city"}}, "'entities' maps names to"),
    ],
)
def test_wrong_entities_are_named(shop, entities, message):
    shop.entities(entities)
    with pytest.raises(UserError, match=message):
        shop()


def test_entities_with_several_texts_are_counted_with_an_example(configs, tmp_path, caplog):
    """Each user has a city of its own, but for two; one of them differs in test alone."""
    for split in ("train", "valid", "test"):
        raw = tmp_path / "raw" / f"{split}.csv"
        table = pd.read_csv(raw, dtype=str).assign(city=lambda t: "City" + (t["user"].astype(int) % 7).astype(str))
        table.loc[:4, ["user", "city"]] = [
            ["3", "City3"],
            ["3", "Elsewhere"],
            ["4", "City4"],
            ["new", "A"],
            ["new", "B"],
        ]
        if split == "test":
            table.loc[5:6, ["user", "city"]] = [["4", "City6"], ["unseen", "City1"]]
        if split != "test":
            table = table[table["user"] != "new"]
        table.to_csv(raw, index=False)
    (tmp_path / "words.yaml").write_text("entities: {user: {id: user, text: [city]}, item: {text: [color]}}\n")
    run = prepare_data(load_experiment("DeepFM_shop", configs), "unused")
    index = index_rows(RowTextsConfig(), run)
    (warning,) = [record.getMessage() for record in caplog.records if "several texts" in record.getMessage()]
    assert warning.startswith(
        "2 of 30 values of 'user', the id of entity 'user', have several texts, and each is encoded"
    )
    assert "'3' has 2: 'city is" in warning
    assert "'city is Elsewhere.'" in warning
    assert "city is City3." in warning
    caplog.clear()
    assert index_rows(RowTextsConfig(text_units="row"), run).units[0].name == "row" and len(index.units) == 2
    assert "several texts" not in caplog.text


@pytest.fixture
def described(shop):
    """Colors with longer texts in a table, one of them empty and one of a value that there is not."""
    rows = [("red", "Warm and loud"), ("blue", "Calm."), ("green", " "), ("grey", None), ("mauve", "Rare")]

    def make(table="texts.csv", rows=rows, fields=(), **keys):
        frame = pd.DataFrame(rows, columns=["name", "about"])
        frame.to_parquet(table) if table.endswith("parquet") else frame.to_csv(table, index=False)
        side = {"color": {"file": table, "key": "name", "text": "about"} | keys}
        return shop(text_fields=list(fields), value_texts=side)

    return make


@pytest.mark.parametrize("table", ["texts.csv", "texts.parquet"])
def test_longer_texts_of_values_are_sentences_of_their_own(described, table):
    (unit,) = described(table).units
    assert unit.name == "item" and unit.fields == ("color",)
    assert sorted(unit[:]) == ["", "Calm.", "Warm and loud."]
    (unit,) = described(table, fields=["tags", "color"]).units
    assert any(text.endswith("color of the shirt is red. Warm and loud.") for text in unit[:])


@pytest.mark.parametrize(
    ("keys", "rows", "message"),
    [
        ({"file": "no.csv"}, None, "value_texts of 'color': 'no.csv' is missing"),
        ({"file": "texts.txt"}, None, "must end in .csv or .parquet"),
        (
            {"text": "abuot"},
            None,
            "unknown column 'abuot' in value_texts of 'color': 'texts.csv'; did you mean 'about'",
        ),
        ({"key": "names"}, None, "unknown column 'names' .* did you mean 'name'"),
        ({}, [("red", "a"), ("red", "b")], "has the key 'red' more than once"),
        (
            {},
            [("Red", "a"), ("1", "b")],
            "none of the 2 keys with a text in 'texts.csv' \\('Red', '1'\\) is a train value of the column",
        ),
        ({}, [], "none of the 0 keys"),
    ],
)
def test_wrong_tables_are_named(described, keys, rows, message):
    with pytest.raises(UserError, match=message):
        described(**keys, **({} if rows is None else {"rows": rows}))


def test_how_much_of_a_table_matches_is_in_the_log_and_in_the_record(described, shop, caplog):
    described(rows=[("red", "a"), (" blue", "b"), ("Green", "c"), ("mauve", "d"), ("grey", " ")])
    assert "value_texts of 'color': 1 of 6 train values have a text in 'texts.csv'; without one: " in caplog.text
    assert "keys of no train value: 3 (' blue', 'Green', 'mauve')" in caplog.text
    note = shop.run.notes["value_texts"]["color"]
    assert (note["train_values"], note["with_text"], note["keys_of_no_train_value"]) == (6, 1, 3)
    assert set(note["without_text"]) < set(WORDS) - {"red"} and note["such_keys"] == [" blue", "Green", "mauve"]
    caplog.clear()
    described(rows=[(word, "a") for word in WORDS])
    assert shop.run.notes["value_texts"]["color"]["with_text"] == 6
    assert not [record for record in caplog.records if "value_texts" in record.message and record.levelname != "INFO"]


def test_a_table_that_is_none_is_named(described, shop):
    Path("junk.parquet").write_bytes(b"junk")
    with pytest.raises(UserError, match="'junk.parquet' cannot be read"):
        shop(value_texts={"color": {"file": "junk.parquet", "key": "a", "text": "b"}})
    with pytest.raises(UserError, match="unknown column 'colour' in 'value_texts'"):
        shop(value_texts={"colour": {"file": "junk.parquet", "key": "a", "text": "b"}})


def test_keys_of_float_columns_fit_tables_that_hold_integers(shop):
    vocabulary = {"__PAD__": 0, "1.0": 1, "2.0": 2, "__OOV__": 3}
    write_json(shop.run.data_dir / "feature_vocab.json", {"color": vocabulary})
    pd.DataFrame({"k": [1, 2], "t": ["one", "two"]}).to_csv("t.csv", index=False)
    texts = shop(text_fields=[], value_texts={"color": {"file": "t.csv", "key": "k", "text": "t"}}).units[0][:]
    assert sorted(texts) == ["", "one.", "two."]


def test_indexing_shows_rows_and_distinct_texts(shop, monkeypatch, capfd, shown_at_once):
    monkeypatch.setattr(row_texts, "CHUNK", 300)
    capfd.readouterr()
    index = shop(text_units="row", text_fields=["user", "city", "color", "tags"])
    lines = [line.split(" [")[0] for line in capfd.readouterr().err.splitlines() if "/s" in line]
    rows = sum(map(count_rows, (shop.run.params[f"{split}_data"] for split in ("train", "valid", "test"))))
    assert re.fullmatch(rf"indexing texts: +\d+% 300/{rows}", lines[0])
    assert f"indexing texts: 100% {rows}/{rows}" in lines
    assert any(re.fullmatch(r"distinct texts of unit row: +\d+% 300/\d+", line) for line in lines)
    assert len(index.units) == 1
