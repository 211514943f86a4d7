"""What ELEC makes of texts: vectors of units and rows, from which language model, and from heads that saw what."""

import shutil
from itertools import combinations
from pathlib import Path

import pandas
import pytest
import torch

from fuxictr_llm.__main__ import main
from fuxictr_llm.common.checks import checked
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import cache_dir, read_json
from fuxictr_llm.data.loader import make_loaders
from fuxictr_llm.llm.language_model import load_language_model
from fuxictr_llm.llm.model_files import digest_of_model
from fuxictr_llm.model_zoo.ELEC import stages, vectors
from fuxictr_llm.model_zoo.ELEC.config import ELECConfig
from fuxictr_llm.model_zoo.ELEC.stages import adapt, encode
from fuxictr_llm.training import networks as network_store
from support import as_arguments


def test_encode_makes_the_vectors_and_no_network(run, configs, llm, capsys):
    run(only_prepare=True, alpha=0.0, beta=0.0)  # the data
    assert main(["encode", "--config", str(configs), "--expid", "DeepFM_ELEC_shop", *as_arguments(llm)]) == 0
    folders = capsys.readouterr().out.split()
    units = {read_json(Path(folder) / "manifest.json")["unit"] for folder in folders}
    assert units == {"user", "item"} and not (cache_dir() / "networks").exists()
    result = run(text_vectors=str(Path(folders[0]).parent))
    assert result.record["stages"]["encode"]["given"]


def test_a_pca_is_fitted_anew_where_other_rows_are_the_train_rows(run):
    prepared = run(only_prepare=True, text_units="row", epochs=1)
    config, found = checked(ELECConfig, prepared.params), []
    for _ in range(2):
        found.append(adapt(config, prepared)[1]["vectors"])
        train, valid = (prepared.params[f"{split}_data"] for split in ("train", "valid"))
        prepared.params |= {"train_data": valid, "valid_data": train}
    assert found[0] != found[1]


def test_the_tuned_language_model_gives_other_vectors(run, tiny_llm):
    digest = digest_of_model(tiny_llm)
    frozen = run()
    tuned = run(tuning="lora", click_rows=32, click_valid_rows=16, click_epochs=1, click_batch_size=8)
    assert tuned.record["notes"]["click_tuning"]["sha256"] and "tune" in tuned.record["stages"]
    vectors = [result.record["notes"]["text_vectors"]["item"]["sha256"] for result in (frozen, tuned)]
    assert vectors[0] != vectors[1] and digest_of_model(tiny_llm) == digest
    again = run(tuning="lora", click_rows=32, click_valid_rows=16, click_epochs=1, click_batch_size=8)
    assert again.record["metrics"] == tuned.record["metrics"]


def test_no_head_of_a_row_has_seen_a_row_with_its_texts(run, monkeypatch):
    words = Path("words.yaml")
    words.write_text(words.read_text().replace("{hot: on sale}", "{hot: on sale, new: on sale}"), encoding="utf-8")
    learnt, keep = [], network_store.ChangedBatches.__init__

    def noting(self, loader, change, kept=None):
        keep(self, loader, change, kept and (lambda batch: note(batch, kept(batch))))
        if kept:
            learnt.append([])

    def note(batch, kept):
        learnt[-1].append({name: column[kept] for name, column in batch.items()})
        return kept

    monkeypatch.setattr(network_store.ChangedBatches, "__init__", noting)
    index = run(inject_vector="h", h_crossfit=3, only_prepare=True, epochs=1).prepared.add.index
    assert len({tuple(row) for row in index.positions.tolist()}) < len(index) and len(learnt) == 3
    folds = vectors.fold_of(index.positions, 3)
    for fold, batches in enumerate(learnt):
        seen = {tuple(row) for batch in batches for row in index.positions[index.row_of(batch)].tolist()}
        left_out = {tuple(row) for row in index.positions[folds == fold].tolist()}
        assert seen
        assert left_out
        assert not seen & left_out


@pytest.mark.parametrize(("made_with", "taken_with"), [("lora", "frozen"), ("frozen", "lora")])
def test_given_vectors_are_of_a_language_model_tuned_as_the_settings_say(run, made_with, taken_with):
    settings = {"click_rows": 32, "click_valid_rows": 16, "click_epochs": 1, "only_prepare": True}
    run(tuning=made_with, **settings)
    shutil.move(cache_dir() / "text_vectors", "given")
    with pytest.raises(UserError, match=f"tuned language model, and tuning is {taken_with}"):
        run(tuning=taken_with, text_vectors="given", **settings)
    prepared = run(tuning=made_with, text_vectors="given", **settings)
    assert prepared.stages.done["encode"]["given"] and "tune" not in prepared.stages.done


def test_rows_as_one_text(run):
    result = run(text_units="row")
    assert set(result.record["notes"]["text_vectors"]) == {"row"}


def test_stored_vectors_are_those_of_the_head_on_texts_encoded_now(run, tiny_llm):
    prepared = run(only_prepare=True, inject_vector="h", h_crossfit=0)
    config = checked(ELECConfig, prepared.params)
    row_vectors, _ = adapt(config, prepared)
    index, stores = encode(config, prepared)
    head = stages._head(
        config, prepared, raw := vectors.raw_vectors(index, stores), stages.made_from_texts(index, stores)
    ).model
    model = load_language_model(tiny_llm, "float32", "mean", gpu=-1)
    _, valid = make_loaders(prepared.feature_map, prepared.params, "train")
    batch = {name: column[:5] for name, column in next(iter(valid)).items()}
    positions = index.positions[index.row_of(batch)].long()
    online = []
    for unit, (texts, scaled) in enumerate(zip(index.units, raw.stores, strict=True)):
        s = torch.cat([model.encode([texts[int(place)]]) for place in positions[:, unit]])
        online.append((s - scaled.mean) * scaled.scale)
    with torch.no_grad():
        expected = head.h(torch.cat(online, dim=1))
    assert torch.allclose(row_vectors(batch)["llm_vector"], expected, atol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"inject_vector": "s"}, {"inject_vector": "h", "h_crossfit": 2}])
def test_a_placebo_takes_the_place_of_all_vectors_of_texts(run, changes):
    # From fresh weights, for a trained start may stay with either of them.
    told, *placebos = (run(gain_backbone="fresh", h=h, **changes) for h in ("llm", "noise", "shuffled"))
    for placebo in placebos:
        assert placebo.record["stages"]["encode"]["cached"] and placebo.record["stages"]["train plain"]["cached"]
    for network in ("text", "gain"):
        metrics = [result.record["networks"][network]["metrics"] for result in (told, *placebos)]
        assert all(one != other for one, other in combinations(metrics, 2)), network


HISTORY = {"of": "color", "liked": "click"}


def test_no_label_of_valid_or_test_reaches_what_is_made_of_texts(run, tmp_path):
    """Every file of vectors and every weight is the same where valid and test have other labels."""
    found = []
    for _ in range(2):
        # One epoch from fresh weights: whether an epoch is better than another is what valid is for.
        result = run(text_history=HISTORY, only_prepare=True, epochs=1, gain_backbone="fresh")
        batch = next(iter(make_loaders(result.feature_map, result.params, "test")))
        kinds = ("text_vectors", "row_vectors", "placebo_vectors")
        stores = {str(path): path.read_bytes() for kind in kinds for path in (cache_dir() / kind).rglob("*.npy")}
        weights = result.prepared.model.state_dict()
        found.append((stores, result.prepared.add(batch)["llm_vector"], result.notes["text_history"], weights))
        for split in ("valid", "test"):
            path = tmp_path / "raw" / f"{split}.csv"
            frame = pandas.read_csv(path)
            frame.assign(click=1 - frame["click"]).to_csv(path, index=False)
    assert found[0][0] == found[1][0] and len(found[0][0]) == 4  # of two units, of rows, and of their histories
    assert torch.equal(found[0][1], found[1][1]) and found[0][2] == found[1][2]
    assert all(torch.equal(value, found[1][3][name]) for name, value in found[0][3].items())


def test_a_history_is_part_of_what_the_gain_network_gets(run):
    without, told = run(only_prepare=True), run(text_history=HISTORY, only_prepare=True)
    assert told.prepared.add.width == without.prepared.add.width + 33
    assert told.stages.done["train plain"]["cached"] and told.stages.done["train text"]["cached"]
    assert "cached" not in told.stages.done["train gain"]
    assert told.networks["gain"]["metrics"] != without.networks["gain"]["metrics"]
    noise = run(text_history=HISTORY, h="noise", only_prepare=True)
    assert noise.notes["text_history"]["sha256"] == told.notes["text_history"]["sha256"]
    assert noise.notes["text_history"]["vectors"] != told.notes["text_history"]["vectors"]


@pytest.mark.parametrize("start", ["fresh", "fixed"])
def test_a_gain_network_that_does_not_gain_is_said(run, start):
    result = run(gain_backbone=start, h_decay=0.0, learning_rate=0.5, epochs=1)
    networks = result.record["networks"]
    valid = {name: facts["metrics"]["valid"]["AUC"] for name, facts in networks.items()}
    log = Path(result.model.checkpoint).with_suffix(".log").read_text(encoding="utf-8")
    assert ("gain network is worse than its plain backbone" in log) == (valid["gain"] < valid["plain"])
    stays = networks["gain"]["best_epoch"] == 0
    assert ("gain network stays its plain backbone" in log) == stays
    if start == "fixed":
        assert valid["gain"] >= valid["plain"] and (not stays or valid["gain"] == valid["plain"])
    line = f"valid: gain network over plain {valid['gain'] - valid['plain']:+.6f} AUC, student "
    assert line in log
