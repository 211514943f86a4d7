"""The zoo's table: a class that fails, hangs or takes its process with it stops no other, and says why."""

import pytest
from looks import SlowToArrive, look

from fuxictr_llm.__main__ import main
from fuxictr_llm.diagnosis import zoo_table
from fuxictr_llm.diagnosis.zoo_table import ZooRow, as_markdown, look_at_all, summary
from fuxictr_llm.host.checkout import VARIABLE
from fuxictr_llm.registry import method_names

METHODS = ["Mine", "Yours"]  # of `look`
MODEL = """
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel


class {name}(BaseModel):
    def __init__(self, feature_map, learning_rate=1e-3, embedding_dim=10, **kwargs):
        super().__init__(feature_map, **kwargs)
        self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim)
        self.mlp = MLP_Block(input_dim=feature_map.sum_emb_out_dim(), output_dim=1, hidden_units=[6])
        self.compile(kwargs["optimizer"], kwargs["loss"], learning_rate)

    def forward(self, inputs):
        logit = self.mlp(self.embedding_layer(self.get_inputs(inputs), flatten_emb=True))
        return {{"{output}": self.output_activation(logit)}}
"""


def test_a_class_that_is_lost_stops_no_other():
    names = ["fine", "crashes", "fails", "hangs", "well", "good"]
    rows = list(look_at_all(names, look, METHODS, jobs=2, timeout=2.0))
    assert all({*row.methods} == {*METHODS} and len({*row.methods.values()}) == 1 for row in rows)
    assert {row.backbone: row.methods["Mine"] for row in rows} == {
        **dict.fromkeys(["fine", "well", "good"], "works"),
        "crashes": "its process ended with exit code 3",
        "fails": "ValueError: of all things",
        "hangs": "not done after 2 s",
    }


def test_the_start_of_a_process_is_not_counted():
    rows = look_at_all(["fine"], SlowToArrive(1.5), METHODS, jobs=1, timeout=1.0)
    assert [row.methods["Mine"] for row in rows] == ["works"]


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    folder = tmp_path / "checkout" / "model_zoo"
    for name, output in (("Good", "y_pred"), ("Bad", "score")):
        file = folder / name / "src" / f"{name}.py"
        file.parent.mkdir(parents=True)
        file.write_text(MODEL.format(name=name, output=output))
    (folder / "Bad" / "src" / "Worse.py").write_text("class Worse(BaseModel:\n")
    (folder / "Bad" / "src" / "Lost.py").write_text("import no_such_module\n" + MODEL.format(name="Lost", output=""))
    monkeypatch.setenv(VARIABLE, "")  # what the command sets is taken back
    monkeypatch.setattr(zoo_table, "look_at_all", lambda names, look, *_: map(look, names))
    return folder


def test_the_table_of_a_checkout_is_printed_and_written(zoo, tmp_path, capsys):
    assert main(["zoo", "--zoo", str(zoo), "--to", "table.md"]) == 0
    printed, written = capsys.readouterr().out, (tmp_path / "table.md").read_text()
    *others, last = names = method_names()
    for text in (written, " ".join(printed.split())):
        assert f"Of 4 classes train {', '.join(f'1 with {name}' for name in others)} and 1 with {last}" in text
        assert "fuxictr 2." in text
        assert f"Bad with {', '.join(others)} and {last}: Bad cannot be tapped: its forward returns no 'y_pred'" in text
    assert f"| backbone | without | embeddings | T | R | {' | '.join(names)} |" in written
    assert f"| Good |  | 10/10, D 4 | 1 | 6 |{' works |' * len(names)}" in written
    assert f"Lost with {', '.join(others)} and {last}: file 'Bad/src/Lost.py' cannot be imported" in written
    assert f"| Worse.py |  |  |  |  |{' no |' * len(names)}" in written and str(tmp_path) not in written


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--zoo", "absent"], "error: --zoo"),
        (["--jobs", "0"], "error: --jobs 0 is less than 1"),
        (["--timeout", "0"], "error: --timeout 0.0 is not more than 0"),
        (["--to", "absent/table.md"], "error: --to 'absent/table.md': there is no folder 'absent'"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(args, message, capsys, monkeypatch):
    monkeypatch.setenv(VARIABLE, "")
    assert main(["zoo", *args]) == 2
    error = capsys.readouterr().err
    assert error.startswith(message) and error.count("\n") == 1


def test_a_pipe_in_a_name_stays_in_its_cell():
    methods = {"LLaCTR": "works without FRE", "ELEC": "no luck", "Mine": "not tried: it needs a moon"}
    row = ZooRow("A|B", methods, "", "3/4, D 2", "1", "8 + 8")
    line, *notes = [each for each in as_markdown([row], "today", "Zoo").splitlines() if "A|B" in each.replace("\\", "")]
    assert line == r"| A\|B |  | 3/4, D 2 | 1 | 8 + 8 | in part | no | not tried |"
    assert notes[0] == "- A|B with LLaCTR: works without FRE"
    assert notes[2] == "- A|B with Mine: not tried: it needs a moon"
    assert summary([row]) == "Of 1 classes train 1 with LLaCTR, 0 with ELEC and 0 with Mine"
