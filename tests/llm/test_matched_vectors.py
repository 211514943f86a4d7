"""Given vectors (`pretrained_emb`): how many values have one is said, and a file that cannot be used is one line."""

import logging
from pathlib import Path

import h5py
import numpy as np
import polars as pl
import pytest

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.experiment.preparation import prepare_run
from fuxictr_llm.experiment.run import build_model, run_experiment
from support import edit, embedding_of, vocabulary

CITIES = ["Rome", "Oslo", "Bern", "Cairo", "Lima", "Malmö"]
USERS = [str(user) for user in range(30)]


def vectors_of(keys, width=4):
    return np.arange(1, 1 + len(keys) * width, dtype=np.float32).reshape(len(keys), width)


def write(path, keys, vectors=None):
    keys = np.asarray(keys)
    vectors = vectors_of(keys) if vectors is None else np.asarray(vectors)
    if path.endswith("npz"):
        np.savez(path, key=keys, value=vectors)
    elif path.endswith("h5"):
        with h5py.File(path, "w") as file:
            file["key"] = keys.astype(object) if keys.dtype.kind == "U" else keys
            file["value"] = vectors
    else:
        pl.DataFrame({"key": keys, "value": vectors}).write_parquet(path)


def prepared_with(configs, column, path, *, at_run_time, dtype="str", **keys):
    """The prepared run of a DNN whose column has the file, named in the data set's config or in `feature_specs`."""
    old = "- {name: [color, city, user], active: true, dtype: str, type: categorical}"
    others = [name for name in ("color", "city", "user") if name != column]
    given = {} if at_run_time else {"pretrained_emb": path, "pretrain_dim": 4, **keys}
    own = ", ".join(f"{key}: {value}" for key, value in {"name": column, "dtype": dtype, **given}.items())
    rest = f"[{', '.join(others)}], active: true, dtype: str, type: categorical}}"
    edit(configs / "dataset_config.yaml", old, f"- {{name: {rest}\n    - {{{own}, active: true, type: categorical}}")
    specs = [{"name": column, "pretrained_emb": str(Path(path).absolute()), "pretrain_dim": 4, **keys}]
    overrides = {"feature_specs": specs} if at_run_time else {}
    return prepare_run(load_experiment("DNN_shop", configs, overrides=overrides), "unused")


@pytest.mark.parametrize("at_run_time", [True, False])
@pytest.mark.parametrize(
    ("file", "column", "dtype", "keys", "difference"),
    [
        ("v.npz", "city", "str", ["ROME", "OSLO"], "they differ by upper and lower case"),
        ("v.h5", "city", "str", [" Rome", "Oslo "], "they differ by spaces around them"),
        ("v.parquet", "city", "str", ["Paris", "Kyiv"], "save the keys as they stand"),
        (
            "v.npz",
            "user",
            "int",
            [1.0, 2.0],
            "they differ by how numbers are written; save keys of whole numbers as integers",
        ),
        (
            "v.parquet",
            "user",
            "str",
            [1.0, 2.0],
            "they differ by how numbers are written; save keys of whole numbers as integers",
        ),
        ("v.h5", "user", "int", ["001", "002"], "they differ by how numbers are written"),
        ("v.npz", "user", "int", [1001, 1002], "save the keys as they stand"),
    ],
)
def test_keys_that_match_no_value_are_one_error_with_both_sides(
    configs, at_run_time, file, column, dtype, keys, difference
):
    write(file, keys)
    with pytest.raises(UserError) as error:
        prepared_with(configs, column, file, at_run_time=at_run_time, dtype=dtype)
    message, key = str(error.value), str(np.asarray(keys)[0])
    assert f"of column {column!r}: none of its 2 keys ({key!r}, " in message and difference in message
    assert f"is one of the {6 if column == 'city' else 30} train values ('" in message and file in message


@pytest.mark.parametrize("at_run_time", [True, False])
@pytest.mark.parametrize(
    ("file", "column", "dtype", "keys"),
    [
        ("v.npz", "city", "str", CITIES),
        ("v.npz", "city", "str", [*CITIES[:4], "Paris"]),
        ("v.h5", "city", "str", CITIES[:5]),
        ("v.h5", "user", "int", np.array(USERS, dtype="S")),
        ("v.parquet", "user", "str", USERS),
        ("v.npz", "user", "int", np.arange(30)),
        ("v.npz", "user", "int", np.arange(-5, 60)),  # beyond those of train: building was a traceback
        ("v.h5", "user", "int", np.arange(20, 60, dtype=np.uint16)),
        ("v.npz", "user", "float", np.arange(40.0)),
    ],
)
def test_values_get_their_vectors_and_how_many_is_in_log_and_record(
    configs, at_run_time, file, column, dtype, keys, caplog
):
    caplog.set_level(logging.INFO)
    write(file, keys)
    run = prepared_with(configs, column, file, at_run_time=at_run_time, dtype=dtype)
    layer = embedding_of(build_model(run), column)
    texts = [each.decode() if isinstance(each, bytes) else str(each) for each in keys]
    values = [value for value in vocabulary(column) if value not in ("__PAD__", "__OOV__")]
    values = [value for value in values if vocabulary(column)[value] < vocabulary(column)["__OOV__"]]
    weights = layer.pretrain_embedding.weight
    for value in values:
        wanted = vectors_of(keys)[texts.index(value)] if value in texts else np.zeros(4)
        assert np.allclose(weights[vocabulary(column)[value]].numpy(), wanted)
    found = sum(value in texts for value in values)
    path = str(Path(file).absolute()) if at_run_time else file
    assert run.notes["given_vectors"] == {
        column: {"file": path, "keys": len(texts), "values": len(values), "with_vector": found}
    }
    said = f"{found} of {len(values)} train values of {column!r} have a vector in {path}"
    levels = [each.levelname for each in caplog.records if said in each.getMessage()]
    assert levels == ["INFO" if 2 * found >= len(values) else "WARNING"]


def test_a_file_that_matches_a_small_part_says_what_the_others_differ_by(configs, caplog):
    write("v.npz", ["Rome", "OSLO", "LIMA", "Rome"])
    prepared_with(configs, "city", "v.npz", at_run_time=False)
    messages = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert any("has a key more than once ('Rome', say): its last vector counts" in each for each in messages)
    (partly,) = [each for each in messages if "1 of 6 train values of 'city' have a vector in v.npz" in each]
    assert "keys of no train value: 'LIMA', 'OSLO'): they differ by upper and lower case" in partly


@pytest.mark.parametrize("at_run_time", [True, False])
@pytest.mark.parametrize(
    ("file", "keys", "vectors", "message"),
    [
        (
            "v.npz",
            CITIES,
            np.full((6, 4), np.nan),
            "NaN or infinity (as float32) in 6 of 6 vectors, first in that of key",
        ),
        ("v.h5", CITIES[:2], [[0, 1, 2, np.inf]] * 2, "NaN or infinity (as float32) in 2 of 2 vectors"),
        ("v.npz", CITIES, np.full((6, 4), 1e300), "first in that of key 'Rome'; mend it"),
        ("v.npz", CITIES, np.ones((5, 4)), "is not one vector a key: 'key' has shape (6,), 'value' (5, 4) of float64"),
        ("v.npz", CITIES, np.ones(6), "is not one vector a key"),
        ("v.npz", CITIES, np.full((6, 4), "x"), "is not one vector a key"),
        ("v.npz", np.array([], dtype=str), np.ones((0, 4)), "is empty"),
        ("v.npz", CITIES, np.ones((6, 3)), "has vectors of 3 numbers, and pretrain_dim is 4; set pretrain_dim: 3"),
        ("v.npz", np.array(CITIES, dtype=object), np.ones((6, 4)), "cannot be read (Object arrays cannot be loaded"),
        ("v.h5", CITIES, np.ones((6, 4)), "has the key 'Malmö': FuxiCTR reads ASCII alone from h5; save it as npz"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_its_column(configs, at_run_time, file, keys, vectors, message):
    write(file, keys, vectors)
    with pytest.raises(UserError) as error:
        prepared_with(configs, "city", file, at_run_time=at_run_time)
    assert message in str(error.value)
    assert "of column 'city'" in str(error.value)
    assert file in str(error.value)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("v.npz", b"no archive", "cannot be read"),
        ("v.h5", b"", "cannot be read"),
        ("v.txt", b"Rome 1 2 3 4", "must end in h5, npz or parquet"),
        ("v.npz", None, "is missing"),
    ],
)
def test_what_is_no_file_of_vectors_at_all(configs, file, content, message):
    if content is not None:
        Path(file).write_bytes(content)
    with pytest.raises(UserError, match=f"pretrained_emb .*{file}.* of column 'city' {message}"):
        prepared_with(configs, "city", file, at_run_time=True)


@pytest.mark.parametrize(("keys", "key"), [(["7", "Rome"], "'Rome'"), ([7.0, 7.5], "7.5"), ([7.0, np.nan], "nan")])
def test_keys_that_are_of_no_use_for_a_column_of_integers(configs, keys, key):
    write("v.npz", keys)
    with pytest.raises(UserError, match=f"'v.npz' of column 'user' has the key {key}, and the column is int"):
        prepared_with(configs, "user", "v.npz", at_run_time=False, dtype="int")


def test_a_file_beside_the_config_is_named_whole_in_feature_specs(configs):
    write("v.npz", CITIES)
    specs = [{"name": "city", "pretrained_emb": "v.npz", "pretrain_dim": 4}]
    with pytest.raises(
        UserError, match=f"in feature_specs FuxiCTR looks for it in .*give {str(Path('v.npz').absolute())!r}"
    ):
        prepare_run(load_experiment("DNN_shop", configs, overrides={"feature_specs": specs}), "unused")


def test_inactive_columns_and_models_that_read_no_vectors(configs, caplog):
    write("v.npz", CITIES)
    run = prepared_with(configs, "city", "v.npz", at_run_time=False)
    build_model(run)
    assert not any("no effect" in each.getMessage() for each in caplog.records)
    result = run_experiment(load_experiment("LR_shop", configs, overrides={"epochs": 1}))
    log = next(Path("checkpoints/shop").glob("*/LR_shop*.log")).read_text()
    assert "LR reads no pretrained_emb: the given vectors of column 'city' have no effect" in log
    assert "6 of 6 train values of 'city' have a vector in v.npz" in log
    assert result.record["notes"]["given_vectors"]["city"]["with_vector"] == 6
    edit(configs / "dataset_config.yaml", "pretrain_dim: 4, active: true", "pretrain_dim: 4, active: false")
    assert "city" not in prepare_run(load_experiment("DNN_shop", configs), "unused").feature_map.features
