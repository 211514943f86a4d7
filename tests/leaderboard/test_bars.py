"""A row in BARS's folder form, read back as BARS's generator script reads it."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import read_json, write_json
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.experiment.run import run_experiment
from fuxictr_llm.leaderboard.boards.bars import environments_of, model_name, write_row
from support import edit


@pytest.fixture
def runs(configs) -> list[str]:
    """Two runs of an FM with a comma in their command, at the seeds 7 and 8."""
    done = []
    for seed in (None, 8):
        experiment = load_experiment("FM_shop", configs, seed=seed, overrides={"epochs": 1})
        done.append(run_experiment(experiment).model.checkpoint.removesuffix(".model"))
        edit(f"{done[-1]}.run.json", '"command": "', '"command": "python run.py --set hidden_units=[8,8] ')
    return done


def read_as_bars_does(folder: Path) -> dict:
    """What scripts/gen_readme_md.py takes from a row's folder, and how."""
    model = str(folder).split("ctr/")[1].split("/")[0]
    sections, state = {"[Hardware]": "", "[Software]": ""}, None
    for line in (folder / "environments.txt").read_text().splitlines(keepends=True):
        if line.startswith(("[Hardware]", "[Software]")):
            state = line.strip()
        elif line.strip():
            sections[state] += line
    (log,) = folder.glob("*.log")
    (config,) = folder.glob("*_config*")
    lines = pd.read_csv(folder / "results.csv", header=None).values[:, -1]
    parts = [[part.split(":") for part in line.split("]")[-1].split("-")] for line in lines]
    return {
        "model": model,
        "dataset": "_".join(folder.name.split("_")[model.count("_") + 1 :]),
        "fuxictr": sections["[Software]"].strip().split("\n")[-1].split(":")[-1].strip(),
        "expid": log.name.split(".")[0],
        "config": config,
        "log": log.read_text(),
        "metrics": [{name.strip(): float(value) for name, value in line} for line in parts],
    }


def test_a_row_of_two_seeds_is_read_by_bars(runs):
    folder = write_row(runs, "ranking/ctr")
    assert folder == Path("ranking/ctr/FM/FM_shop")
    row = read_as_bars_does(folder)
    records = [read_json(f"{run}.run.json") for run in runs]
    assert (row["model"], row["dataset"], row["expid"]) == ("FM", "shop", records[0]["model_id"])
    assert row["fuxictr"] == records[0]["versions"]["fuxictr"]
    for metrics, record in zip(row["metrics"], records, strict=True):
        assert metrics == {name: round(value, 6) for name, value in record["metrics"]["test"].items()}
    results = (folder / "results.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in results] == ["seed=7", "seed=8"]
    pattern = r'seed=8, \d{8}-\d{6},"\[command\] .*",\[exp_id\] \S+,\[dataset_id\] shop,\[train\] N.A.,\[val\] AUC'
    assert re.match(pattern, results[1])
    readme = (folder / "README.md").read_text()
    aucs = [record["metrics"]["test"]["AUC"] for record in records]
    assert f"| Avg | {np.mean(aucs):.6f} |" in readme and f"| Std | &#177;{np.std(aucs):.8f} |" in readme
    assert row["log"] in readme and readme.count("Params: {") == 1


def test_its_config_folder_is_that_of_the_run_and_it_has_one_log(runs):
    row = read_as_bars_does(write_row(runs[:1], "ctr"))
    record = read_json(f"{runs[0]}.run.json")
    resolved = load_experiment(row["expid"], row["config"]).params
    assert resolved["field_config"] == f"{row['config']}/words.yaml"
    assert {**resolved, "gpu": -1, "field_config": record["config"]["field_config"]} == record["config"]
    assert "--gpu" not in Path("ctr/FM/FM_shop/README.md").read_text()  # it ran without one
    assert row["log"].count("Test evaluation") == 1
    assert Path("ctr/FM/FM_shop/results.csv").read_text().startswith(" 20")


@pytest.mark.parametrize("kind", ["real", "fake"])
def test_a_placebo_is_called_one_and_the_config_of_a_method_of_a_file_runs(configs, method_file, kind):
    (configs / "method_config" / "Mine.yaml").write_text(f"Mine: {{method: {method_file}}}\n")
    run = run_experiment(load_experiment("FM_Mine_shop", configs, overrides={"epochs": 1, "kind": kind}))
    folder = write_row([f"checkpoints/shop/{run.record['model_id']}"], "ctr")
    name = "FM_MineModel" + ("_fake" if kind == "fake" else "")
    assert folder == Path(f"ctr/{name}/{name}_shop")
    row = read_as_bars_does(folder)
    assert (row["model"], row["dataset"]) == (name, "shop")
    Path("mine.py").rename("elsewhere.py")
    resolved = load_experiment(row["expid"], row["config"]).params
    assert resolved["method"] == f"{row['config']}/mine.py:MineModel"
    others = {key: run.record["config"][key] for key in ("method", "field_config")}
    assert {**resolved, **others, "gpu": -1} == run.record["config"]
    placebo = "**A placebo**: the control `fake` of the method mine.py:MineModel, not the method itself."
    assert (placebo in (folder / "README.md").read_text()) == (kind == "fake")


OWN_NET = """
from .parts import Base


class MyNet(Base):
    def __init__(self, feature_map, model_id="MyNet", **kwargs):
        super().__init__(feature_map, model_id=model_id, **kwargs)
"""
PARTS = "from fuxictr_llm.model_zoo.backbones.FM import FM as Base\n"


def test_a_strangers_backbone_comes_with_its_files_and_its_true_name(configs):
    Path("nets").mkdir()
    Path("nets/my_net.py").write_text(OWN_NET)
    Path("nets/parts.py").write_text(PARTS)
    edit(configs / "model_config.yaml", "Base:", "MyNet: {model: nets/my_net.py:MyNet}\nBase:")
    run = run_experiment(load_experiment("MyNet_shop", configs, overrides={"epochs": 1}))
    files = f"checkpoints/shop/{run.record['model_id']}"
    folder = write_row([files], "ctr")
    assert folder == Path("ctr/MyNet/MyNet_shop")
    row, page = read_as_bars_does(folder), (folder / "README.md").read_text()
    assert (row["model"], row["dataset"]) == ("MyNet", "shop")
    name = f"{run.record['model_id']}_config/my_net.py"
    assert f"`MyNet` of `{name}`, a model of its author's own, run by fuxictr-llm" in page
    assert "--gpu" not in page and "MyNet as fuxictr-llm" not in page
    edit("nets/my_net.py", "class MyNet", "# changed\nclass MyNet")
    with pytest.raises(UserError, match=r"'nets/my_net.py' has changed since the run"):
        write_row([files], "other")
    Path("nets").rename("elsewhere")
    again = run_experiment(load_experiment(row["expid"], row["config"]))
    assert again.record["metrics"]["test"] == run.record["metrics"]["test"]
    assert again.record["backbone"]["file"] == str(Path(row["config"], "my_net.py").resolve())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": {"valid": {"AUC": 0.5}, "test": {}}}, "has no test metrics"),
        ({"seed": 7}, "seed 7 is given twice"),
        ({"data": {"sha256": {}}}, "differ in data"),
        ({"config": {"epochs": 3}}, "differ in epochs"),
        ({"time": None}, "is damaged"),
    ],
)
def test_what_is_no_row_is_an_error_and_writes_nothing(change, message):
    record = {"model_id": "a", "seed": 7, "metrics": {"test": {"AUC": 0.5}}, "config": {}, "versions": {}}
    record |= {"command": "", "time": "", "data": {}}
    write_json("a.run.json", record)
    other = {**record, "model_id": "b", "seed": 8, **change}
    write_json("b.run.json", {key: value for key, value in other.items() if value is not None})
    with pytest.raises(UserError, match=message):
        write_row(["a", "b"], "ctr")
    assert not Path("ctr").exists()


@pytest.mark.parametrize(
    "change", [{"model_id": "../../mark"}, {"config": {"model": "FM", "dataset_id": "../../mark"}}, {"model_id": ".m"}]
)
def test_a_record_writes_nowhere_but_in_its_row(change):
    """A record is a file that anyone may have written."""
    record = {"model_id": "a", "seed": 7, "metrics": {"test": {"AUC": 0.5}}, "versions": {}, "command": "", "data": {}}
    record |= {"time": "2026-01-01", "config": {"model": "FM", "dataset_id": "shop"}, **change}
    write_json("in/a.run.json", record)
    Path("in/a.log").write_text("")
    before = {*Path().rglob("*")}
    with pytest.raises(UserError, match="files are called by it"):
        write_row(["in/a"], "deep/ctr")
    assert {*Path().rglob("*")} == before


def test_a_row_that_is_there_is_kept(runs):
    folder = write_row(runs, "ctr")
    (folder / "README.md").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        write_row(runs, "ctr")
    assert (folder / "README.md").read_text() == "mine"


def test_names_and_machines():
    assert model_name({"model": "FM", "method": None}) == "FM"
    assert model_name({"model": "nets/my.py:MyNet", "method": "LLaCTR"}) == "MyNet_LLaCTR"
    assert model_name({"model": "FM", "method": "ELEC", "teacher": "self"}) == "FM_ELEC_self"
    machine = {"cpu": "x86", "gpu": "H100 80G", "ram": "128G", "cuda": "12.8"}
    lines = environments_of({"hardware": machine, "versions": {"fuxictr": "2.3.10", "torch": "2.13.0"}}).splitlines()
    assert lines[:3] == ["[Hardware]", "CPU: x86", "GPU: H100 80G"]
    assert lines[-3:] == ["CUDA: 12.8", "pytorch: 2.13.0", "fuxictr: 2.3.10"]
    assert "CPU: not recorded" in environments_of({"versions": {}})
