"""Histories of rows, against a literal version: never the row itself, no label but train's, no row of valid and test."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from fuxictr_llm.common.checks import checked
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.experiment.preparation import prepare_data
from fuxictr_llm.llm.texts import histories
from fuxictr_llm.llm.texts.histories import find_histories
from fuxictr_llm.llm.texts.row_texts import index_rows
from fuxictr_llm.model_zoo.ELEC.config import ELECConfig
from support import edit

ASKED = {"of": "item", "liked": "click"}
SPLITS = ("train", "valid", "test")


@pytest.fixture
def shop(configs, tmp_path):
    """`shop` with users and items that come again, each item with a text; users and items of test that train lacks."""
    generator = np.random.default_rng(0)
    for split, rows in {"train": 400, "valid": 60, "test": 60}.items():
        first = 0 if split == "train" else 2
        table = pl.DataFrame(
            {
                "click": generator.integers(0, 2, rows),
                "user": [f"u{n}" for n in generator.integers(0, 12 + first, rows)],
                "item": (items := [f"i{n}" for n in generator.integers(0, 15 + first, rows)]),
                "title": [f"title {item}" for item in items],
                "before": ["^".join(f"i{n}" for n in generator.choice(15, 3) if f"i{n}" != item) for item in items],
            }
        )
        table.write_csv(tmp_path / "raw" / f"{split}.csv")
    config = configs / "dataset_config.yaml"
    edit(config, "[color, city, user]", "[user, item, title]")
    edit(config, "name: tags", "name: before")
    edit(config, "max_len: 3}", "max_len: 3, share_embedding: item}")
    (tmp_path / "words.yaml").write_text(
        "fields: {user: id of the user, item: id of the item, title: title, before: id of an item before}\n"
        "entities: {user: {id: user, text: []}, item: {id: item, text: [title]}}\n",
        encoding="utf-8",
    )

    def prepared(**changes):
        run = prepare_data(load_experiment("DeepFM_ELEC_shop", configs, overrides=changes), "unused")
        return run, index_rows(checked(ELECConfig, run.params), run)

    return prepared


def rows_of(run):
    """Split -> its built columns."""
    return {split: pl.read_parquet(run.params[f"{split}_data"]) for split in SPLITS}


def found(told, index, rows):
    """For each row the titles' texts of its history, in order."""
    batch = {name: torch.from_numpy(rows[name].to_numpy().copy()) for name in ("user", "item", "title")}
    if "before" in told.row_keys.units[0]:
        batch["before"] = torch.tensor(rows["before"].to_list())
    places = told.row_of(batch)
    own = [index.units[0][int(text)] for text in told.own[places]]
    lists = [[index.units[0][text] for text in line if text >= 0] for line in told.items_of(places).tolist()]
    return own, lists


@pytest.mark.parametrize("past", [True, False])
def test_a_derived_history_is_the_literal_one(shop, past, monkeypatch):
    monkeypatch.setattr(histories, "MOST", 6)
    run, index = shop()
    told = find_histories({**ASKED, "rows": "past" if past else "folds"}, run, index)
    data = rows_of(run)
    train = [tuple(map(int, row)) for row in data["train"].select("user", "item", "title", "click").iter_rows()]
    titles = {index.row_of({"title": torch.tensor([title])}).item(): title for _, _, title, _ in train}
    text_of = {title: index.units[0][int(index.positions[row, 0])] for row, title in titles.items()}
    pairs = [row[:2] for row in train]
    fold = {pair: int(histories.fold_of(np.array([pair[0]]), np.array([pair[1]]))[0]) for pair in set(pairs)}
    known = {row[0] for row in train}
    longest = 0
    for split in SPLITS:
        own, lists = found(told, index, data[split])
        rows = data[split].select("user", "item", "title").iter_rows()
        for (user, item, title), text, line in zip(rows, own, lists, strict=True):
            mine = [(place, row) for place, row in enumerate(train) if row[0] == user and row[3] == 1 and user in known]
            if (user, item) in fold:
                first = pairs.index((user, item))
                mine = [
                    (place, row)
                    for place, row in mine
                    if (place < first if past else fold[row[:2]] != fold[user, item]) and row[:2] != (user, item)
                ]
            assert line == [text_of[row[2]] for _, row in mine][-6:]
            assert text == text_of.get(title, "")
            longest = max(longest, len(mine))
    assert longest > 6


def test_a_given_history_tells_the_items_that_have_rows_of_their_own(shop):
    run, index = shop()
    told = find_histories({"column": "before"}, run, index)
    for rows in rows_of(run).values():
        own, lists = found(told, index, rows)
        by_id = dict(zip(rows["item"].to_list(), own, strict=True))
        for ids, line in zip(rows["before"].to_list(), lists, strict=True):
            assert len(line) == sum(index > 0 for index in ids)
            assert all(
                text == by_id[index] for index, text in zip([i for i in ids if i], line, strict=True) if index in by_id
            )


def test_labels_of_other_splits_are_not_read_and_those_of_train_decide(shop, tmp_path):
    digests = []
    for split in (None, "valid", "test", "train"):
        if split:
            path = tmp_path / "raw" / f"{split}.csv"
            pl.read_csv(path).with_columns(click=1 - pl.col("click")).write_csv(path)
        digests.append(find_histories(ASKED, *shop()).sha256)
    assert digests[0] == digests[1] == digests[2] != digests[3]


def test_other_ways_of_deriving_are_other_histories(shop):
    run, index = shop()
    asked = [ASKED, {**ASKED, "rows": "past"}, {"column": "before"}, {**ASKED, "user": "title"}]
    assert len({find_histories(one, run, index).sha256 for one in asked}) == 4


@pytest.mark.parametrize(
    ("split", "rows"),
    [
        ({}, "folds"),
        ({"time_column": "before"}, "folds"),
        ({"prepare_split": "random"}, "folds"),
        ({"prepare_split": "time"}, "past"),
        ({"prepare_split": "time", "resplit": {"by": "random", "number": 1, "of": 2}}, "folds"),
        ({"prepare_split": "time", "resplit": {"by": "time", "number": 1, "of": 2}}, "past"),
        ({"time_column": "before", "resplit": {"by": "time", "number": 1, "of": 2}}, "past"),
    ],
)
def test_train_rows_before_are_the_default_only_where_rows_are_in_the_order_of_time(shop, split, rows):
    run, index = shop()
    run.params |= split
    expected = find_histories({**ASKED, "rows": rows}, run, index)
    assert find_histories(ASKED, run, index).sha256 == expected.sha256


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"column": "befor"}, "unknown column 'befor'"),
        ({"column": "title"}, "column 'title' is of type categorical, not a sequence"),
        ({"of": "item", "liked": "klick"}, "unknown label 'klick'.*did you mean 'click'"),
        ({"of": "title", "liked": "click"}, "'title' is the id of no entity that has a text of its own"),
        ({"of": "item", "liked": "click", "user": "usr"}, "unknown column 'usr'"),
    ],
)
def test_what_does_not_fit_the_data_set_is_named(shop, asked, message):
    with pytest.raises(UserError, match=message):
        find_histories(asked, *shop())


def test_a_column_that_holds_the_rows_own_item_is_refused(shop, tmp_path):
    path = Path(tmp_path / "raw" / "valid.csv")
    table = pl.read_csv(path)
    table.with_columns(before=pl.concat_str("before", "item", separator="^")).write_csv(path)
    with pytest.raises(UserError, match=r"column 'before' holds the row's own 'item' in \d+ of \d+ distinct rows"):
        find_histories({"column": "before"}, *shop())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_history": {"of": "item"}}, "text_history lacks 'liked'"),
        ({"text_history": {"liked": "click"}}, "text_history lacks 'of'"),
        ({"text_history": {}}, "text_history lacks 'of'"),
        ({"text_history": {"column": "before", "liked": "click"}}, "unknown key 'liked'"),
        ({"text_history": {**ASKED, "rows": "all"}}, "unknown value 'all'"),
        ({"text_history": ASKED, "text_units": "row"}, "text_history needs texts of items"),
    ],
)
def test_keys_that_do_not_fit_each_other_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        ELECConfig(**changes)
