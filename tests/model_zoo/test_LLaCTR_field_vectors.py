"""Sources of field vectors: placebos, centring, given matrices."""

import resource
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fuxictr_llm.__main__ import main
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.runs import seconds_of
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.experiment.preparation import prepare_run
from fuxictr_llm.llm.vectors import store as controls
from fuxictr_llm.model_zoo.LLaCTR.vector_file import read_field_vectors
from support import as_arguments

FIELDS = ["color", "city", "user", "tags"]


@pytest.fixture
def vectors_of(configs, tiny_settings):
    """Prepares a run with the settings; its vectors, its notes and its stages."""

    def prepare(**changes):
        experiment = load_experiment("DeepFM_LLaCTR_shop", configs, overrides={**tiny_settings, **changes})
        run = prepare_run(experiment, "unused")
        vectors = read_field_vectors(run.params["field_vectors"], FIELDS)
        return SimpleNamespace(matrix=vectors, notes=run.notes["field_vectors"], stages=run.stages.done)

    return prepare


def test_placebos_are_made_of_the_tuned_vectors_and_repeatable(vectors_of):
    tuned, random, shuffled = (vectors_of(field_vectors=source) for source in ("llm", "random", "shuffled"))
    assert torch.allclose(random.matrix.norm(dim=1), tuned.matrix.norm(dim=1), atol=1e-5)
    assert not torch.allclose(random.matrix, tuned.matrix)
    rows = [int((row == tuned.matrix).all(dim=1).nonzero()) for row in shuffled.matrix]
    assert sorted(rows) == [0, 1, 2, 3] and all(row != field for field, row in enumerate(rows))
    assert random.stages["tune"]["cached"] and all(
        seconds_of(random.stages[stage]) == tuned.stages[stage]["seconds"] > 0 for stage in ("tune", "encode")
    )
    assert all(
        random.stages[stage]["tokens_read"] == tuned.stages[stage]["tokens_read"] > 0 for stage in ("tune", "encode")
    )
    assert shuffled.notes["source"] == "shuffled"
    for source, first in (("random", random), ("shuffled", shuffled)):
        assert torch.equal(vectors_of(field_vectors=source).matrix, first.matrix)
    assert not torch.equal(vectors_of(field_vectors="random", control_seed=1).matrix, random.matrix)


def test_the_untuned_model_and_one_hot_fields(vectors_of):
    tuned, untuned = vectors_of(), vectors_of(field_vectors="llm_untuned")
    assert not torch.allclose(tuned.matrix, untuned.matrix) and "tune" not in untuned.stages
    assert torch.equal(untuned.matrix, vectors_of(ssft_epochs=0).matrix)
    one_hot = vectors_of(field_vectors="identity")
    assert torch.equal(one_hot.matrix, torch.eye(4)) and "language model" not in one_hot.stages


def test_centred_vectors_have_no_mean(vectors_of):
    plain, centred = vectors_of(), vectors_of(llm_centre=True)
    assert torch.allclose(centred.matrix, plain.matrix - plain.matrix.mean(dim=0), atol=1e-5)


def test_shuffling_leaves_no_field_its_own():
    for seed in range(20):
        rows = controls.shuffled(torch.arange(5.0).unsqueeze(1), seed).squeeze(1)
        assert sorted(rows.tolist()) == [0, 1, 2, 3, 4] and (rows != torch.arange(5.0)).all()
    assert controls.shuffled(torch.ones(1, 3), 0).tolist() == [[1, 1, 1]]


def test_given_matrices_are_read_and_checked(vectors_of, tmp_path):
    matrix = torch.randn(4, 6)
    np.save(tmp_path / "a.npy", matrix.double().numpy())
    torch.save(matrix, tmp_path / "a.pt")
    for name in ("a.npy", "a.pt"):
        given = vectors_of(field_vectors=str(tmp_path / name))
        assert torch.allclose(given.matrix, matrix) and given.notes["source"] == "given"
    np.save(tmp_path / "few.npy", np.zeros((3, 6)))
    with pytest.raises(UserError, match=r"is not one finite vector for each of 4 fields \(shape \(3, 6\)\)"):
        vectors_of(field_vectors=str(tmp_path / "few.npy"))
    np.save(tmp_path / "nan.npy", np.full((4, 6), np.nan))
    with pytest.raises(UserError, match="is not one finite vector"):
        vectors_of(field_vectors=str(tmp_path / "nan.npy"))
    (tmp_path / "empty.pt").write_bytes(b"")
    np.save(tmp_path / "texts.npy", np.array([["a"]] * 4))
    for name in ("empty.pt", "texts.npy"):
        with pytest.raises(UserError, match="is no file of field vectors"):
            vectors_of(field_vectors=str(tmp_path / name))
    torch.save(torch.nn.Parameter(matrix), tmp_path / "parameter.pt")
    assert not vectors_of(field_vectors=str(tmp_path / "parameter.pt")).matrix.requires_grad
    torch.save(matrix.to_sparse(), tmp_path / "sparse.pt")
    (tmp_path / "zip.npy").write_bytes(b"PK no zip")
    save_file({"field_vectors": matrix}, tmp_path / "twice.safetensors", metadata={"fields": '["color", "color"]'})
    save_file({"field_vectors": matrix}, tmp_path / "number.safetensors", metadata={"fields": "5"})
    for name in ("sparse.pt", "zip.npy", "twice.safetensors", "number.safetensors"):
        with pytest.raises(UserError, match="is no file of field vectors"):
            vectors_of(field_vectors=str(tmp_path / name))
    torch.save({"a": matrix}, tmp_path / "dict.pt")
    with pytest.raises(UserError, match="holds a dict, not a tensor"):
        vectors_of(field_vectors=str(tmp_path / "dict.pt"))


def test_an_unknown_source_names_the_nearest(vectors_of):
    with pytest.raises(UserError, match="unknown source 'suffled' in 'field_vectors'; did you mean 'shuffled'"):
        vectors_of(field_vectors="suffled")


def test_files_with_code_in_them_are_refused(vectors_of, tmp_path):
    np.save(tmp_path / "object.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    torch.save(SimpleNamespace(a=1), tmp_path / "object.pt")
    for name in ("object.npy", "object.pt"):
        with pytest.raises(UserError, match="is no file of field vectors"):
            vectors_of(field_vectors=str(tmp_path / name))


def test_one_field_alone_is_not_tuned(configs, tiny_settings):
    changes = {**tiny_settings, "use_features": ["color"]}
    run = prepare_run(load_experiment("DNN_LLaCTR_shop", configs, overrides=changes), "unused")
    assert "tune" not in run.stages.done and "ssft" not in run.notes["field_vectors"]
    assert read_field_vectors(run.params["field_vectors"], ["color"]).shape == (1, 16)


@contextmanager
def full_disk(limit):
    """In the block, a file that gets longer than that fails as on a full disk; the hard limit is left alone."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("limit", "ssft_epochs"), [(3000, 20), (200, 0)], ids=["checkpoint", "vectors"])
def test_a_full_disk_is_one_line_and_loses_nothing(configs, tiny_settings, capsys, limit, ssft_epochs):
    settings = as_arguments({**tiny_settings, "ssft_epochs": ssft_epochs, "ssft_patience": 20})
    args = ["--config", str(configs), "--expid", "FM_LLaCTR_shop", *settings]
    assert main(["prepare", *args]) == 0
    with full_disk(limit):
        code = main(["encode", *args])
    errors = capsys.readouterr().err
    last = errors.strip().splitlines()[-1]
    assert code == 2, errors
    assert last.startswith("error: cannot write to")
    assert "FUXICTR_LLM_CACHE" in last
    assert not list(Path("cache").rglob("field_vectors.safetensors"))
    assert main(["encode", *args]) == 0
    assert Path(capsys.readouterr().out.strip()).is_file()
