"""What is counted in a stream and looked up a column at a time is what FuxiCTR makes cell by cell, to the last id."""

import gzip
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as fuzz
from hypothesis import strategies as st
from raw_tables import column, settings

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.data import id_files
from fuxictr_llm.data.id_columns import IdColumns
from raw_forms import write_published
from support_build import assert_as_fuxictr, built_by_us

ROWS = {"train": 120, "valid": 37, "test": 20}
WORDS = ["red", "blue", "grün", "a b", "NA", "0", "01", "__OOV__", "__PAD__", "x" * 40, "rare"]


def drawn(seed, pool, rows, missing=0.2):
    """Values of a pool, the last one seldom, some missing."""
    draw = np.random.default_rng([seed, rows])
    weights = np.array([*[10.0] * (len(pool) - 1), 1.0])
    chosen = draw.choice(len(pool), rows, p=weights / weights.sum())
    return [None if draw.random() < missing else pool[index] for index in chosen]


def sequences(seed, splitter, rows):
    draw = np.random.default_rng([seed, rows])
    words = ["a", "b", "cc", "red", "blue", "__PAD__", "none", ""]
    return [splitter.join(draw.choice(words, draw.integers(0, 6))) or None for _ in range(rows)]


def tables(**made):
    """Column -> function of a seed and a number of rows, as tables by split."""
    return {
        split: pl.DataFrame(
            {"click": np.arange(rows) % 2}
            | {name: values(seed, rows) for seed, (name, values) in enumerate(made.items())}
        )
        for split, rows in ROWS.items()
    }


def words(seed, rows):
    # valid and test have words that train lacks.
    return drawn(seed, WORDS if rows == ROWS["train"] else [*WORDS, "new", "newer"], rows)


def wholes(seed, rows):
    return drawn(seed, [-3, 0, 1, 2**31, 2**53 + 1, 7 if rows == ROWS["train"] else 8], rows)


def floats(seed, rows):
    return drawn(seed, [-0.0, 0.1, 1.0, 1e300, float(2**60), 2.5 if rows == ROWS["train"] else 3.5], rows)


CATEGORICAL = [
    column("word", "categorical"),
    column("filled", "categorical", fill_na="none"),
    column("often", "categorical", min_categr_count=9),
    column("whole", "categorical", "int"),
    column("whole_filled", "categorical", "int", fill_na=-3, min_categr_count=2),
    column("float", "categorical", "float"),
    column("off", "categorical", "str", active=False),
    column("group", "meta", "int"),
    column("team", "meta"),
    column("kept", "meta", "int", remap=False),
]
OF_CATEGORICAL = dict.fromkeys(("word", "filled", "often", "off", "team"), words) | {
    "whole": wholes,
    "whole_filled": wholes,
    "float": floats,
    "group": wholes,
    "kept": lambda seed, rows: [*range(rows)],
}


@pytest.mark.parametrize("data_format", ["csv", "parquet"])
@pytest.mark.parametrize("least", [1, 4])
def test_single_values(tmp_path, monkeypatch, data_format, least):
    monkeypatch.setattr(id_files, "SLICE_ROWS", 50)  # 120 rows: the last slice is a part
    params = settings(tmp_path, CATEGORICAL, tables(**OF_CATEGORICAL), data_format, min_categr_count=least)
    assert_as_fuxictr(params, tmp_path / "theirs")


def test_numbers(tmp_path):
    names = {"plain": {}, "standard": {"normalizer": "StandardScaler"}, "min_max": {"normalizer": "MinMaxScaler"}}
    columns = [column(name, "numeric", "float", fill_na=2.5, **more) for name, more in names.items()]
    columns += [column("whole", "numeric", "int", normalizer="StandardScaler"), column("plain_whole", "numeric", "int")]
    made = {name: lambda seed, rows: drawn(seed, [0.1, -2.0, 1e5, 3.25], rows) for name in names}
    made |= {name: lambda seed, rows: drawn(seed, [4, -2, 100, 9], rows) for name in ("whole", "plain_whole")}
    assert_as_fuxictr(settings(tmp_path, columns, tables(**made), "csv"), tmp_path / "theirs")


@pytest.mark.parametrize("data_format", ["csv", "parquet"])
def test_sequences(tmp_path, monkeypatch, data_format):
    monkeypatch.setattr(id_files, "SLICE_ROWS", 50)
    forms = {
        "longest": {},
        "cut": {"max_len": 2},
        "cut_pre": {"max_len": 2, "padding": "pre"},
        "wide_pre": {"max_len": 9, "padding": "pre"},
        "filled": {"fill_na": "none", "max_len": 4},
        "often": {"min_categr_count": 30},
        "spaces": {"splitter": " "},
        "two": {"splitter": "||", "feature_encoder": None},
    }
    columns = [column(name, "sequence", **more) for name, more in forms.items()]
    signs = {name: more.get("splitter", "^") for name, more in forms.items()}
    made = {name: lambda seed, rows, sign=sign: sequences(seed, sign, rows) for name, sign in signs.items()}
    assert_as_fuxictr(settings(tmp_path, columns, tables(**made), data_format), tmp_path / "theirs")


def test_shared_embeddings(tmp_path):
    columns = [
        column("color", "categorical", min_categr_count=12),
        column("other", "categorical", share_embedding="color", min_categr_count=10),
        column("tags", "sequence", share_embedding="color", max_len=3),
        column("number", "categorical", "int", min_categr_count=12),
        column("number_too", "categorical", "int", share_embedding="number"),
    ]
    made = {"color": words, "other": words, "tags": lambda seed, rows: sequences(seed, "^", rows)}
    made |= {"number": wholes, "number_too": wholes}
    assert_as_fuxictr(settings(tmp_path, columns, tables(**made), "csv"), tmp_path / "theirs")


def test_pretrained_embeddings(tmp_path):
    # "rare" has an id of its own because the file has it, and so has a word that only valid and test have.
    np.savez(tmp_path / "words.npz", key=np.array(["red", "rare", "new", "nowhere"]), value=np.ones((4, 3)))
    columns = [column("color", "categorical", min_categr_count=5, pretrained_emb=str(tmp_path / "words.npz"))]
    columns[0] |= {"pretrain_dim": 3, "freeze_emb": False}
    params = settings(tmp_path, columns, tables(color=words), "csv")
    assert_as_fuxictr(params, tmp_path / "theirs")


@pytest.mark.parametrize("dataset_id", ["criteo_x4_001", "avazu_x4_001", "kkbox_x1", "taobaoad_x1"])
def test_packaged_processors(tmp_path, dataset_id):
    params = load_experiment(f"DeepFM_{dataset_id}", overrides={"num_threads": 1}).params
    write_published(params)
    assert_as_fuxictr(params, tmp_path / "theirs")


POOLS = {"str": st.text("ab^ '\"ü", min_size=1, max_size=3), "int": st.integers(-(2**62), 2**62)}
POOLS["float"] = st.floats(-1e9, 1e9)


@st.composite
def columns_and_tables(draw):
    """One to three columns of any kind that is counted, and their values."""
    columns, made = [], {}
    for index in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["categorical", "sequence", "meta"]))
        dtype = "str" if kind == "sequence" else draw(st.sampled_from(["str", "int", "float"]))
        dtype = "int" if kind == "meta" and dtype == "float" else dtype
        col = column(f"c{index}", kind, dtype)
        if kind != "meta":
            col |= draw(st.fixed_dictionaries({}, optional={"min_categr_count": st.integers(1, 3)}))
        if kind == "sequence":
            more = {"max_len": st.integers(1, 4), "padding": st.sampled_from(["pre", "post"])}
            col |= draw(st.fixed_dictionaries({}, optional=more))
        pool = draw(st.lists(POOLS[dtype], min_size=1, max_size=5, unique=True))
        columns.append(col)
        made[col["name"]] = lambda seed, rows, pool=pool: drawn(seed, pool, rows)
    return columns, tables(**made), draw(st.integers(1, 40))


@fuzz(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[*HealthCheck])
@given(columns_and_tables())
def test_made_data(tmp_path_factory, case):
    columns, made, slice_rows = case
    folder = tmp_path_factory.mktemp("made")
    params = settings(folder, columns, made)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(id_files, "SLICE_ROWS", slice_rows)
        try:
            assert_as_fuxictr(params, folder / "theirs")
        except UserError as error:  # a column may have no value often enough
            assert "has no value" in str(error)


@pytest.mark.parametrize("damage", [False, True])
def test_packed_csv(tmp_path, damage):
    params = settings(tmp_path, CATEGORICAL, tables(**OF_CATEGORICAL), "csv", min_categr_count=2)
    plain = built_by_us(params)
    for split in ROWS:
        packed = gzip.compress(Path(params[f"{split}_data"]).read_bytes())
        Path(f"{params[f'{split}_data']}.gz").write_bytes(packed[:-20] if damage and split == "valid" else packed)
    params = {**params, **{f"{split}_data": f"{params[f'{split}_data']}.gz" for split in ROWS}, "dataset_id": "packed"}
    if damage:
        with pytest.raises(UserError, match="valid.csv.gz' cannot be read"):
            built_by_us(params)
        return
    again = built_by_us(params)
    assert again["feature_vocab.json"] == plain["feature_vocab.json"]
    for split in ROWS:
        assert all(np.array_equal(again[split][name], values) for name, values in plain[split].items())


def test_every_kind_is_looked_up_by_column(tmp_path, monkeypatch):
    seen = []
    known = IdColumns.__init__

    def noted(columns, *args):
        known(columns, *args)
        seen.append({*columns._texts, *columns._numbers, *columns._sequences})

    monkeypatch.setattr(IdColumns, "__init__", noted)
    cols = [*CATEGORICAL, column("tags", "sequence")]
    made = tables(**OF_CATEGORICAL, tags=lambda seed, rows: sequences(seed, "^", rows))
    built_by_us(settings(tmp_path, cols, made, "csv"))
    assert seen == [{col["name"] for col in cols} - {"off", "kept"}] * 3
