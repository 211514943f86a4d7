"""Names of data sets and labels, which folders and files are called by: no path out of their place, all of them."""

from pathlib import Path

import pytest
import yaml

from fuxictr_llm.__main__ import main
from fuxictr_llm.common.checks import LONGEST, check_label, check_name
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.experiment.run import run_experiment
from fuxictr_llm.leaderboard.plan.arms import Arm
from fuxictr_llm.leaderboard.plan.plan import Plan

GOOD = ["shop", "microvideo1.7m_x1", "AFN+", "Wide&Deep", "DCN-V2", "my data", "Köln", "店", "a..b", "x" * LONGEST]
BAD = {
    "": "is empty",
    ".": "begins or ends with a dot",
    "..": "begins or ends with a dot",
    ".hidden": "begins or ends with a dot",
    "shop.": "begins or ends with a dot",
    "../../escaped": "holds a path separator",
    "/tmp/escaped": "holds a path separator",
    "shop/": "holds a path separator",
    "a\\b": "holds a path separator",
    "a\nb": "holds a line break",
    "a\rb": "holds a line break",
    "a\tb": "does not print",
    "a\0b": "does not print",
    "a\x1b[31mb": "does not print",
    "a\u2028b": "does not print",
    "a\u202eb": "does not print",  # turns the reading direction round
    "a\u200bb": "does not print",
    "a\ud800b": "does not print",
    " shop": "begins or ends with a space",
    "shop ": "begins or ends with a space",
    "shop*": "pattern of file names",
    "shop[1]": "pattern of file names",
    "x" * (LONGEST + 1): f"is {LONGEST + 1} bytes long",
    "é" * (LONGEST // 2 + 1): f"is {LONGEST + 2} bytes long",
    "x" * 300: "'x{40}...x{10}' is 300 bytes long",
}


@pytest.mark.parametrize("name", GOOD)
def test_names_that_files_can_have(name):
    check_name("dataset_id", name)
    check_label(name)
    check_label(f"LongCTR/{name}"[:LONGEST])


@pytest.mark.parametrize("name", BAD, ids=repr)
def test_names_that_files_cannot_have(name):
    with pytest.raises(UserError, match=f"^dataset_id .*{BAD[name]}.*; files are called by it") as caught:
        check_name("dataset_id", name)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 200  # one line
    if "/" not in name:
        with pytest.raises(UserError, match="^expid "):
            check_label(name)


@pytest.mark.parametrize("label", ["/DIN_shop", "../DIN_shop", "a/../DIN_shop", "a//b", "a/", "./a", "a/."])
def test_a_label_may_name_a_folder_of_models_but_no_path(label):
    with pytest.raises(UserError, match="holds a path separator"):
        check_label(label)


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def _doors(configs: Path, name: str, folder: Path) -> dict[str, tuple[str, Path]]:
    """Label and config of an experiment on a data set of that name, for each form of `--config`."""
    entry = yaml.safe_load((configs / "dataset_config.yaml").read_text())["shop"]
    (configs / "dataset_config.yaml").write_text(yaml.safe_dump({name: entry}), encoding="utf-8")
    with (configs / "model_config.yaml").open("a", encoding="utf-8") as file:
        file.write("\n" + yaml.safe_dump({"Mine": {"model": "DeepFM", "dataset_id": name}}))
    plain = load_experiment("DeepFM_movielens100k")
    plain.write_directory(folder / "plain")
    for kind in ("model_config", "dataset_config"):
        path = folder / "plain" / f"{kind}.yaml"
        found = yaml.safe_load(path.read_text())
        found = {name: found["movielens100k"]} if kind == "dataset_config" else found
        if kind == "model_config":
            found["DeepFM_movielens100k"]["dataset_id"] = name
        path.write_text(yaml.safe_dump(found), encoding="utf-8")
    printed = yaml.safe_load(plain.to_yaml())
    printed["DeepFM_movielens100k"]["dataset_id"] = name
    (folder / "printed.yaml").write_text(yaml.safe_dump(printed), encoding="utf-8")
    return {
        "ours": ("Mine", configs),
        "an expid of ours": (f"DeepFM_{name}", configs),
        "FuxiCTR's": ("DeepFM_movielens100k", folder / "plain"),
        "printed": ("DeepFM_movielens100k", folder / "printed.yaml"),
    }


@pytest.mark.parametrize("name", ["../../escaped", "a\nb", "x" * 300, ".hidden"])
def test_no_door_lets_a_data_set_of_such_a_name_in(configs, tmp_path, capsys, name):
    doors = _doors(configs, name, tmp_path)
    before = _files(tmp_path.parent)
    for what, (expid, config) in doors.items():
        with pytest.raises(UserError, match="^(dataset_id|expid) .*files are called by it"):
            load_experiment(expid, config)
        assert main(["run", "--config", str(config), "--expid", expid]) == 2, what
        assert len(capsys.readouterr().err.splitlines()) == 1, what
    assert main(["prepare", name, "--config", str(configs)]) == 2
    with pytest.raises(UserError, match="files are called by it"):
        Plan([Arm("DeepFM", name)], config=str(configs))
    assert _files(tmp_path.parent) == before


@pytest.mark.parametrize("label", ["../escaped", "a\nb", "y" * 200, ".hidden", "end. ", "nul\0"])
def test_no_door_lets_such_a_label_in(configs, tmp_path, label):
    of_ours = load_experiment("DeepFM_shop", configs)
    of_ours.write_directory(tmp_path / "plain")
    entry = yaml.safe_load((tmp_path / "plain" / "model_config.yaml").read_text())["DeepFM_shop"]
    (tmp_path / "plain" / "model_config.yaml").write_text(yaml.safe_dump({label: entry}), encoding="utf-8")
    (tmp_path / "printed.yaml").write_text(yaml.safe_dump({label: of_ours.params}), encoding="utf-8")
    (configs / "model_config.yaml").write_text(
        yaml.safe_dump({label: {"model": "DeepFM", "dataset_id": "shop"}}), encoding="utf-8"
    )
    for config in (configs, tmp_path / "plain", tmp_path / "printed.yaml"):
        with pytest.raises(UserError, match="^expid .*files are called by it"):
            load_experiment(label, config)


def test_a_control_is_called_by_a_name():
    with pytest.raises(UserError, match="^control '../x' holds a path separator"):
        Arm("DeepFM", "shop", "Mine", control="../x")


def test_the_longest_names_leave_room_for_all_that_a_run_adds(configs, tmp_path):
    """A run and its rerun with other settings, whose files have a digest in their names."""
    long = "x" * LONGEST
    entry = yaml.safe_load((configs / "dataset_config.yaml").read_text())["shop"]
    (configs / "dataset_config.yaml").write_text(yaml.safe_dump({long: entry}), encoding="utf-8")
    with (configs / "model_config.yaml").open("a", encoding="utf-8") as file:
        file.write("\n" + yaml.safe_dump({long: {"model": "FM", "dataset_id": long}}))
    for rate in (0.03, 0.04):
        run_experiment(load_experiment(long, configs, overrides={"epochs": 1, "learning_rate": rate}))
    assert len([name for name in _files(tmp_path / "checkpoints") if name.endswith(".run.json")]) == 2
    (run,) = Plan(
        [Arm("FM", "movielens100k", "LLaCTR", "random", {"field_vectors": "random"})], seeds=[2**32 - 1]
    ).runs()
    of_a_leaderboard = len(run.name) - len("FM_LLaCTR_movielens100k") + LONGEST
    assert of_a_leaderboard + len(".") + len(".field_similarities.png.4194304.tmp") <= 255


def test_names_that_yaml_reads_as_numbers_are_told_to_be_quoted(configs):
    text = (configs / "dataset_config.yaml").read_text()
    (configs / "dataset_config.yaml").write_text(text.replace("shop:", "2024:", 1))
    with pytest.raises(UserError, match="entry 2024 of .* is a int; write its name in quotes"):
        load_experiment("DeepFM_2024", configs)
    (configs / "dataset_config.yaml").write_text(text.replace("shop:", "'2024':", 1))
    assert load_experiment("DeepFM_2024", configs).params["dataset_id"] == "2024"


def test_a_path_that_is_too_long_is_one_line(capsys):
    assert main(["run", "--config", "c" * 300, "--expid", "DeepFM_shop"]) == 2
    assert "error: File name too long: 'ccc" in capsys.readouterr().err
