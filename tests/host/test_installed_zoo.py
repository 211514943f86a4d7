"""The models that the fuxictr wheel installs (LongCTR) are backbones, and Python's own `model_zoo` is left alone."""

import importlib.metadata
import sys
from pathlib import Path

import pytest
from fuxictr.pytorch.models import BaseModel

from fuxictr_llm import registry
from fuxictr_llm.__main__ import main
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.config.origins import find_exported, find_trained, origin_of
from fuxictr_llm.diagnosis import zoo_table
from fuxictr_llm.host.checkout import Checkout, installed_zoo, use_checkout
from support_zoo import write_checkout

ONLY_THERE = ["ETA", "MIRRN", "SDIM", "SIM", "TWIN"]
AS_OURS = ["LongCTR/DCNv2", "LongCTR/DIEN", "LongCTR/DIN", "LongCTR/FinalMLP", "LongCTR/TransAct"]


@pytest.mark.parametrize("name", [*ONLY_THERE, *AS_OURS])
def test_a_name_finds_the_wheels_class_and_python_is_left_as_it_was(name):
    before = sys.path[:], "model_zoo" in sys.modules
    cls = registry.find_backbone(name)
    assert issubclass(cls, BaseModel) and cls.__name__ == name.rpartition("/")[2]
    origin = origin_of(cls)
    full_name = f"LongCTR/{cls.__name__}"
    assert (origin.kind, origin.name) == ("fuxictr", full_name) and origin.file.endswith(
        f"{full_name}/{cls.__name__}.py"
    )
    assert registry.find_backbone(origin.name) is cls
    assert (sys.path, "model_zoo" in sys.modules) == before


def test_the_names_are_listed_once():
    names = registry.backbone_names()
    assert {*ONLY_THERE, *AS_OURS, "DIN", "DCNv2"} <= {*names}
    assert len(names) == len({*names}) and "LongCTR/SIM" not in names


def test_our_class_wins_over_the_wheels_and_a_checkouts_over_both(tmp_path, monkeypatch):
    assert origin_of(registry.find_backbone("DIN")).kind == "fuxictr-llm"
    write_checkout(tmp_path / "fx")
    use_checkout(str(tmp_path / "fx"))
    kinds = {name: origin_of(registry.find_backbone(name)).kind for name in ("DIN", "LongCTR/DIN", "ETA", "SIM", "FM")}
    assert kinds == dict.fromkeys(("DIN", "LongCTR/DIN", "ETA"), "checkout") | {"SIM": "fuxictr", "FM": "fuxictr-llm"}
    names = registry.backbone_names()
    assert {"LongCTR/DIN", "ETA", "SIM"} <= {*names} and "LongCTR/ETA" not in names


def test_a_registered_class_wins_over_the_wheels(monkeypatch):
    monkeypatch.setattr(registry, "_backbones", dict(registry._backbones))
    mine = registry.register_backbone(type("SIM", (registry.find_backbone("FM"),), {"__module__": "mine"}))
    assert registry.find_backbone("SIM") is mine and "LongCTR/SIM" in registry.backbone_names()
    assert origin_of(registry.find_backbone("LongCTR/SIM")).kind == "fuxictr"


def test_a_run_of_it_finds_the_class_again_whatever_has_its_name_since(monkeypatch):
    cls = registry.find_backbone("SIM")
    record, (name, exported) = origin_of(cls).record(), origin_of(cls).portable()
    monkeypatch.setattr(registry, "_backbones", dict(registry._backbones))
    registry.register_backbone(type("SIM", (registry.find_backbone("FM"),), {"__module__": "mine"}))
    assert find_trained("SIM", record, "run") is cls and find_exported(name, exported, "export") is cls
    monkeypatch.setattr("fuxictr_llm.config.origins.installed_zoo", lambda: Checkout(installed_zoo().folder, (), {}))
    with pytest.raises(UserError, match="holds a LongCTR/SIM of the fuxictr package, and the one that is installed"):
        find_exported(name, exported, "export")


@pytest.mark.parametrize("installed", ["without a list of files", "not at all"])
def test_a_fuxictr_without_models_brings_none(installed, monkeypatch):
    def distribution(name):
        if installed == "not at all":
            raise importlib.metadata.PackageNotFoundError(name)
        found = importlib.metadata.Distribution.from_name(name)
        monkeypatch.setattr(type(found), "files", None)
        return found

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    assert installed_zoo.__wrapped__().models == ()


def test_run_lists_them(capsys):
    assert main(["run", "--list"]) == 0
    listed = capsys.readouterr().out.partition("\n")[0]
    assert all(f" {name}" in listed for name in (*ONLY_THERE, *AS_OURS))


def test_the_zoo_table_trains_them_with_the_methods(capsys, monkeypatch):
    names = []

    def only_sim(asked, look, *_):
        names.extend(asked)
        return [look("SIM")]

    monkeypatch.setattr(zoo_table, "look_at_all", only_sim)
    assert main(["zoo", "--to", "table.md"]) == 0
    assert {*ONLY_THERE, *AS_OURS} <= {*names}
    row = "| SIM |  | 10/10, D 4 | 1 | 8 | works | works | works | in part | works | works |"  # CTRL, ELEC, KAR, LLMEmb, ...
    assert row in Path("table.md").read_text()
