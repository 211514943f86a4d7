"""Vectors of feature values: texts, files, reduction, the columns that ask for them, and what is kept of a killed run."""

import errno
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fuxictr.preprocess.tokenizer import load_pretrain_emb

from fuxictr_llm.__main__ import main
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.config.language_models import ValueVectorsConfig
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.experiment.preparation import prepare_data
from fuxictr_llm.experiment.run import build_model, run_experiment
from fuxictr_llm.llm.language_model import LanguageModel, load_language_model
from fuxictr_llm.llm.vectors.store import VectorStore
from fuxictr_llm.llm.vectors.values import make_value_vectors, shaped
from support import as_arguments, edit, embedding_of, vocabulary

RESERVED = {"__PAD__", "__OOV__"}


@pytest.fixture
def encode(configs, llm, capsys):
    """Runs the command; the paths that it prints."""

    def run(*args, expid="DeepFM_shop"):
        code = main(["encode", "--config", str(configs), "--expid", expid, *as_arguments(llm), *args])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return [Path(line) for line in printed.out.split()]

    return run


def test_a_file_holds_the_mean_of_the_hidden_states_of_each_value_in_words(encode, llm):
    (path,) = encode("--values", "tags")
    keys, vectors = load_pretrain_emb(str(path))
    assert set(keys) == {"new", "old", "hot"} and vectors.dtype == np.float32
    model = load_language_model(Path(llm["language_model"]), "float32", "mean", gpu=-1)
    for key, vector in zip(keys, vectors, strict=True):
        words = {"hot": "on sale"}.get(key, key)
        ids = model.tokenizer(f"tag of the shirt: {words}")["input_ids"]
        with torch.no_grad():
            literal = model.model(torch.tensor([ids])).last_hidden_state[0].mean(dim=0)
        assert np.allclose(vector, literal.numpy(), atol=1e-5)


def test_the_command_prints_a_file_a_column_with_all_train_values(encode):
    city, user = encode("--values", "city", "user")
    for path, column in ((city, "city"), (user, "user")):
        keys, vectors = load_pretrain_emb(str(path))
        assert set(keys) == vocabulary(column).keys() - RESERVED and vectors.shape == (len(keys), 16)
    assert "Malmö" in load_pretrain_emb(str(city))[0]
    assert encode("--values", "city", "user") == [city, user]
    reduced = encode("--values", "city", "--set", "value_dim=3")
    assert load_pretrain_emb(str(reduced[0]))[1].shape == (6, 3)
    plain = encode("--values", "city", "--set", "value_text=plain")
    assert not np.allclose(np.load(plain[0])["value"], np.load(city)["value"])


def test_h5_is_for_ascii_values(encode, configs, capsys):
    (path,) = encode("--values", "color", "--format", "h5")
    keys, vectors = load_pretrain_emb(str(path))
    (npz,) = encode("--values", "color")
    assert path.suffix == ".h5" and (keys.astype(str) == np.load(npz)["key"]).all()
    assert np.array_equal(vectors, np.load(npz)["value"])
    args = ["encode", "--config", str(configs), "--expid", "DeepFM_shop"]
    assert main([*args, "--values", "city", "--format", "h5"]) == 2
    assert "column 'city' has the value 'Malmö': FuxiCTR reads no such h5; use --format npz" in capsys.readouterr().err
    assert main([*args, "--format", "h5"]) == 2
    assert "--format goes with --values" in capsys.readouterr().err


def test_a_method_has_no_say_in_the_values_of_a_column(encode):
    assert encode("--values", "color", expid="DeepFM_LLaCTR_shop") == encode("--values", "color")
    assert not Path("cache/ssft").exists()


def test_texts_without_tokens_have_zeros_and_no_place_in_a_file(llm, prepared, monkeypatch, caplog):
    frame = load_language_model(Path(llm["language_model"]), "float32", "mean", gpu=-1)
    frame.before = []
    vectors = frame.encode(["red", "", "blue"])
    assert vectors[1].eq(0).all()
    assert vectors[[0, 2]].isfinite().all()
    assert vectors[[0, 2]].ne(0).any()
    assert frame.encode([""]).shape == (1, 16)
    encode = LanguageModel.encode

    def without(self, texts, limit, kept=None):
        self.before = []
        return encode(self, ["" if text.endswith(empty) else text for text in texts], limit=limit)

    monkeypatch.setattr(LanguageModel, "encode", without)
    empty = ("red", "blue")
    spec = prepared({"color": {}}).feature_map.features["color"]
    assert set(np.load(spec["pretrained_emb"])["key"]) == {"green", "black", "white", "grey"}
    assert "2 values of 'color' have no token and no vector" in caplog.text
    empty = ""
    with pytest.raises(UserError, match="column 'city': the language model has no token for any of its values"):
        prepared({"city": {}})


def test_a_pca_equals_the_literal_one():
    vectors = np.random.default_rng(0).normal(size=(40, 9)).astype(np.float32) * np.linspace(3, 1, 9, dtype=np.float32)
    reduced, facts = shaped(vectors + 100, 4, scale=0.5)
    centred = vectors - vectors.mean(axis=0)
    u, s, _ = np.linalg.svd(centred.astype(np.float64), full_matrices=False)
    literal = u[:, :4] * s[:4]
    literal *= 0.5 / np.sqrt((literal**2).mean())
    signs = np.sign((literal * reduced).sum(axis=0))
    assert np.allclose(reduced, literal * signs, atol=1e-3) and reduced.dtype == np.float32
    assert facts["explained_variance"] == pytest.approx((s[:4] ** 2).sum() / (s**2).sum(), abs=1e-3)
    assert np.array_equal(shaped(vectors + 100, 4, scale=0.5)[0], reduced)


def test_components_that_there_are_not_are_zeros():
    vectors = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    reduced, facts = shaped(vectors, 8, scale=None)
    assert reduced.shape == (3, 8)
    assert (reduced[:, 2:] == 0).all()
    assert facts["explained_variance"] == 1
    assert shaped(vectors[:1], 4, scale=0.1)[0].tolist() == [[0, 0, 0, 0]]


def test_unreduced_vectors_keep_their_mean_only_without_a_scale():
    vectors = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32) + 3
    assert np.array_equal(shaped(vectors, None, None)[0], vectors)
    for width in (None, 5):
        scaled, facts = shaped(vectors, width, 0.1)
        assert np.allclose(scaled.mean(axis=0), 0, atol=1e-6) and (scaled**2).mean() == pytest.approx(0.01, rel=1e-4)
        assert np.linalg.matrix_rank(scaled) == 5 and not facts


def test_placebos_are_made_of_the_values_vectors(prepared):
    def matrix(**changes):
        file = np.load(prepared({"user": {}}, **changes).feature_map.features["user"]["pretrained_emb"])
        return file["key"], torch.from_numpy(file["value"])

    keys, own = matrix()
    for source in ("random", "shuffled"):
        placebo_keys, placebo = matrix(field_vectors=source)
        assert (placebo_keys == keys).all() and not torch.allclose(placebo, own)
        assert torch.allclose(placebo.norm(dim=1).sort().values, own.norm(dim=1).sort().values, atol=1e-5)
        assert not torch.equal(matrix(field_vectors=source, control_seed=1)[1], placebo)
        if source == "random":
            assert torch.allclose(placebo.norm(dim=1), own.norm(dim=1), atol=1e-5)
        else:
            rows = [int((row == own).all(dim=1).nonzero()) for row in placebo]
            assert sorted(rows) == list(range(len(own))) and all(row != i for i, row in enumerate(rows))


def test_columns_and_specs_ask_alike_and_share_the_plain_arms_data(configs, llm):
    plain = load_experiment("DeepFM_shop", configs)
    run_experiment(plain)
    built = {path.name: path.stat().st_mtime_ns for path in Path("data/shop").iterdir()}
    keys = {"pretrained_emb": "llm", "pretrain_usage": "sum", "freeze_emb": True, "pretrain_dim": 3}
    specs = [{"name": "user", "embedding_dim": 4}, {"name": ["color", "city"], **keys}]
    by_specs = load_experiment("DeepFM_shop", configs, overrides={**llm, "feature_specs": specs})
    columns = [
        {"name": ["color", "city"], "active": True, "dtype": "str", "type": "categorical", **keys},
        *({**column, "name": "user"} for column in plain.params["feature_cols"][:1]),
        plain.params["feature_cols"][1],
    ]
    edit(configs / "dataset_config.yaml", "{name: [color, city, user], active", "{name: color, active")
    by_columns = load_experiment(
        "DeepFM_shop", configs, overrides={**llm, "feature_cols": columns, "feature_specs": specs[:1]}
    )
    assert all("pretrained_emb" not in column for column in by_columns.params["feature_cols"])
    moved = by_columns.params["feature_specs"]
    assert moved == [{"name": ["color", "city"], **keys}, specs[0]]
    assert load_experiment("DeepFM_shop", configs, overrides={**llm, "feature_cols": columns}).changed
    first = run_experiment(by_specs)
    assert {path.name: path.stat().st_mtime_ns for path in Path("data/shop").iterdir()} == built
    layer = embedding_of(first.model, "city")
    assert layer.freeze_emb
    assert layer.pretrain_usage == "sum"
    assert layer.pretrain_embedding.weight.shape == (8, 3)
    second = run_experiment(by_columns)
    assert second.record["notes"]["value_vectors"] == first.record["notes"]["value_vectors"]
    inactive = [{**columns[0], "active": False}, *columns[1:]]
    without = load_experiment("DeepFM_shop", configs, overrides={"feature_cols": inactive}).params
    assert not without["feature_specs"] and "pretrained_emb" not in without["feature_cols"][0]


def test_files_of_the_users_own_get_what_fuxictr_asks_for(configs, encode):
    (path,) = encode("--values", "color")
    spec = {"name": "color", "pretrained_emb": str(path), "pretrain_dim": 16}
    experiment = load_experiment("DeepFM_shop", configs, overrides={"feature_specs": [spec]})
    layer = embedding_of(run_experiment(experiment).model, "color")
    assert layer.oov_idx == vocabulary("color")["__OOV__"] and layer.freeze_emb
    row = layer.pretrain_embedding.weight[vocabulary("color")["red"]].numpy()
    assert np.array_equal(row, np.load(path)["value"][list(np.load(path)["key"]).index("red")])


def test_llactr_and_vectors_of_values_go_together(prepared, tiny_settings):
    run = prepared({"color": {}}, "DeepFM_LLaCTR_shop", **tiny_settings)
    assert run.notes["value_vectors"]["source"] == "llm" and run.notes["field_vectors"]["source"] == "llm"
    model = build_model(run)
    assert model.enhancement.anatomy.fields == ("color", "city", "user", "tags")
    one_hot = prepared({"color": {}}, "DeepFM_LLaCTR_shop", **tiny_settings, field_vectors="identity")
    assert one_hot.notes["value_vectors"] == run.notes["value_vectors"]
    shuffled = prepared({"color": {}}, "DeepFM_LLaCTR_shop", **tiny_settings, field_vectors="shuffled")
    assert shuffled.notes["value_vectors"]["source"] == shuffled.notes["field_vectors"]["source"] == "shuffled"


def test_a_damaged_file_is_made_anew(prepared, caplog):
    path = Path(prepared({"color": {}}).feature_map.features["color"]["pretrained_emb"])
    whole = path.read_bytes()
    path.write_bytes(whole[:50])
    run = prepared({"color": {}})
    assert "is damaged: it is computed anew" in caplog.text and path.read_bytes() == whole
    assert run.stages.done["encode values"]["cached"]  # the language model's own vectors were whole
    assert (
        run.stages.done["encode values"]["made_in"] == VectorStore(next(Path("cache/text_vectors").iterdir())).seconds
    )
    shutil.rmtree(path.parent)
    (shard,) = Path("cache/text_vectors").glob("*/*.npy")
    shard.write_bytes(b"garbage")
    run = prepared({"color": {}})
    assert run.stages.done["encode values"]["rows"] == 6 and path.read_bytes() == whole


def test_a_full_disk_is_one_line(prepared, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"cannot write to '.*': No space left on device; move the cache with FUXICTR"):
        prepared({"color": {}})
    assert not list(Path("cache/text_vectors").glob("*/*.npy"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--values", "colour"], "unknown column 'colour' in data set 'shop'; did you mean 'color'? known: city, color"),
        (["--values", "price"], "'pretrained_emb' in feature_specs of 'price' has no effect on type numeric"),
        (["--values", "group"], "'pretrained_emb' in feature_specs of 'group' has no effect on type meta; FuxiCTR reads it of columns of"),
        (["--set", "feature_specs=[{name: price, pretrained_emb: llm}]"], "of 'price' has no effect on type numeric"),
        (["--set", "feature_specs=[{name: colour, pretrained_emb: llm}]"], "unknown column 'colour' in use_features or"),
        (["--set", "feature_specs=[{pretrained_emb: llm}]"], "'feature_specs[0]' is {'pretrained_emb': 'llm'} (dict): 'name'"),
        (
            ["--set", "feature_specs=[{name: color, pretrained_emb: llm, pretrain_usage: summ}]"],
            "'pretrain_usage' Input should be 'init', 'sum' or 'concat'",
        ),
        (["--values", "color", "--set", "value_dim=all"], "config key 'value_dim' is 'all'"),
        (["--values", "color", "--set", "language_modell=x"], "unknown config key 'language_modell'"),
        (["--values", "color", "--set", "field_vectors=suffled"], "config key 'field_vectors' is 'suffled'"),
        (["--set", "language_model=x"], "unknown config key 'language_model' in expid 'DeepFM_shop'; it would have no effect"),
        ([], "--values COLUMN makes vectors of a column's values"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(configs, capsys, llm, args, message):
    extra = "    - {name: price, active: true, dtype: float, type: numeric, preprocess: copy_from(click)}\n"
    extra += "    - {name: group, active: true, dtype: str, type: meta, preprocess: copy_from(user)}\n"
    edit(configs / "dataset_config.yaml", "    label_col", extra + "    label_col")
    assert main(["encode", "--config", str(configs), "--expid", "DeepFM_shop", *args]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error and error.startswith("error: ")


def test_a_column_without_values_is_named(prepared):
    prepared({"color": {}})
    edit("data/shop/feature_vocab.json", '"color"', '"colxr"')
    Path("data/shop/build.json").unlink()  # as FuxiCTR builds it: with it, the change would be noticed
    with pytest.raises(UserError, match="column 'color' has no values in '.*feature_vocab.json', so there is nothing"):
        prepared({"color": {}})


def test_values_that_only_other_splits_have_are_left_out(configs, llm):
    """FuxiCTR puts those behind __OOV__ when it builds a file of vectors in."""
    run = prepare_data(load_experiment("DeepFM_shop", configs), "unused")
    edit("data/shop/feature_vocab.json", '"__OOV__": 7', '"__OOV__": 7, "mauve": 8')
    file = make_value_vectors(ValueVectorsConfig(**llm), run, ["color"])["color"]
    assert file["values"] == 6
    assert file["oov_idx"] == 7
    assert "mauve" not in np.load(file["path"])["key"]
