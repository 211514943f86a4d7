"""Files of strangers: a config, a built data set, a run's record or an export that holds code leaves no mark."""

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch

from fuxictr_llm import registry
from fuxictr_llm.__main__ import main
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import read_json, write_json
from fuxictr_llm.serving.export import export_run, load_network
from fuxictr_llm.serving.load import load_model
from support import batches, edit, trained
from support_zoo import NET

CODE = "open('owned', 'w')"
INNER = f'layers.FeatureEmbedding("x", 4, "{CODE}")'
ENCODERS = (CODE, INNER, f"layers.MaskedSumPooling({CODE})")
EVIL = "import pathlib\npathlib.Path('owned').touch()\n"


@pytest.fixture(autouse=True)
def _nothing_ran(monkeypatch):
    monkeypatch.syspath_prepend(".")  # as `python -m` and notebooks have it
    monkeypatch.setattr(registry, "_backbones", dict(registry._backbones))
    monkeypatch.setattr(registry, "_named", {})
    yield
    assert not Path("owned").exists()


class Touch:
    def __reduce__(self):
        return Path.touch, (Path("owned"),)


def refused(call, *args, match):
    with pytest.raises(UserError, match=match) as raised:
        call(*args)
    assert "\n" not in str(raised.value)


def run(configs, capsys, *options, expid="DeepFM_shop"):
    """The error of a run; it is one line."""
    assert main(["run", "--config", str(configs), "--expid", expid, *options]) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("feature_specs", f"[{{name: tags, feature_encoder: {json.dumps(INNER)}}}]"),
        ("feature_specs", f"[{{name: tags, feature_encoder: [{json.dumps(CODE)}]}}]"),
        ("loss", f"x if 0 else {CODE}"),
        ("optimizer", CODE),
        ("metrics", f"['NDCG(k=1) or {CODE}']"),
        ("task", CODE),
        ("embedding_regularizer", f"l2({CODE})"),
        ("hidden_activations", CODE),
        ("label_col", f"{{name: click, dtype: {json.dumps(CODE)}}}"),
    ],
)
def test_settings_run_nothing(configs, capsys, key, value):
    assert repr(CODE)[1:-1] in run(configs, capsys, "--set", f"{key}={value}").replace("\\", "")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("max_len: 3", f"max_len: 3, feature_encoder: {json.dumps(INNER)}", "column 'tags': feature_encoder is"),
        ("dtype: str", f"dtype: {json.dumps(CODE)}", "feature_cols"),
        ("dtype: str", "dtype: str, preprocess: load_pickle(evil.pkl)", "unknown function 'load_pickle'"),
        ("dtype: str", "dtype: str, preprocess: save_vocab(owned)", "unknown function 'save_vocab'"),
        ("dtype: str", "dtype: str, preprocess: __init__(owned)", "unknown function '__init__'"),
    ],
)
def test_columns_run_nothing(configs, capsys, old, new, message):
    Path("evil.pkl").write_bytes(pickle.dumps(Touch()))
    edit(configs / "dataset_config.yaml", old, new)
    assert message in run(configs, capsys)


def test_fuxictrs_own_configs_run_nothing(configs, capsys):
    (configs / "method_config").rmdir()
    entry = "DeepFM_shop: {model: DeepFM, dataset_id: shop, task: binary_classification, loss: bce, optimizer: adam, "
    entry += f"metrics: [AUC], embedding_initializer: {json.dumps(CODE)}}}"
    edit(configs / "model_config.yaml", "DeepFM: {hidden", entry + "\nOther: {hidden")
    assert "config key 'embedding_initializer' is \"open(" in run(configs, capsys)


def test_a_built_data_set_runs_nothing(configs, capsys):
    assert main(["run", "--config", str(configs), "--expid", "DeepFM_shop", "--set", "epochs=1"]) == 0
    path = Path("data/shop/feature_map.json")
    good = path.read_text()
    (Path("data/shop/build.json")).unlink()  # as FuxiCTR builds it
    for split in ("train", "valid", "test"):
        edit(configs / "dataset_config.yaml", f"raw/{split}.csv", f"data/shop/{split}.parquet")
    edit(configs / "dataset_config.yaml", "data_format: csv", "data_format: parquet")
    for encoder in ENCODERS:
        feature_map = json.loads(good)
        next(spec["tags"] for spec in feature_map["features"] if "tags" in spec)["feature_encoder"] = encoder
        path.write_text(json.dumps(feature_map))
        error = run(configs, capsys, expid="DeepFM_shop")
        assert "column 'tags': feature_encoder is" in error and "feature_map.json" in error


def test_a_runs_record_runs_no_text(tmp_path):
    trained("DNN")
    record = read_json("runs/a.run.json")
    for encoder in ENCODERS:
        changed = copy.deepcopy(record)
        changed["feature_map"]["features"]["tags"]["feature_encoder"] = ["layers.MaskedSumPooling()", encoder]
        write_json("runs/a.run.json", changed)
        for door in (lambda: export_run("runs/a", "served"), lambda: load_network("runs/a")):
            refused(door, match="column 'tags': feature_encoder is .* in 'runs/a.run.json', and FuxiCTR")
    evil = dict.fromkeys(("embedding_initializer", "loss", "optimizer", "metrics", "initializer_of_mine"), CODE)
    write_json("runs/a.run.json", {**record, "config": {**record["config"], **evil}})
    load_model(export_run("runs/a", "served"))  # it is left out


@pytest.fixture
def served():
    trained("DNN")
    return export_run("runs/a", "served")


def change(folder, **changes):
    write_json(folder / "config.json", read_json(folder / "config.json") | changes)


@pytest.mark.parametrize("kind", ["module", "file", "checkout", "fuxictr-llm", None])
def test_an_export_imports_nothing(served, kind):
    net = EVIL + NET.format(name="Net")
    (served / "evil.py").write_text(net)
    Path("evil_net.py").write_text(net)
    names = (
        "served.evil:Net",
        "evil_net:Net",
        "served/evil.py:Net",
        "evil_net.py:Net",
        f"{Path.cwd()}/evil_net.py:Net",
    )
    for name in (*names, "subprocess:Popen", "os:system", "builtins:type", ":", "a:", ":b", "../evil:Net"):
        change(served, model=name, backbone={"kind": kind})
        for door in (load_model, load_network):
            refused(door, served, match="which an export does not bring; load it before")
    for name in ("evil_net", "../evil_net", "served/evil", "DNN/evil", "__init__"):
        change(served, model=name, backbone={"kind": kind})
        refused(load_model, served, match="unknown backbone|of a FuxiCTR checkout")


def test_an_exports_checkout_is_the_callers_and_no_name_leads_out_of_it(served, monkeypatch, tmp_path):
    Path("evil_net.py").write_text(EVIL + NET.format(name="Net"))
    (tmp_path / "fx" / "model_zoo" / "DNN" / "src").mkdir(parents=True)
    (tmp_path / "fx" / "model_zoo" / "DNN" / "src" / "DNN.py").write_text(NET.format(name="DNN"))
    monkeypatch.setenv("FUXICTR_ZOO", str(tmp_path / "fx"))
    for name in ("../../evil_net/Net", "evil_net", "evil_net:Net", "evil_net.py:Net"):
        change(served, model=name, backbone={"kind": "checkout"})
        refused(load_model, served, match="unknown backbone|which an export does not bring")


def test_the_caller_names_the_class_or_has_named_it(tmp_path):
    Path("my_net.py").write_text(NET.format(name="MyNet"))
    cls = registry.find_backbone("my_net.py:MyNet")
    folder = _exported(cls)
    assert load_model(folder).fields and type(load_model(folder, backbone=cls).model) is cls
    registry._named.clear()
    refused(load_model, folder, match="holds a model 'my_net.py:MyNet', which an export does not bring; load it before")
    assert type(load_model(folder, backbone=cls).model) is cls
    assert type(load_model(folder, backbone="my_net.py:MyNet").model) is cls
    assert type(load_model(folder).model) is cls  # it is named now
    refused(lambda: load_model(folder, backbone="DNN"), match="holds a my_net.py:MyNet, which is no DNN")
    refused(lambda: load_model(folder, backbone=dict), match="backbone=.* is no class of a FuxiCTR model")


def test_a_registered_class_is_found(tmp_path):
    Path("my_module.py").write_text(NET.format(name="MyNet"))
    cls = registry.import_class("my_module:MyNet", "model", object)
    folder = _exported(cls, "my_module:MyNet")
    registry._named.clear()
    refused(load_model, folder, match="which an export does not bring")  # though it is imported
    registry.register_backbone(cls)
    assert type(load_model(folder).model) is cls


def _exported(cls, name="my_net.py:MyNet"):
    from support import build, save_run

    model = build(cls, "DNN")
    save_run(model, {"model": name, "method": None, "hidden_units": [12, 6], "embedding_dim": 4})
    return export_run("runs/a", "served")


@pytest.mark.parametrize("encoder", ENCODERS)
def test_an_export_evaluates_nothing(served, encoder):
    config = read_json(served / "config.json")
    config["feature_map"]["features"]["tags"]["feature_encoder"] = encoder
    evil = {"x_initializer": CODE, "initializers": CODE, "loss": f"x if 0 else {CODE}", "metrics": [CODE]}
    change(served, feature_map=config["feature_map"], params=config["params"] | evil)
    for door in (load_model, load_network):
        refused(door, served, match="column 'tags': feature_encoder is .* in 'served/config.json', and FuxiCTR")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": 1, "format": 1}', "is damaged .it has 'format' twice.; write it anew"),
        ('{"format": NaN}', "is damaged .it has NaN, which is no number"),
        ('{"format": -Infinity}', "is damaged .it has -Infinity"),
        ("[" * 100_000, "is damaged"),
        ('{"format": 1' + "0" * 5000 + "}", "is damaged"),
        ("\ufeff{}", "is damaged"),
        ("{}", "is damaged"),
    ],
)
def test_a_config_that_is_no_json_is_damaged(served, text, message):
    (served / "config.json").write_text(text)
    refused(load_model, served, match=message)


def test_numbers_do_not_fill_the_memory(served):
    config = read_json(served / "config.json")
    for huge in (10**7, 10**9, 2**62, 2**64):
        for column, key in (
            ("user", "vocab_size"),
            ("tags", "max_len"),
            ("image", "pretrain_dim"),
            ("item", "embedding_dim"),
        ):
            features = copy.deepcopy(config["feature_map"]["features"])
            features[column][key] = huge
            change(served, feature_map=config["feature_map"] | {"features": features}, params=config["params"])
            try:
                load_model(served)  # the length of a sequence costs nothing
            except UserError as error:
                assert "\n" not in str(error)
        for changed in ({"hidden_units": [huge]}, {"hidden_units": [10**5, huge]}, {"embedding_dim": huge}):
            change(served, feature_map=config["feature_map"], params=config["params"] | changed)
            refused(load_model, served, match="does not give a DNN")


def _replaced(value, at, new):
    changed = copy.deepcopy(value)
    *above, last = at
    holder = changed
    for key in above:
        holder = holder[key]
    holder[last] = new
    if new == "gone":
        del holder[last]
    return changed


WRONG = pytest.mark.parametrize("new", [None, [], "x", -1, 2**70, {"a": [None]}, "gone"])


@WRONG
def test_any_part_of_a_config_may_be_wrong(served, new):
    good = read_json(served / "config.json")
    batch = {name: column[:2] for name, column in batches("DNN", 1)[0].items()}
    for at in _paths(good):
        (served / "config.json").write_text(json.dumps(_replaced(good, at, new)))
        try:
            assert load_model(served).predict(batch).shape[0] == 2
        except UserError as error:
            assert "\n" not in str(error), at


@WRONG
def test_any_part_of_a_record_may_be_wrong(new):
    trained("DNN")
    good = read_json("runs/a.run.json") | {"backbone": {"kind": "fuxictr-llm", "name": "DNN", "sha256": "0"}}
    for at in _paths(good):
        write_json("runs/a.run.json", _replaced(good, at, new))
        try:
            load_network("runs/a")
        except UserError as error:
            assert "\n" not in str(error), at


@pytest.mark.parametrize("content", [Touch(), [1], {"a": 1}, {"a": Touch()}, "text", None])
def test_weights_that_are_another_pickle_are_one_line(content):
    trained("DNN")
    Path("runs/a.model").write_bytes(pickle.dumps(content))
    refused(load_network, "runs/a", match="'runs/a.model' (is damaged|holds no weights).*run the experiment again")
    torch.save(content, "runs/a.model")
    refused(load_network, "runs/a", match="'runs/a.model' (is damaged|holds no weights).*run the experiment again")


def _paths(value, above=()):
    """Where the parts of a JSON value are; of what only says where it comes from, the whole."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield (*above, key)
        if key not in ("versions", "source", "data"):
            yield from _paths(part, (*above, key))


def test_names_in_an_export_lead_to_no_other_file(served, tmp_path):
    Path("kept").write_text("mine")
    for file in ("../kept", str(tmp_path / "kept"), ["../kept"], {"a": 1}, None, 7):
        change(served, fuxictr_checkpoint={"file": file, "sha256": "0"})
        load_model(served)
        refused(export_run, "runs/a", served, match="holds other files than an export's, which are kept")
    assert Path("kept").read_text() == "mine"
