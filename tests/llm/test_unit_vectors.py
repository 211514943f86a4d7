"""The vectors of rows' texts: those that the language model gives, from wherever they come."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.config.language_models import RowTextsConfig
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.data.loader import make_loaders
from fuxictr_llm.experiment.preparation import prepare_data
from fuxictr_llm.llm.language_model import LanguageModel
from fuxictr_llm.llm.texts.row_texts import index_rows
from fuxictr_llm.llm.vectors import store as vector_store
from fuxictr_llm.llm.vectors.encoder import TextEncoder, _Worker, unit_vectors


@pytest.fixture
def shop(configs, tmp_path, llm):
    """`shop(text_vectors=...)`: run, index and stores of the small shop."""
    (tmp_path / "words.yaml").write_text(
        (tmp_path / "words.yaml").read_text() + "entities: {user: {text: [city]}, item: {text: [color, tags]}}\n"
    )

    def make(**changes):
        run = prepare_data(load_experiment("DeepFM_shop", configs), "unused")
        config = RowTextsConfig(**llm | changes)
        index = index_rows(config, run)
        return run, index, unit_vectors(config, run, index)

    return make


def test_a_rows_vectors_are_the_means_of_its_texts_hidden_states(shop, llm):
    run, index, stores = shop()
    batch = next(iter(make_loaders(run.feature_map, run.params, "test")))
    rows = index.row_of(batch)
    model = TextEncoder(RowTextsConfig(**llm), gpu=-1).model
    for unit, store, positions in zip(index.units, stores, index.positions[rows].unbind(dim=1), strict=True):
        assert store.rows == len(unit) and store.dim == 16
        for vector, text in list(zip(store.gather(positions), map(unit.__getitem__, positions.tolist()), strict=True))[
            :5
        ]:
            with torch.no_grad():
                ids = torch.tensor([model.tokenizer(text)["input_ids"]])
                online = model.model(ids).last_hidden_state[0].mean(dim=0)
            assert torch.allclose(vector, online, atol=1e-5)


def test_stages_and_notes_say_what_was_done(shop, llm):
    run, index, stores = shop()
    assert run.stages.done["encode"]["rows"] == sum(map(len, index.units))
    notes = run.notes["text_vectors"]
    assert list(notes) == ["user", "item"]
    assert notes["user"] == {"path": str(stores[0].folder), "texts": 6, "dim": 16, "sha256": stores[0].sha256}
    again, _, _ = shop()
    assert again.stages.done["encode"]["cached"] and again.notes == run.notes
    for fact in ("made_in", "tokens_read"):
        assert again.stages.done["encode"][fact] == run.stages.done["encode"][fact] > 0
    read = TextEncoder(RowTextsConfig(**llm), gpu=-1).model.tokenizer
    texts = [unit[number] for unit in index.units for number in range(len(unit))]
    assert run.stages.done["encode"]["tokens_read"] == sum(len(read(text)["input_ids"]) for text in texts)
    other, _, _ = shop(llm_max_text_tokens=3)
    assert other.stages.done["encode"]["rows"] and other.notes != run.notes


def test_empty_texts_are_zeros_and_long_ones_are_cut(llm, caplog):
    encoder = TextEncoder(RowTextsConfig(**llm, llm_max_text_tokens=4), gpu=-1)
    caplog.set_level("INFO")
    vectors = encoder.store_of(["", "red green blue black", "red green blue black and more of it", "red"]).gather(
        torch.arange(4)
    )
    assert not vectors[0].any()
    assert vectors[1:].any(dim=1).all()
    assert "texts are longer than 4 tokens and are cut" in caplog.text
    whole = (
        TextEncoder(RowTextsConfig(**llm), gpu=-1)
        .store_of(["red green blue black and more of it"])
        .gather(torch.tensor([0]))
    )
    assert not torch.allclose(vectors[2], whole[0]) and "Encoded 4 texts in" in caplog.text


def no_model(*_, **__):
    raise AssertionError("the language model was asked")


@pytest.fixture
def elsewhere(shop, monkeypatch):
    """The stores of the shop in a folder of their own, with an empty cache, and no language model to be asked."""
    _, _, stores = shop()
    for store in stores:
        shutil.copytree(store.folder, Path("given") / store.manifest["unit"])
    shutil.copytree(stores[0].folder.parent, "parent")
    shutil.rmtree(stores[0].folder.parent)
    monkeypatch.setattr(LanguageModel, "encode", no_model)
    return [store.sha256 for store in stores]


@pytest.mark.parametrize("folder", ["given", "parent"])
def test_given_vectors_stand_in_for_the_language_model(shop, elsewhere, folder):
    run, _, stores = shop(text_vectors=folder)
    assert [store.sha256 for store in stores] == elsewhere and stores[0].folder.is_relative_to(folder)
    assert run.stages.done["encode"]["given"]


def changed_manifest(name, change):
    path = Path("given") / name / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_given_vectors_of_a_machine_with_a_gpu_and_the_model_by_name_fit(shop, elsewhere):
    changed_manifest("user", lambda manifest: manifest["made_from"].update(device="gpu"))
    for name in ("user", "item"):
        changed_manifest(name, lambda manifest: manifest["made_from"]["language_model"].update(name="Llama-3-8B"))
    shop(text_vectors="given")  # the weights decide where they are
    _, _, stores = shop(text_vectors="given", language_model="Llama-3-8B")
    assert [store.sha256 for store in stores] == elsewhere


@pytest.mark.parametrize(
    ("harm", "changes", "message"),
    [
        (lambda: None, {"text_vectors": "nowhere"}, "text_vectors 'nowhere' is no folder"),
        (lambda: shutil.rmtree("given/item"), {}, "text_vectors 'given' has no vectors of the texts of unit 'item'"),
        (lambda: None, {"text_fields": ["city", "color"]}, "'given/item' was made from other texts \\(unit 'item' of data set 'shop', [0-9]+ texts\\) than the 6 of unit 'item' here"),
        (lambda: None, {"language_model": "Llama-3-8B"}, "'given/user' is of language model '.*', not 'Llama-3-8B'"),
        (lambda: None, {"llm_max_text_tokens": 64}, "'given/user' was made with llm_max_text_tokens 128, not 64"),
        (lambda: Path("given/item/vectors-00000.npy").write_bytes(b"junk"), {}, "'given/item/vectors-00000.npy' is damaged; copy it again"),
        (lambda: Path("given/item/vectors-00000.npy").unlink(), {}, "'given/item' are not whole: vectors-00000.npy is missing"),
    ],
)  # fmt: skip
def test_given_vectors_that_do_not_fit_are_named(shop, elsewhere, harm, changes, message):
    harm()
    with pytest.raises(UserError, match=message):
        shop(**{"text_vectors": "given"} | changes)


@pytest.mark.ray
def test_rays_workers_give_the_same_vectors(llm, monkeypatch):
    import ray

    assert ray.is_initialized()
    monkeypatch.setattr(vector_store, "SHARD", 3)
    texts = [f"{color} shirt from {city}" for color in ("red", "green") for city in ("Rome", "Oslo", "Bern", "")]
    local = TextEncoder(RowTextsConfig(**llm), gpu=-1).store_of(texts)
    shutil.move(local.folder, "local")
    encoder = TextEncoder(RowTextsConfig(**llm, encoder="ray", ray_workers=2), gpu=-1)
    rays = encoder.store_of(texts)
    assert encoder.encoded == 8
    assert encoder._model is None  # the workers have it
    expected = vector_store.VectorStore(Path("local")).gather(torch.arange(8))
    assert torch.allclose(rays.gather(torch.arange(8)), expected, atol=1e-5)  # rounded by the number of threads
    assert ray.is_initialized()  # what another one started stays


def test_a_workers_error_for_the_user_is_told_in_the_first_process(llm):
    too_long = TextEncoder(RowTextsConfig(**llm, llm_max_text_tokens=9999), gpu=-1)
    worker = _Worker(partial(too_long._make, ["red " * 3000], "", Path("unused"), 0), torch.get_num_threads())
    (error,) = worker({"item": np.array([1])})["error"]
    assert "tokens does not fit into the 2048 positions" in error
