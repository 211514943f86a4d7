"""What counts as the code of a run: an edited formula is another run, an edited report is not."""

import json
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

import fuxictr_llm
from fuxictr_llm import registry
from fuxictr_llm.common.code_digest import digest_of_code, sources_below
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.experiment.record import code_digests
from fuxictr_llm.leaderboard.run import jobs as loaded
from support import edit
from support_zoo import NET

ROOT = Path(fuxictr_llm.__file__).parent
ARMS = {"plain": ("FM", None), "LLaCTR": ("FM", "LLaCTR"), "ELEC": ("FM", "ELEC"), "DNN": ("DNN", None)}
FM = {(arm, "backbone") for arm in ("plain", "LLaCTR", "ELEC")}
ALL = {*FM, ("DNN", "backbone"), ("LLaCTR", "method"), ("ELEC", "method")}
FIE = "self.config.lambda_fie * self.fie(embeddings)"
EDITS = [
    ("model_zoo/backbones/FM.py", "self.output_activation(logit)", "self.output_activation(-logit)", FM),
    ("model_zoo/LLaCTR/model.py", FIE, f"2 * {FIE}", {("LLaCTR", "method")}),
    ("model_zoo/ELEC/gain.py", ".relu()", ".tanh()", {("ELEC", "method")}),
    ("distillation/teacher.py", "\nfrom ", "\nX = 1\nfrom ", {("ELEC", "method")}),
    ("leaderboard/report/report.py", "\nfrom ", "\nX = 1\nfrom ", set()),
    ("model_zoo/backbones/FM.py", "class FM(", "# a comment\nclass FM(", set()),
    ("training/build.py", "seed_everything(params[", "seed_everything(1 + params[", ALL - {("LLaCTR", "method")}),
    ("enhancement/taps.py", "\nfrom ", "\nX = 1\nfrom ", ALL),
]
# The digests of the arms in the package of a folder, before and after each edit.
CODE = """
import json, sys
from pathlib import Path
folder, edits = json.loads(sys.argv[1])
sys.path.insert(0, folder)
from fuxictr_llm.experiment.record import code_digests

def show():
    print(json.dumps({arm: code_digests({"model": model, "method": method}) for arm, (model, method) in ARMS.items()}))

show()
for file, old, new in edits:
    path = Path(folder, "fuxictr_llm", file)
    assert old in path.read_text(), file
    path.write_text(path.read_text().replace(old, new, 1))
    show()
"""


def digests(tree, edits=()):
    code = f"ARMS = {ARMS!r}\n{CODE}"
    arguments = json.dumps([str(tree), [edit[:3] for edit in edits]])
    done = subprocess.run(
        [sys.executable, "-c", code, arguments], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_arms_that_an_edit_concerns_are_others_whatever_the_process_and_place(tmp_path):
    from fuxictr_llm import model_zoo

    tree, ignored = tmp_path / "tree", shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT, tree / "fuxictr_llm", ignore=ignored)
    for zoo in model_zoo.__path__:
        shutil.copytree(zoo, tree / "fuxictr_llm" / "model_zoo", ignore=ignored, dirs_exist_ok=True)
    seen = digests(tree, EDITS)
    here = {arm: code_digests({"model": model, "method": method}) for arm, (model, method) in ARMS.items()}
    assert seen[0] == here and here["plain"]["backbone"] == here["ELEC"]["backbone"] != here["DNN"]["backbone"]
    for (file, _, _, concerned), (before, after) in zip(EDITS, pairwise(seen), strict=True):
        assert {(arm, part) for arm in after for part in after[arm] if after[arm][part] != before[arm][part]} == (
            concerned
        ), file


def test_what_decides_is_followed_to_the_end_and_what_shows_is_not():
    elec = sources_below(["fuxictr_llm.model_zoo.ELEC"])
    for name in (
        "model_zoo.ELEC.gain",
        "distillation.teacher",
        "training.networks",
        "training.build",
        "enhancement.taps",
    ):
        assert f"fuxictr_llm.{name}" in elec, name  # lazily imported ones too
    assert "fuxictr_llm.model_zoo.LLaCTR.ssft" not in elec
    for name in ("config", "config.resolve", "registry", "common.files", "experiment.record", "host.checkout"):
        assert f"fuxictr_llm.{name}" not in elec, name  # they say so
    assert "fuxictr_llm.model_zoo.sequence_fields" in sources_below(["fuxictr_llm.model_zoo.backbones.DIN"])
    assert not [name for name in elec if name.startswith(("fuxictr_llm.leaderboard", "fuxictr_llm.commands"))]
    assert not [name for name in elec if not name.startswith("fuxictr_llm")]


@pytest.mark.parametrize("form", ["file", "module", "package"])
def test_helpers_of_anyones_classes_count(form, monkeypatch, tmp_path):
    """A name for each form: a module is imported once a process."""
    folder = tmp_path / ("own_" + form)
    folder.mkdir()
    helper, deep = folder / f"help_{form}.py", folder / f"deep_{form}.py"
    net, dot = NET.format(name="Net"), "" if form == "module" else "."
    helper.write_text(f"from {dot}{deep.stem} import TWO\n" if dot else f"import {deep.stem}\n")
    deep.write_text("TWO = 2\n")
    (folder / f"net_{form}.py").write_text(
        f"from {dot}{helper.stem} import *\n{net}" if dot else f"import {helper.stem}\n{net}"
    )
    name = {
        "file": f"{folder}/net_file.py:Net",
        "module": "net_module:Net",
        "package": "own_package.net_package:Net",
    }[form]
    monkeypatch.syspath_prepend(str(folder if form == "module" else tmp_path))
    if form == "package":
        (folder / "__init__.py").write_text("")
    code = [code_digests({"model": name})]
    for file in (helper, deep):
        file.write_text(file.read_text() + "X = 1\n")
        code.append(code_digests({"model": name}))
    (folder / "unrelated.py").write_text("X = 1\n")
    assert len({str(one) for one in code}) == 3 and code_digests({"model": name}) == code[-1]
    assert str(tmp_path) not in str(sources_below([registry.find_backbone(name).__module__]))


def test_a_method_of_a_file_counts_with_what_it_imports(method_file, configs, tmp_path):
    params = load_experiment("FM_shop", configs).params | {"method": method_file}
    before = code_digests(params)
    edit(tmp_path / "mine.py", '"real"', '"unreal"')
    after = code_digests(params)
    assert before["backbone"] == after["backbone"] and before["method"] != after["method"]


def test_a_class_without_a_file_has_the_code_of_its_bases():
    plain = registry.find_backbone("FM")
    made = type("Made", (plain,), {"__module__": "nowhere"})
    registry.register_backbone(made)
    try:
        assert code_digests({"model": "Made"})["backbone"]
    finally:
        registry._backbones.pop("Made")


def test_processes_that_have_older_code_loaded_do_not_run(monkeypatch):
    loaded.check_unchanged()
    monkeypatch.setattr(loaded, "CODE", "another")
    with pytest.raises(fuxictr_llm.UserError, match="was changed since the leaderboard was started; start it again"):
        loaded.check_unchanged()


def test_code_that_changes_while_a_run_runs_is_said(configs, tmp_path, monkeypatch, caplog):
    from fuxictr_llm.experiment import run as experiment

    digests = iter([{"backbone": "a"}, {"backbone": "b"}])
    monkeypatch.setattr(experiment, "source_digests", lambda params: {"code": next(digests)})
    monkeypatch.setattr(experiment, "code_digests", lambda params: next(digests))
    result = experiment.run_experiment(load_experiment("FM_shop", configs, overrides={"epochs": 1}))
    assert result.record["sources"]["code"] == experiment.CHANGED
    assert "was changed while it ran" in Path(result.model.checkpoint).with_suffix(".log").read_text()


def test_digests_of_names_that_are_nothing_are_no_error():
    assert digest_of_code(["no_such_module.at_all"]) == digest_of_code([])
