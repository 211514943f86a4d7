"""Fields that a model reads side by side: tuples in FuxiCTR's configs and constructors, lists everywhere else."""

from datetime import date

import pandas as pd
import pytest
from fuxictr.utils import load_config

import fuxictr_llm
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import digest_of
from fuxictr_llm.common.formats import dump_yaml, parse_yaml
from fuxictr_llm.config.resolve import load_experiment, parse_overrides
from fuxictr_llm.experiment.run import run_experiment
from fuxictr_llm.host.checkout import use_checkout
from fuxictr_llm.host.columns import as_lists, as_tuples
from fuxictr_llm.leaderboard.plan.arms import Arm
from fuxictr_llm.leaderboard.plan.plan import Plan
from fuxictr_llm.serving.export import export_run

PAIRS = "din_target_field: [!!python/tuple [color, city]]\n    din_sequence_field: [!!python/tuple [h_color, h_city]]"
# As FuxiCTR's own models ask for the type of a field, with the three forms of defaults that they have.
PICKY = """
import torch
from fuxictr.pytorch.layers import FeatureEmbeddingDict, MLP_Block
from fuxictr.pytorch.models import BaseModel


class Picky(BaseModel):
    def __init__(self, feature_map, model_id="Picky", gpu=-1, learning_rate=1e-3, embedding_dim=4,
                 target_field={default}, units=[8, 8], embedding_regularizer=None, net_regularizer=None, **kwargs):
        super().__init__(feature_map, model_id=model_id, gpu=gpu, embedding_regularizer=embedding_regularizer,
                         net_regularizer=net_regularizer, **kwargs)
        self.target_field = target_field if isinstance(target_field, list) else [target_field]
        self.embedding_layer = FeatureEmbeddingDict(feature_map, embedding_dim)
        width = sum(len(field) if type(field) == tuple else 1 for field in self.target_field)
        self.mlp = MLP_Block(width * embedding_dim, hidden_units=units, output_dim=1)
        self.compile(kwargs["optimizer"], kwargs["loss"], learning_rate)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs):
        of = self.embedding_layer(self.get_inputs(inputs))
        names = [name for field in self.target_field for name in (field if type(field) == tuple else [field])]
        logit = self.mlp(torch.cat([of[name] for name in names], dim=-1))
        return {{"y_pred": self.output_activation(logit)}}
"""


@pytest.fixture
def histories(configs):
    """The data set `shop` with the colours and cities that a user saw before, and DIN over both side by side."""
    for path in (configs.parent / "raw").glob("*.csv"):
        table = pd.read_csv(path)
        for name in ("color", "city"):
            before = table[name].shift(1, fill_value=table[name].iloc[0])
            table[f"h_{name}"] = before + "^" + table[name].shift(2, fill_value=table[name].iloc[0])
        table.to_csv(path, index=False)
    columns = "".join(
        f"    - {{name: h_{name}, active: true, dtype: str, type: sequence, splitter: ^, max_len: 2, "
        f"share_embedding: {name}, feature_encoder: null}}\n"
        for name in ("color", "city")
    )
    path = configs / "dataset_config.yaml"
    path.write_text(path.read_text().replace("    label_col:", f"{columns}    label_col:"))
    with (configs / "model_config.yaml").open("a") as file:
        file.write(f"\nDIN_shop:\n    {PAIRS}\n    epochs: 1\n    dnn_hidden_units: [8]\n")
    return configs


def picky(folder, default):
    file = folder / "picky.py"
    file.write_text(PICKY.format(default=default))
    return file


def test_python_tuples_are_read_and_written_safely():
    text = "a: !!python/tuple [x, !!python/tuple [1, 2]]\nb: [!!python/tuple [x]]\n"
    value = parse_yaml(text, where="here")
    assert value == {"a": ("x", (1, 2)), "b": [("x",)]}
    assert parse_yaml(dump_yaml(value), where="again") == value


@pytest.mark.parametrize(
    "text",
    [
        "!!python/tuple x",
        "!!python/tuple {a: b}",
        "!!python/object/apply:os.system ['touch mark']",
        "!!python/name:os.system",
        "!!python/module:os",
        "!!python/object/new:os.system [touch mark]",
        "!!python/tuple [!!python/object/apply:os.system ['touch mark']]",
        "&a !!python/tuple [*a]",
    ],
)
def test_no_other_tag_makes_an_object(text, tmp_path):
    with pytest.raises(UserError, match="^here.* is not valid YAML: "):
        parse_yaml(f"a: {text}", where="here")
    assert not (tmp_path / "mark").exists()


def test_settings_have_lists_of_the_same_meaning():
    given = {"a": [("x", "y")], "b": ("x", "y"), "c": (3, 3), "d": ["x", "y"], "e": {"f": ("x", 1)}, "g": 1, "h": ()}
    listed = {"a": [["x", "y"]], "b": [["x", "y"]], "c": [3, 3], "d": ["x", "y"], "e": {"f": ["x", 1]}, "g": 1, "h": []}
    assert as_lists(given) == listed == as_lists(listed)


@pytest.mark.parametrize("value", ["\ud800", ["a", "x\udcff"], {"\ud800": 1}, {"a": {"b": ("\ud800",)}}])
def test_half_a_character_is_one_line(value):
    with pytest.raises(UserError, match="cannot be written as text") as caught:
        as_lists({"a": value})
    assert str(caught.value).isprintable()


def test_keys_of_several_kinds_are_texts():
    given = {1: 2, "a": {None: 1, "b": {2: 3}}, "c": {("x", "y"): 1}, "d": {date(2020, 1, 2): 1, 5: 6}}
    wanted = {"1": 2, "a": {"None": 1, "b": {2: 3}}, "c": {"('x', 'y')": 1}, "d": {"2020-01-02": 1, "5": 6}}
    assert as_lists(given) == wanted and digest_of(as_lists(given))


class Host:
    def __init__(
        self,
        groups=[("a", "b")],  # noqa: B006
        group=("a", "b"),
        one_field="a",
        kernel=(3, 3),
        hidden_activations="relu",
        list_field=[["a"]],  # noqa: B006
        **kwargs,
    ):
        pass


class Below(Host):
    def __init__(self, own=("a",), **kwargs):
        pass


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("groups", [["x", "y"]], [("x", "y")]),
        ("groups", [["x", "y"], ["u", "v"]], [("x", "y"), ("u", "v")]),
        ("groups", ["x", "y"], ["x", "y"]),
        ("groups", [["x"], "y"], [("x",), "y"]),
        ("groups", "x", "x"),
        ("group", [["x", "y"]], ("x", "y")),
        ("group", ["x", "y"], ("x", "y")),
        ("group", [["x", "y"], ["u", "v"]], [("x", "y"), ("u", "v")]),
        ("group", "x", "x"),
        ("one_field", [["x", "y"]], [("x", "y")]),
        ("one_field", ["x", "y"], ["x", "y"]),
        ("kernel", [5, 5], (5, 5)),
        ("own", ["x"], ("x",)),
        ("hidden_activations", [["relu", "relu"]], [["relu", "relu"]]),
        ("list_field", [["x", "y"]], [["x", "y"]]),
        ("not_of_the_constructor", [["x", "y"]], [["x", "y"]]),
    ],
)
def test_constructors_get_tuples_where_they_want_them(key, value, wanted):
    assert as_tuples({key: value}, Below) == {key: wanted}


@pytest.mark.parametrize(
    "form",
    [
        PAIRS,
        PAIRS.replace("!!python/tuple ", ""),
        PAIRS.replace("[!!python/tuple [", "!!python/tuple [").replace("]]", "]"),
    ],
    ids=["tuples", "lists", "bare tuples"],
)
def test_all_forms_are_one_experiment_through_all_doors(histories, tmp_path, form):
    reference = load_experiment("DIN_shop", histories)
    path = histories / "model_config.yaml"
    path.write_text(path.read_text().replace(PAIRS, form))
    found = load_experiment("DIN_shop", histories)
    assert found.params == reference.params and found.sha256 == reference.sha256
    assert found.params["din_target_field"] == [["color", "city"]]
    (tmp_path / "printed.yaml").write_text(found.to_yaml())
    assert "python/tuple" not in found.to_yaml()
    assert load_experiment("DIN_shop", tmp_path / "printed.yaml").sha256 == found.sha256
    found.write_directory(tmp_path / "plain")
    of_fuxictr = load_config(str(tmp_path / "plain"), "DIN_shop")
    assert of_fuxictr["din_target_field"] == [("color", "city")]  # as its own DIN wants it
    assert load_experiment("DIN_shop", tmp_path / "plain").sha256 == found.sha256
    given = [line.replace(": ", "=", 1).strip() for line in form.splitlines()]
    changed = load_experiment("DIN_shop", histories, overrides=parse_overrides(given))
    assert not changed.changed and changed.sha256 == found.sha256


def test_an_arm_of_a_plan_may_have_them(histories, tmp_path):
    settings = parse_overrides(["din_target_field=[!!python/tuple [city, color]]"])
    plan = Plan([Arm("DIN", "shop", settings=settings)], config=str(histories))
    (tmp_path / "plan.yaml").write_text(plan.to_yaml())
    again = Plan.read(tmp_path / "plan.yaml")
    assert [run.key for run in again.runs()] == [run.key for run in plan.runs()]
    assert plan.runs()[0].experiment.params["din_target_field"] == [["city", "color"]]


def test_din_trains_alike_with_tuples_and_lists_and_is_served(histories, tmp_path):
    text = (histories / "model_config.yaml").read_text()
    metrics = []
    for form in (PAIRS, PAIRS.replace("!!python/tuple ", "")):
        (histories / "model_config.yaml").write_text(text.replace(PAIRS, form))
        result = run_experiment(load_experiment("DIN_shop", histories))
        metrics.append(result.record["metrics"])
    assert metrics[0] == metrics[1]
    assert result.model.pairs == [(("color", "city"), ("h_color", "h_city"))]
    export_run(tmp_path / "checkpoints/shop/DIN_shop", tmp_path / "served")
    assert fuxictr_llm.load_model(tmp_path / "served").model.pairs == result.model.pairs


@pytest.mark.parametrize("default", ['[("color", "city")]', '("color", "city")', '"color"'])
@pytest.mark.parametrize("value", ["[[city, color]]", "[!!python/tuple [city, color]]", "!!python/tuple [city, color]"])
def test_models_that_ask_for_tuples_get_them(configs, tmp_path, default, value):
    with (configs / "model_config.yaml").open("a") as file:
        file.write(f"\nPicky: {{model: '{picky(tmp_path, default)}:Picky', target_field: {value}}}\n")
    result = run_experiment(load_experiment("Picky_shop", configs, overrides={"epochs": 1}))
    assert result.model.target_field == [("city", "color")] and result.model.mlp.mlp[0].in_features == 8


def test_models_of_a_checkout_get_them_with_a_method_and_served(configs, tmp_path):
    folder = tmp_path / "fx" / "model_zoo" / "Picky" / "src"
    folder.mkdir(parents=True)
    picky(folder, '[("color", "city")]').rename(folder / "Picky.py")
    use_checkout(str(tmp_path / "fx"))
    overrides = {"target_field": [["city", "color"]], "epochs": 1}
    for method in ({}, {"method": "ELEC"}):
        cls = fuxictr_llm.registry.find_model("Picky_ELEC" if method else "Picky")
        assert as_tuples(overrides, cls)["target_field"] == [("city", "color")]
    result = run_experiment(load_experiment("Picky_shop", configs, overrides=overrides))
    assert result.model.target_field == [("city", "color")]
    export_run(tmp_path / "checkpoints/shop" / result.record["model_id"], tmp_path / "served")
    assert fuxictr_llm.load_model(tmp_path / "served").model.target_field == [("city", "color")]
