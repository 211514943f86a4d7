"""ELEC on several backbones, as whole runs with a tiny language model: what must hold exactly (elec.md, section 2)."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
import torch

from fuxictr_llm import network_store
from fuxictr_llm.__main__ import main
from fuxictr_llm.checks import checked
from fuxictr_llm.config import load_experiment
from fuxictr_llm.data.loader import make_loaders
from fuxictr_llm.errors import UserError
from fuxictr_llm.experiment import build_model, prepare_run, run_experiment
from fuxictr_llm.exporting import export_run
from fuxictr_llm.files import cache_dir, read_json
from fuxictr_llm.model_zoo.ELEC import ELEC, stages, vectors
from fuxictr_llm.model_zoo.ELEC.config import ELECConfig
from fuxictr_llm.model_zoo.ELEC.stages import adapt, encode
from fuxictr_llm.registry import find_backbone
from fuxictr_llm.semantics.language_model import load_language_model
from fuxictr_llm.semantics.model_folder import digest_of_model
from support import as_arguments, edit

BACKBONES = ["DeepFM", "DCNv2", "FinalMLP", "FM"]
SMALL = {
    "DCNv2": {"parallel_dnn_hidden_units": [8], "net_dropout": 0.1},
    "FinalMLP": {"mlp1_hidden_units": [8], "mlp2_hidden_units": [8], "num_heads": 2},
}
META = "    - {name: group, active: true, dtype: int, type: meta}\n"
every_backbone = pytest.mark.parametrize("name", BACKBONES)


@pytest.fixture
def run(configs, llm, tmp_path):
    """Runs an expid on `shop`, whose rows have a text of the user and one of the item."""
    words = tmp_path / "words.yaml"
    entities = "entities: {user: {id: user, text: [city]}, item: {id: color, text: [color, tags]}}\n"
    words.write_text(words.read_text(encoding="utf-8") + entities, encoding="utf-8")

    def run_it(expid="DeepFM_ELEC_shop", seed=None, only_prepare=False, **changes):
        name = expid.partition("_")[0]
        settings = {**SMALL.get(name, {}), **changes}
        if "ELEC" in expid:
            settings = {**llm, "h_hidden": 8, "h_dim": 4, **settings}
        experiment = load_experiment(expid, configs, seed=seed, overrides=settings)
        return prepare_run(experiment, "unused") if only_prepare else run_experiment(experiment)

    return run_it


def predictions(result, model=None):
    rows = make_loaders(result.run.feature_map, result.run.params, "test")
    return (model or result.model).predict(rows)


def log_of(result):
    return Path(result.model.checkpoint).with_suffix(".log").read_text(encoding="utf-8")


@every_backbone
def test_a_run_reports_its_networks_and_serves_the_plain_backbone(run, name):
    plain = run(f"{name}_shop")
    result = run(f"{name}_ELEC_shop")
    record = result.record
    assert list(record["networks"]) == ["text", "gain"]
    for network in record["networks"].values():
        assert set(network["metrics"]["test"]) == set(record["metrics"]["test"]) == {"AUC", "logloss"}
    assert record["parameters"] == plain.record["parameters"]
    stages = list(record["stages"])
    assert stages[2:] == ["texts", "encode", "train text", "vectors of rows", "train gain", "train", "test"]
    assert set(record["notes"]["text_vectors"]) == {"user", "item"}
    last = Path("my_configs.csv").read_text().splitlines()[-1]
    assert f"AUC: {record['metrics']['test']['AUC']:.6f}" in last.rpartition("[test]")[2]
    for facts in (plain.record, record, record["networks"]["gain"]):
        assert facts["slices"]["by"] == "color" and sum(s["rows"] for s in facts["slices"]["slices"].values()) == 150
    again = run(f"{name}_ELEC_shop").record
    assert again["metrics"] == record["metrics"] and again["networks"] == record["networks"]
    assert all(again["stages"][stage].get("cached") for stage in ("encode", "train text", "train gain"))


@every_backbone
def test_an_exported_vanilla_network_loads_into_the_unmodified_class(run, name):
    result = run(f"{name}_ELEC_shop", representation_loss="hint", beta=0.5)
    run_name = str(result.model.checkpoint).removesuffix(".model")
    folder = export_run(run_name, "served")
    params = {**result.run.params, "method": None}
    model = find_backbone(name)(result.run.feature_map, **params)
    model.load_weights(str(folder / f"{name}.model"))  # strict
    assert sum(p.numel() for p in model.parameters()) == result.record["parameters"]["backbone"]
    assert (predictions(result, model) == predictions(result)).all()


def test_serving_needs_neither_texts_nor_a_language_model(run):
    result = run()
    export_run(str(result.model.checkpoint).removesuffix(".model"), "served")
    shutil.rmtree(cache_dir())
    Path("words.yaml").unlink()
    code = (
        "import sys; sys.modules['transformers'] = sys.modules['peft'] = None\n"
        "import fuxictr_llm, pandas\n"
        "ids = pandas.read_parquet('data/shop/test.parquet')\n"
        "batch = {name: ids[name].tolist() for name in ('color', 'city', 'user', 'tags')}\n"
        "print(*fuxictr_llm.load_model('served').predict(batch).tolist())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    served = torch.tensor([float(value) for value in done.stdout.split()])
    assert torch.allclose(served, torch.from_numpy(predictions(result)).float(), atol=1e-6)


@every_backbone
def test_both_weights_zero_train_the_plain_backbone_bit_by_bit(run, name):
    plain, off = run(f"{name}_shop"), run(f"{name}_ELEC_shop", alpha=0.0, beta=0.0)
    assert (predictions(plain) == predictions(off)).all()
    assert not off.record["networks"] and "encode" not in off.record["stages"]
    assert "ELEC is off" in log_of(off)
    state = off.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in plain.model.state_dict().items())


@every_backbone
def test_distillation_changes_the_student_and_nothing_else(run, name, tiny_llm):
    digest = digest_of_model(tiny_llm)
    prepared = run(f"{name}_ELEC_shop", only_prepare=True)
    teacher = prepared.prepared.model
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    model = build_model(prepared)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    model.enhancement.start(prepared)
    model._max_gradient_norm = 10.0
    train, _ = make_loaders(prepared.feature_map, prepared.params, "train")
    model.train()
    for batch in train:
        model.train_step(batch)
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters()) and not teacher.training
    assert digest_of_model(tiny_llm) == digest
    assert any(not torch.equal(value, start[key]) for key, value in model.state_dict().items())
    assert not any(key.startswith("enhancement") for key in model.state_dict())


def test_a_plain_run_beside_it_is_shown_and_missing_ones_are_named(run):
    alone = run()
    assert "--expid DeepFM_shop)" in log_of(alone)
    plain = run("DeepFM_shop")
    run("DeepFM_shop", seed=8)
    together = run()
    lines = log_of(together).rpartition("network ")[2].splitlines()
    assert lines[1].split()[0] == "plain" and f"{plain.record['metrics']['test']['AUC']:.6f}" in lines[1]
    assert [line.split()[0] for line in lines[2:5]] == ["text", "gain", "vanilla"]
    assert lines[5].split()[-3:] == ["plain", "gain", "vanilla"]


@pytest.mark.parametrize("teacher", ["gain", "self"])
def test_columns_with_vectors_of_their_values_are_the_teachers_too(run, llm, teacher):
    specs = [{"name": "color", "pretrained_emb": "llm"}]
    plain, result = run("DeepFM_shop", feature_specs=specs, **llm), run(teacher=teacher, feature_specs=specs)
    assert result.run.feature_map.features == plain.run.feature_map.features
    if teacher == "self":
        assert result.record["networks"]["plain"]["metrics"] == plain.record["metrics"]


def test_self_distillation_needs_no_language_model_and_its_teacher_is_the_plain_run(run):
    plain = run("DeepFM_shop")
    result = run(teacher="self", language_model="no-such-model")
    assert list(result.record["networks"]) == ["plain"] and "encode" not in result.record["stages"]
    assert result.record["networks"]["plain"]["metrics"] == plain.record["metrics"]
    assert result.record["metrics"] != plain.record["metrics"]


def test_a_killed_run_goes_on_from_the_stages_that_were_done(run, monkeypatch):
    def killed(self, run):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ELEC, "start", killed)
        run()
    stages = run().record["stages"]
    assert [name for name, facts in stages.items() if facts.get("cached")] == ["encode", "train text", "train gain"]


def test_other_weights_of_the_losses_share_the_teacher_and_other_seeds_do_not(run):
    first = run()
    other = run(alpha=0.3, score_loss="kl", tau=2.0, representation_loss="cosine")
    assert other.record["stages"]["train gain"]["cached"] and other.record["metrics"] != first.record["metrics"]
    seeded = run(seed=8)
    assert "cached" not in seeded.record["stages"]["train gain"] and seeded.record["stages"]["encode"]["cached"]


def test_metrics_by_group_are_there_for_every_network_whatever_the_groups_type(run):
    result = run(metrics=["gAUC", "AUC", "logloss"], group_id="user")
    for facts in (result.record, *result.record["networks"].values()):
        assert list(facts["metrics"]["test"]) == ["gAUC", "AUC", "logloss"]


def test_what_decides_about_a_text_head_is_in_its_identity(run):
    first, other = run(), run(weight_decay=0.5)
    assert "cached" not in other.record["stages"]["train text"]
    assert other.record["networks"]["text"] != first.record["networks"]["text"]
    assert run("FM_ELEC_shop").record["stages"]["train text"]["cached"]


def test_joint_training_reports_its_teacher_and_ends_with_its_best(run):
    result = run(schedule="joint", warmup_epochs=1, epochs=3)
    assert list(result.record["networks"]) == ["text", "gain"]
    assert 0 < result.record["networks"]["gain"]["metrics"]["test"]["AUC"] < 1
    assert result.model.enhancement.teacher is None
    assert "train gain" not in result.record["stages"]
    twin = run(schedule="joint", teacher="self", epochs=3)
    assert list(twin.record["networks"]) == ["twin"]


def test_encode_makes_the_vectors_and_no_network(run, configs, llm, capsys):
    run(only_prepare=True, alpha=0.0, beta=0.0)  # the data
    assert main(["encode", "--config", str(configs), "--expid", "DeepFM_ELEC_shop", *as_arguments(llm)]) == 0
    folders = capsys.readouterr().out.split()
    units = {read_json(Path(folder) / "manifest.json")["unit"] for folder in folders}
    assert units == {"user", "item"} and not (cache_dir() / "networks").exists()
    result = run(text_vectors=str(Path(folders[0]).parent))
    assert result.record["stages"]["encode"]["given"]


def test_a_pca_is_fitted_anew_where_other_rows_are_the_train_rows(run):
    prepared = run(only_prepare=True, text_units="row", inject_vector="s", epochs=1)
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
    learnt, keep = [], network_store.Seeing.__init__

    def noting(self, loader, change, kept=None):
        keep(self, loader, change, kept and (lambda batch: note(batch, kept(batch))))
        if kept:
            learnt.append([])

    def note(batch, kept):
        learnt[-1].append({name: column[kept] for name, column in batch.items()})
        return kept

    monkeypatch.setattr(network_store.Seeing, "__init__", noting)
    index = run(h_crossfit=3, only_prepare=True, epochs=1).prepared.add.index
    assert len({tuple(row) for row in index.positions.tolist()}) < len(index) and len(learnt) == 3
    folds = vectors.fold_of(index.positions, 3)
    for fold, batches in enumerate(learnt):
        seen = {tuple(row) for batch in batches for row in index.positions[index.row_of(batch)].tolist()}
        left_out = {tuple(row) for row in index.positions[folds == fold].tolist()}
        assert seen and left_out and not seen & left_out


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": "gian"}, "unknown teacher 'gian'; did you mean 'gain'"),
        ({"h_crossfit": 1}, "h_crossfit 1: a head must leave some rows out"),
        ({"schedule": "joint", "warmup_epochs": 2}, "warmup_epochs 2 leaves nothing of 2 epochs"),
        ({"teacher": "shuffled", "schedule": "joint"}, "shuffled is a trained teacher.* set schedule: staged"),
        ({"text_fields": ["colour"]}, "'colour'.*did you mean 'color'"),
        ({"text_fields": ["user"], "text_units": "row"}, None),
        ({"inject": "bottom"}, "config key 'inject' is 'bottom'"),
        ({"alpha": -1.0}, "config key 'alpha' is -1.0"),
        ({"h_crossfit": 2, "inject_vector": "s"}, "h_crossfit has no effect on inject_vector: s"),
        ({"h": "noise", "teacher": "self"}, "h: noise has no effect on teacher: self"),
        ({"schedule": "joint", "teacher": "runs/x"}, "joint trains its teacher, and 'runs/x' is trained"),
        ({"value_texts": {"color": {"file": "none.csv", "key": "color", "text": "story"}}}, "none.csv"),
    ],
)
def test_bad_settings_are_one_line(run, configs, llm, changes, message, capsys):
    settings = as_arguments({**llm, "h_dim": 4, **changes})
    code = main(["run", "--config", str(configs), "--expid", "DeepFM_ELEC_shop", *settings])
    if message is None:
        assert code == 0  # ids may be named
        return
    error = capsys.readouterr().err.splitlines()[-1]
    assert code == 2 and error.startswith("error: ")
    assert re.search(message, error), error


def test_a_column_more_that_widens_the_representation_is_named_before_anything_is_computed(run):
    with pytest.raises(
        UserError, match=r"inject: input makes .* of DCNv2 28 wide instead of 24; set .*hint, or beta: 0"
    ):
        run("DCNv2_ELEC_shop", inject="input")
    assert not (cache_dir() / "text_vectors").exists()
    hinted = run("DCNv2_ELEC_shop", inject="input", representation_loss="hint")
    assert hinted.record["parameters"]["method"] == 24 * 28 + 28


def test_stored_vectors_are_those_of_the_head_on_texts_encoded_now(run, tiny_llm):
    prepared = run(only_prepare=True)
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


def test_other_slices_do_not_train_the_networks_anew(run):
    run()
    record = run(slice_by="city").record
    assert record["stages"]["train gain"]["cached"] and record["networks"]["gain"]["slices"]["by"] == "city"


def test_a_data_set_of_ids_alone_has_nothing_to_read(run, configs):
    Path("words.yaml").write_text("fields: {user: id of the user}\n", encoding="utf-8")
    edit(configs / "dataset_config.yaml", "[color, city, user]", "[user]")
    edit(
        configs / "dataset_config.yaml",
        "    - {name: tags, active: true, dtype: str, type: sequence, splitter: ^, max_len: 3}\n",
        "",
    )
    with pytest.raises(UserError, match="nothing to read"):
        run()


def test_a_run_can_teach_another_backbone_and_one_on_other_data_cannot(run, configs):
    teacher = run("DCNv2_shop")
    name = str(teacher.model.checkpoint).removesuffix(".model")
    result = run(teacher=name, beta=0.0)
    assert result.record["networks"]["teacher"]["metrics"] == teacher.record["metrics"]
    assert "encode" not in result.record["stages"]
    with pytest.raises(
        UserError, match="is 8 wide, .* set representation_loss: hint and teacher_width: 24, or beta: 0"
    ):
        run(teacher=name)
    hint = run(teacher=name, representation_loss="hint")
    assert hint.record["metrics"] != result.record["metrics"]
    raw = load_experiment("DeepFM_shop", configs).params["train_data"]
    Path(raw).write_text("\n".join(Path(raw).read_text(encoding="utf-8").splitlines()[:500]) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"teacher '.*DCNv2_shop_\w+' was trained on data set 'shop'"):
        run(teacher=name, beta=0.0)


def test_a_teacher_that_was_measured_in_another_way_is_shown_as_far_as_it_was(run):
    teacher = run("DCNv2_shop", metrics=["AUC"])
    result = run(teacher=str(teacher.model.checkpoint).removesuffix(".model"), beta=0.0)
    line = next(line for line in log_of(result).splitlines() if line.startswith("  teacher "))
    assert line.split()[2::2] == ["-", "-"] and f"{teacher.record['metrics']['test']['AUC']:.6f}" in line


def test_a_teacher_need_not_see_meta_columns(run, configs):
    edit(configs / "dataset_config.yaml", "    - {name: tags", META + "    - {name: tags")
    for path in Path("raw").iterdir():
        lines = path.read_text(encoding="utf-8").splitlines()
        path.write_text("\n".join([lines[0] + ",group", *(f"{line},1" for line in lines[1:])]), encoding="utf-8")
    teacher = run("DeepFM_shop")
    assert "group" in teacher.run.feature_map.features
    changes = {"use_features": ["color", "city", "user", "tags"], "beta": 0.0}
    result = run(teacher=str(teacher.model.checkpoint).removesuffix(".model"), **changes)
    assert "group" not in result.run.feature_map.features and result.record["networks"]["teacher"]


def test_a_split_with_one_class_is_named(run, configs):
    raw = Path(load_experiment("DeepFM_shop", configs).params["valid_data"])
    lines = raw.read_text(encoding="utf-8").splitlines()
    raw.write_text("\n".join([lines[0], *(line for line in lines[1:] if line.endswith("1"))]) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="one value only"):
        run()


@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize("expid", ["DeepFM_ELEC_shop", "DeepFM_shop"])
def test_a_split_of_built_data_with_one_class_is_named(run, configs, split, expid):
    run("DeepFM_shop", epochs=1)
    path = Path(f"data/shop/{split}.parquet")
    rows = pandas.read_parquet(path)
    rows[rows["click"] == 1].to_parquet(path)
    Path("data/shop/build.json").unlink()  # as FuxiCTR leaves it
    edit(configs / "dataset_config.yaml", "data_format: csv", "data_format: parquet")
    for name in ("train", "valid", "test"):
        edit(configs / "dataset_config.yaml", f"{Path('raw').absolute()}/{name}.csv", f"data/shop/{name}.parquet")
    with pytest.raises(Exception, match=f"label 'click' of 'data/shop/{split}.parquet' has one value only"):
        run(expid)
