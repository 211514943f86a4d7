"""The doctor: each of its checks can fail, and what it prints leads on."""

import random
import re

import pytest
import torch
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel

from fuxictr_llm import registry
from fuxictr_llm.__main__ import main
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.diagnosis import doctor
from fuxictr_llm.diagnosis.doctor import CHECKS, AllTaps, method_check, run_check
from fuxictr_llm.diagnosis.tiny import tiny_case
from fuxictr_llm.distillation import Distilled
from fuxictr_llm.enhancement.base import Enhancement
from fuxictr_llm.enhancement.columns import added_name
from fuxictr_llm.registry import find_backbone, find_method, method_names

OURS, ELEC, LLMEMB, LLACTR = method_names(), "ELEC", "LLMEmb", "LLaCTR"
IDLE, MOVES, LOADS, COPIES, COMPILES = CHECKS


def finding_of(check, cls):
    if check in CHECKS:
        return run_check(CHECKS[check], tiny_case(cls))
    return run_check(method_check(find_method(check).model_cls), tiny_case(cls))


class Net(BaseModel):
    def __init__(self, feature_map, learning_rate=1e-3, embedding_dim=10, net_dropout=0, **kwargs):
        super().__init__(feature_map, **kwargs)
        self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim)
        self.mlp = MLP_Block(
            input_dim=feature_map.sum_emb_out_dim(), output_dim=1, hidden_units=[6], dropout_rates=net_dropout
        )
        self.compile(kwargs["optimizer"], kwargs["loss"], learning_rate)

    def forward(self, inputs):
        logit = self.mlp(self.embedding_layer(self.get_inputs(inputs), flatten_emb=True))
        return {"y_pred": self.output_activation(logit)}


class Squared(Net):
    """The sign of an embedding does not count, as in SAM2E."""

    def forward(self, inputs):
        embedded = self.embedding_layer(self.get_inputs(inputs), flatten_emb=True)
        return {"y_pred": self.output_activation(self.mlp(embedded.square()))}


@pytest.mark.parametrize("check", [*(name for name in CHECKS if name != COMPILES), *OURS])
@pytest.mark.parametrize("cls", [Net, Squared, find_backbone("DCNv2")])
def test_a_good_class_passes(check, cls):
    finding = finding_of(check, cls)
    assert finding.outcome == "passed", finding.text


class Blind(Net):
    """Takes zeros for the columns of vectors that a method adds."""

    def forward(self, inputs):
        columns = self.get_inputs(inputs).items()
        read = {name: torch.zeros_like(column) if name == added_name("user_id") else column for name, column in columns}
        logit = self.mlp(self.embedding_layer(read, flatten_emb=True))
        return {"y_pred": self.output_activation(logit)}


class Restless(Net):
    """Trains otherwise each time, whatever the seed."""

    def forward(self, inputs):
        output = super().forward(inputs)
        return {"y_pred": output["y_pred"] * random.SystemRandom().uniform(0.9, 1.0)}


class Choosy(Net):
    """Its subclasses have other states."""

    def __init__(self, feature_map, **params):
        super().__init__(feature_map, **params)
        if type(self) is not Choosy:
            self.register_buffer("more", torch.zeros(1))


class Uncopied(Net):
    def __init__(self, feature_map, **params):
        super().__init__(feature_map, **params)
        self.names = (name for name in feature_map.features)


class Diverging(Net):
    def compute_loss(self, return_dict, y_true):
        return super().compute_loss(return_dict, y_true) * float("nan")


@pytest.mark.parametrize(
    ("check", "cls", "reason"),
    [
        (IDLE, Restless, "the losses of training differ"),
        (IDLE, Diverging, "training of Diverging diverges"),
        (IDLE, Choosy, "more is not in both states before training"),
        (LOADS, Choosy, 'Unexpected key.* "more"'),
        (COPIES, Uncopied, "deep copy: TypeError: .*; nor can the plain class's be made"),
        (MOVES, Diverging, "training of Diverging_AllTaps diverges"),
        (LLACTR, find_backbone("LR"), "LLaCTR needs field embeddings"),
        (LLMEMB, find_backbone("LR"), "LR reads no vectors of values"),
        ("KAR", Blind, r"^adaptor\.\S+, adaptor\.\S+, adaptor\.\S+ and \d+ more parameters of Blind_KAR did not move$"),
        ("LLMFeature", Blind, "^Blind does not read the column of vectors that it was given$"),
    ],
)
def test_a_class_that_does_not_hold_to_it_fails_with_the_reason(check, cls, reason):
    finding = finding_of(check, cls)
    assert finding.outcome == "failed"
    assert re.search(reason, finding.text), finding.text


def test_a_method_whose_parameter_is_left_alone_is_seen(monkeypatch):
    class Lazy(AllTaps):
        def __init__(self, config, anatomy):
            super().__init__(config, anatomy)
            self.unused = torch.nn.Parameter(torch.ones(2))

    monkeypatch.setattr(doctor, "AllTaps", Lazy)
    assert finding_of(MOVES, Net) == doctor.Finding("failed", "unused of Net_AllTaps did not move")


class Prepared(Enhancement):
    """Needs what its `prepare` makes, and does not say how it is tried."""

    method_name = "Prepared"

    def __init__(self, config, anatomy):
        super().__init__(config, anatomy)
        raise UserError("there are no vectors")

    @classmethod
    def prepare(cls, config, run):
        return {}


class Refusing(Prepared):
    prepare = Enhancement.prepare


def test_a_method_without_a_check_of_its_own_is_trained_with_its_defaults(method_file):
    finding = run_check(method_check(find_method(method_file).model_cls), tiny_case(Net))
    assert finding == doctor.Finding("passed", "works")
    finding = run_check(method_check(Refusing), tiny_case(Net))
    assert finding == doctor.Finding("failed", "there are no vectors")


def test_a_method_that_cannot_be_tried_says_so_and_is_no_failure(monkeypatch, few_checks, capsys):
    finding = run_check(method_check(Prepared), tiny_case(Net))
    assert finding.outcome == "not tried"
    assert (
        finding.cell
        == "not tried: it needs what its prepare() makes, and has no self_check() of its own: there are no vectors"
    )
    monkeypatch.setattr(find_method(LLACTR).model_cls, "self_check", Prepared.self_check)
    assert main(["doctor", "--model", "DNN"]) == 0
    assert "LLaCTR not tried it needs what" in " ".join(capsys.readouterr().out.split())


def test_a_student_that_learns_nothing_is_seen(monkeypatch):
    monkeypatch.setattr(Distilled, "loss", lambda *_: None)
    assert finding_of(ELEC, Net).text == "the student trains as if it had no teacher"


def ask(tensor):
    """What torch.compile cannot follow."""
    if tensor.sum() > 0:
        tensor.add_(0)


class Asking(Net):
    def forward(self, inputs):
        ask(inputs["item_id"])
        return super().forward(inputs)


def test_graph_breaks_of_the_class_are_told_from_those_of_the_taps(monkeypatch):
    monkeypatch.setattr(AllTaps, "embeddings", lambda self, embeddings: ask(embeddings))
    finding = finding_of(COMPILES, Net)
    assert finding.outcome == "failed" and re.match(r"[1-9], without taps none: Data-dependent", finding.text), (
        finding.text
    )
    finding = finding_of(COMPILES, Asking)
    assert finding.outcome == "passed" and re.match("[1-9] of its own: Data-dependent", finding.text), finding.text


FILE = """
from fuxictr.pytorch.layers import FeatureEmbedding
from fuxictr.pytorch.models import BaseModel
from torch import nn


class TwoRooms(BaseModel):
    def __init__(self, feature_map, learning_rate=1e-3, embedding_dim=10, **kwargs):
        super().__init__(feature_map, **kwargs)
        self.first, self.second = (FeatureEmbedding(feature_map, embedding_dim) for _ in range(2))
        width = feature_map.sum_emb_out_dim()
        self.deep, self.wide = nn.Linear(width, 1), nn.Linear(width, 1)
        self.compile(kwargs["optimizer"], kwargs["loss"], learning_rate)

    def forward(self, inputs):
        first, second = (layer(self.get_inputs(inputs), flatten_emb=True) for layer in (self.first, self.second))
        return {"y_pred": self.output_activation(self.deep(first) + self.wide(second))}


class NoModel:
    pass
"""


@pytest.fixture
def few_checks(monkeypatch):
    for name in [*CHECKS]:
        monkeypatch.delitem(CHECKS, name)
    monkeypatch.setattr(registry, "method_names", lambda: [LLACTR])


def test_anyones_file_is_shown_with_the_keys_that_choose(tmp_path, few_checks, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    (tmp_path / "net.py").write_text(FILE)
    settings = ["--set", "tap_embedding=second", "--set", "tap_representation=wide", "--set", "embedding_dim=3"]
    assert main(["doctor", "--model", "net.py:TwoRooms", *settings]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for line in (
        "embeddings 10 of 10 fields, D = 3 second.embedding_layer",
        "logit T = 1: click output_activation",
        "representation R = 30 wide",
        "tap_embedding first.embedding_layer 10 fields",
        "tap_embedding second.embedding_layer 10 fields (taken)",
        "tap_representation deep R = 30",
        "tap_representation wide R = 30 (taken)",
        "LLaCTR passed works",
    ):
        assert line in lines


def test_a_failed_check_is_exit_code_1(few_checks, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", "--model", "LR"])
    assert stopped.value.code == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 of 1 checks failed" in printed


def test_an_experiment_is_looked_at_on_its_own_data(configs, few_checks, capsys):
    assert main(["doctor", "--config", str(configs), "--expid", "DeepFM_shop"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "on the data set shop" in printed
    assert "4 of 4 fields, D = 4" in printed
    assert "T = 1: click" in printed


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "doctor needs --model or --expid"),
        (["--model", "DeepFM", "--expid", "DeepFM_shop"], "doctor needs --model or --expid"),
        (["--model", "DeepFN"], "unknown backbone 'DeepFN' in --model; did you mean 'DeepFM'?"),
        (["--model", "net.py:NoModel"], "model 'net.py:NoModel' is not a subclass of fuxictr"),
        (["--model", "net.py:ToRooms"], "unknown class 'ToRooms' in model 'net.py:ToRooms'; did you mean 'TwoRooms'"),
        (["--model", "DeepFM", "--set", "hiden_units=[4]"], "unknown key 'hiden_units' in --set, of DeepFM"),
        (["--model", "DeepFM", "--set", "hidden_units=4"], "config key 'hidden_units' is 4 (int): input should be a"),
        (["--model", "DeepFM", "--set", "embedding_dim=abc"], "config key 'embedding_dim' is 'abc' (str)"),
        (["--model", "DeepFM", "--set", "tap_representation=mlpp"], "unknown module 'mlpp' in tap_representation"),
    ],
)
def test_what_cannot_be_looked_at_is_one_line_and_exit_code_2(args, message, tmp_path, capsys):
    (tmp_path / "net.py").write_text(FILE)
    assert main(["doctor", *args]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1
