"""Where a model's class comes from: in the run record, and in an export, which runs no file that it names."""

from pathlib import Path

import numpy as np
import pytest

from fuxictr_llm import export_run, load_model, registry
from fuxictr_llm.__main__ import main
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import digest_of_file, read_json, write_json
from support import edit
from support_zoo import NET, write_checkout


@pytest.fixture
def run(configs, tmp_path):
    """Runs `expid` of the small data set with the checkout `fx`, and gives the record."""
    write_checkout(tmp_path / "fx")

    def run(expid, *options):
        assert main(["run", "--config", str(configs), "--expid", expid, *options]) == 0
        (record,) = Path("checkpoints/shop").glob("*/*.run.json")
        return read_json(record)

    return run


def test_a_checkouts_model_runs_and_is_exported_and_served_with_a_checkout(run, monkeypatch, caplog):
    record = run("QNN/Twin_shop", "--zoo", "fx")
    file = Path("fx/model_zoo/QNN/src/Twin.py").resolve()
    digest = digest_of_file(file)
    assert record["backbone"] == {"kind": "checkout", "name": "QNN/Twin", "file": str(file), "sha256": digest}
    config = read_json(export_run("checkpoints/shop", "served") / "config.json")
    assert config["backbone"] == {"kind": "checkout", "file": "Twin.py", "sha256": digest}
    batch = {
        name: np.ones((2, 3) if name == "tags" else 2, dtype=np.int64) for name in config["feature_map"]["features"]
    }
    assert load_model("served").predict(batch).shape == (2,)
    file.write_text(file.read_text() + "# changed\n")
    load_model("served")
    assert "the file of QNN/Twin has changed since the model was trained" in caplog.text
    monkeypatch.setenv("FUXICTR_ZOO", "")
    with pytest.raises(UserError, match="holds a QNN/Twin of a FuxiCTR checkout; set FUXICTR_ZOO to one"):
        load_model("served")


def test_a_run_is_exported_with_the_class_that_it_was_trained_with(run, monkeypatch, caplog):
    file = Path("fx/model_zoo/DNN/DNN_torch/src/DNN.py")
    keys = "hidden_activations=None, net_dropout=0, batch_norm=False"  # which ours has too
    edit(file, "hidden_units=[8],", f"hidden_units=[8], {keys},")
    run("DNN_shop", "--zoo", "fx", "--set", "hidden_units=[8]")
    file.write_text(file.read_text() + "# changed\n")
    assert read_json(export_run("checkpoints/shop", "served") / "config.json")["backbone"]["kind"] == "checkout"
    assert "the file of DNN has changed since the model was trained" in caplog.text
    monkeypatch.setenv("FUXICTR_ZOO", "")
    with pytest.raises(UserError, match="holds a DNN of a FuxiCTR checkout; set FUXICTR_ZOO to one"):
        export_run("checkpoints/shop", "served")


def test_a_run_of_our_own_model_is_exported_with_it_whatever_the_checkout_has(run, monkeypatch):
    run("DNN_shop", "--set", "hidden_units=[8]")
    monkeypatch.setenv("FUXICTR_ZOO", "fx")
    assert read_json(export_run("checkpoints/shop", "served") / "config.json")["backbone"]["kind"] == "fuxictr-llm"


def test_an_export_of_our_own_model_is_served_by_ours_whatever_the_checkout_has(run, monkeypatch):
    run("DNN_shop", "--set", "hidden_units=[8]")
    export_run("checkpoints/shop", "served")
    monkeypatch.setenv("FUXICTR_ZOO", "fx")
    assert type(load_model("served").model) is registry.find_own_backbone("DNN")


@pytest.mark.parametrize("method", [None, "LLaCTR"])
def test_a_model_in_a_file_runs_through_a_config_entry(run, configs, tiny_settings, method):
    Path("my_net.py").write_text(NET.format(name="MyNet"))
    entry = f"  model: my_net.py:MyNet\n  dataset_id: shop\n  method: {method or 'null'}\n  hidden_units: [6]\n"
    entry += "".join(f"  {key}: {value}\n" for key, value in (tiny_settings if method else {}).items())
    (configs / "method_config" / "mine.yaml").write_text("")
    edit(configs / "model_config.yaml", "DeepFM:", f"my_run:\n{entry}DeepFM:")
    record = run("my_run")
    assert record["backbone"]["kind"] == "file" and record["backbone"]["file"] == str(Path("my_net.py").resolve())
    exported = export_run("checkpoints/shop", "served") / "config.json"
    assert read_json(exported)["model"] == "my_net.py:MyNet" and str(Path.cwd()) not in exported.read_text()
    assert type(load_model("served").model).__name__.startswith("MyNet")


def test_an_export_runs_no_file_that_it_names(run):
    run("DNN_shop", "--set", "hidden_units=[8]")
    folder = export_run("checkpoints/shop", "served")
    Path("evil.py").write_text("import pathlib\npathlib.Path('ran').touch()\n" + NET.format(name="DNN"))
    for name in ("evil.py:DNN", f"{Path.cwd()}/evil.py:DNN"):
        for kind in ("file", "module", "fuxictr-llm", None):
            changed = {"model": name, "backbone": {"kind": kind}}
            write_json(folder / "config.json", read_json(folder / "config.json") | changed)
            with pytest.raises(UserError, match="which an export does not bring; load it before"):
                load_model("served")
    assert not Path("ran").exists()
