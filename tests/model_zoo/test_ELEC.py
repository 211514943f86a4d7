"""ELEC on several backbones, as whole runs: what must hold exactly."""

import shutil
from pathlib import Path

import pytest
import torch

from fuxictr_llm.common.files import cache_dir
from fuxictr_llm.common.runs import seconds_of
from fuxictr_llm.data.loader import make_loaders
from fuxictr_llm.experiment.run import build_model
from fuxictr_llm.llm.model_files import digest_of_model
from fuxictr_llm.model_zoo.ELEC import ELEC
from fuxictr_llm.registry import find_backbone
from fuxictr_llm.serving.export import export_run
from support import edit
from support_process import run_code
from support_zoo import NET

BACKBONES = ["DeepFM", "DCNv2", "FinalMLP", "FM"]
META = "    - {name: group, active: true, dtype: int, type: meta}\n"
every_backbone = pytest.mark.parametrize("name", BACKBONES)


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
    assert list(record["networks"]) == ["text", "plain", "gain"]
    assert record["networks"]["plain"]["metrics"] == plain.record["metrics"]
    for network in record["networks"].values():
        assert set(network["metrics"]["test"]) == set(record["metrics"]["test"]) == {"AUC", "logloss"}
    assert record["parameters"] == plain.record["parameters"]
    stages = list(record["stages"])
    trained = ["train plain", "train gain", "train"]
    assert stages[2:] == ["texts", "encode", "train text", "vectors of rows", *trained, "test"]
    assert set(record["notes"]["text_vectors"]) == {"user", "item"}
    last = Path("my_configs.csv").read_text().splitlines()[-1]
    assert f"AUC: {record['metrics']['test']['AUC']:.6f}" in last.rpartition("[test]")[2]
    for facts in (plain.record, record, record["networks"]["gain"]):
        assert facts["slices"]["by"] == "color" and sum(s["rows"] for s in facts["slices"]["slices"].values()) == 150
    again = run(f"{name}_ELEC_shop").record
    assert again["metrics"] == record["metrics"] and again["networks"] == record["networks"]
    for stage in ("encode", "train text", "train gain"):
        found, made = again["stages"][stage], record["stages"][stage]
        assert found["cached"] and 0 < seconds_of(found) <= seconds_of(made) + 0.001


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
    ended = run_code(code)
    assert ended.returncode == 0, ended.stderr
    served = torch.tensor([float(value) for value in ended.stdout.split()])
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
    model.enhancement.on_train_begin(prepared)
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


def test_the_networks_are_set_side_by_side_and_a_missing_plain_run_is_named(run):
    alone = run(schedule="joint", epochs=3)
    assert "--expid DeepFM_shop)" in log_of(alone)
    plain = run("DeepFM_shop", epochs=3)
    run("DeepFM_shop", seed=8, epochs=3)
    joint = run(schedule="joint", epochs=3)
    lines = log_of(joint).rpartition("network  ")[2].splitlines()
    assert lines[1].split()[0] == "plain" and f"{plain.record['metrics']['test']['AUC']:.6f}" in lines[1]
    assert [line.split()[0] for line in lines[2:5]] == ["text", "gain", "vanilla"]
    assert [line.split(":")[0].strip() for line in lines[5:7]] == ["valid", "test"]
    assert all("gain network over plain" in line for line in lines[5:7])
    assert lines[7].split()[-3:] == ["plain", "gain", "vanilla"]


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
        patch.setattr(ELEC, "on_train_begin", killed)
        run()
    stages = run().record["stages"]
    assert [name for name, facts in stages.items() if facts.get("cached")] == [
        *("encode", "train text", "train plain", "train gain")
    ]


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
    twin = run(schedule="joint", teacher="self", epochs=3, precision="bf16")
    assert list(twin.record["networks"]) == ["twin"]
    assert twin.run.prepared.step.precision.name == "bf16"  # the student's


def test_other_slices_do_not_train_the_networks_anew(run):
    run()
    record = run(slice_by="city").record
    assert record["stages"]["train gain"]["cached"] and record["networks"]["gain"]["slices"]["by"] == "city"


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


def test_a_class_whose_file_changed_is_another_teacher_and_another_plain_run(run, configs):
    Path("my_net.py").write_text(NET.format(name="MyNet"))
    edit(configs / "model_config.yaml", "DeepFM:", "MyNet: {model: my_net.py:MyNet}\nDeepFM:")
    run("MyNet_shop")
    run("MyNet_ELEC_shop")
    again = run("MyNet_ELEC_shop")
    assert again.record["stages"]["train gain"]["cached"]
    edit(Path("my_net.py"), "hidden_units=[8]", "hidden_units=[9]")
    changed = run("MyNet_ELEC_shop")
    assert "cached" not in changed.record["stages"]["train gain"] and changed.record["stages"]["train text"]["cached"]
    assert "cached" not in changed.record["stages"]["train plain"]
