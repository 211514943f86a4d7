"""The models of a FuxiCTR checkout: found by parsing, run one by one, and nothing else runs."""

import copy
import logging
import pickle
import sys
from pathlib import Path

import pytest
import torch

from fuxictr_llm import registry
from fuxictr_llm.__main__ import main
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.config.origins import origin_of
from fuxictr_llm.enhancement.model import enhance
from fuxictr_llm.host.checkout import current_checkout, use_checkout
from support import Idle, batches, build, params, predictions, train
from support_long import long_feature_map
from support_zoo import write_checkout


@pytest.fixture
def zoo(tmp_path, caplog):
    write_checkout(tmp_path / "fx")
    use_checkout(str(tmp_path / "fx"))
    return current_checkout()


def test_every_torch_model_is_found_by_parsing(zoo):
    names = "AFM APG_A APG_B DIN DNN ETA Fraud LongCTR/DIN Lost PNN/Twin QNN/Twin SAM/SAM"
    assert zoo.names() == names.split()
    assert {*zoo.names(), "DeepFM"} <= {*registry.backbone_names()}


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("DNN", "DNN/DNN_torch/src/DNN.py"),
        ("DIN", "DIN/src/DIN.py"),
        ("DIN/DIN", "DIN/src/DIN.py"),
        ("LongCTR/DIN", "LongCTR/DIN/DIN.py"),
        ("ETA", "LongCTR/ETA/ETA.py"),
        ("LongCTR/ETA", "LongCTR/ETA/ETA.py"),
        ("PNN/Twin", "PNN/src/Twin.py"),
        ("AFM", "AFM/src/AFM.py"),
        ("APG_B", "APG/src/APG_B.py"),
    ],
)
def test_a_name_finds_its_file_and_python_is_left_as_it_was(zoo, name, file):
    before = sys.path[:], Path.cwd(), "model_zoo" in sys.modules
    cls = registry.find_backbone(name)
    origin = origin_of(cls)
    assert origin.file == str(zoo.folder / file)
    assert len(origin.sha256) == 64
    assert origin.kind == "checkout"
    assert registry.find_backbone(origin.name) is cls
    assert (sys.path, Path.cwd(), "model_zoo" in sys.modules) == before


def test_the_checkouts_class_wins_over_ours_only_while_it_is_given(zoo, monkeypatch):
    assert origin_of(registry.find_backbone("DNN")).kind == "checkout"
    monkeypatch.setenv("FUXICTR_ZOO", "")
    ours = registry.find_backbone("DNN")
    assert origin_of(ours).kind == "fuxictr-llm"
    assert registry.find_own_backbone("DNN") is ours and origin_of(ours).name == "DNN"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Twin", "backbone 'Twin' is ambiguous in .*; name one of PNN/Twin, QNN/Twin"),
        ("SAM", "two classes have the name 'SAM': .*a/SAM.py', .*b/SAM.py'; name one as FILE.py:SAM"),
        ("Broken", "backbone 'Broken' cannot be loaded: file .*Broken.py', line 1"),
        ("Deep", "backbone 'Deep' cannot be loaded: file .*Deep.py' cannot be read"),
        ("Lost", "Lost.py' cannot be imported: ModuleNotFoundError.*no_such_module"),
        ("Fraud", "'Fake/Fraud' of .*Fraud.py' is not a subclass of fuxictr.pytorch.models.BaseModel"),
        ("LongCTR/DON", "unknown backbone 'LongCTR/DON'; did you mean 'LongCTR/DIN'"),
    ],
)
def test_a_name_without_one_model_is_an_error_and_the_others_load(zoo, name, message):
    with pytest.raises(UserError, match=message):
        registry.find_backbone(name)
    assert registry.find_backbone("AFM").__name__ == "AFM"


def test_a_damaged_file_is_warned_of_once(tmp_path, caplog):
    write_checkout(tmp_path / "fx")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            use_checkout(str(tmp_path / "fx" / "model_zoo"))
    broken, deep = caplog.messages
    assert "Broken.py', line 1" in broken and "Deep.py' cannot be read" in deep


def test_a_registered_class_of_the_same_name_is_an_error(zoo, monkeypatch):
    monkeypatch.setattr(registry, "_backbones", {})  # another test may have found ours
    registry.register_backbone(type("AFM", (registry.find_backbone("FM"),), {"__module__": "mine"}))
    with pytest.raises(UserError, match="two classes have the name 'AFM': the one registered by mine and that of"):
        registry.find_backbone("AFM")


@pytest.mark.parametrize("method", [None, Idle])
def test_a_model_is_trained_copied_and_pickled(zoo, method):
    cls = registry.find_backbone("DIN")
    model = build(enhance(cls, method) if method else cls, "DNN", hidden_units=[6])
    before = predictions(model, batches("DNN"))
    train(model, batches("DNN"))
    assert not torch.equal(predictions(model, batches("DNN")), before)
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert torch.equal(predictions(twin, batches("DNN")), predictions(model, batches("DNN")))


def test_a_model_of_tuple_batches_is_tapped_however_long_its_short_history_is(zoo):
    cls = enhance(registry.find_backbone("ETA"), Idle)
    model = cls(long_feature_map(), **params("DNN", short_seq_len=7))
    assert model.enhancement.anatomy.fields == ("gender", "item_id", "price", "tags")


@pytest.mark.parametrize("folder", ["nowhere", "empty"])
def test_a_folder_without_models_is_an_error(tmp_path, folder, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["run", "--list", "--zoo", folder]) == 2
    message = "is no folder" if folder == "nowhere" else "has no torch models"
    assert f"{folder}' {message}; name a FuxiCTR checkout" in capsys.readouterr().err


def test_the_list_has_its_names(tmp_path, capsys):
    write_checkout(tmp_path / "fx")
    assert main(["run", "--list", "--zoo", str(tmp_path / "fx")]) == 0
    assert "LongCTR/DIN" in capsys.readouterr().out
