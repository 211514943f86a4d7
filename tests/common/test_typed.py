"""Commands that messages name repeat the options that were typed."""

import sys

import pytest

from fuxictr_llm.common.typed import command_for, prepare_command

OPTIONS = ["--config", "my_configs", "--expid", "DeepFM_ELEC_shop", "--seed", "3", "--set", "alpha=1", "--fresh"]


@pytest.mark.parametrize(
    ("typed", "repeated"),
    [
        ("run_expid.py", "python run_expid.py"),
        ("/bin/fuxictr-llm run", "fuxictr-llm run"),
        ("/x/fuxictr_llm/__main__.py encode", "python -m fuxictr_llm run"),
    ],
)
def test_a_command_repeats_config_seed_and_the_settings_that_matter(monkeypatch, typed, repeated):
    monkeypatch.setattr(sys, "argv", [*typed.split(), *OPTIONS, "--set", "feature_specs=[{name: a b}]"])
    start = f"{repeated} --config my_configs"
    assert (
        command_for("A_b", without={"alpha"}) == f"{start} --seed 3 --expid A_b --set 'feature_specs=[{{name: a b}}]'"
    )
    assert command_for("A_b", seed=False) == f"{start} --expid A_b"


@pytest.mark.parametrize("typed", [["/x/pytest/__main__.py", "--config", "x"], ["mine.py", "--set", "a=1"], [""]])
def test_the_options_of_another_program_are_not_repeated(monkeypatch, typed):
    monkeypatch.setattr(sys, "argv", typed)
    assert command_for("A_b", without=()) == "python -m fuxictr_llm run --expid A_b"


def test_options_that_do_not_parse_are_not_repeated(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run_expid.py", "--expid", "A_b", "--config"])
    assert command_for("A_b", without=()) == "python run_expid.py --expid A_b"


@pytest.mark.parametrize(
    ("command", "repeated"),
    [
        (
            "torchrun --nproc_per_node 2 run_expid.py --config c --expid A_b --seed 2 --set 'x=[1, 2]'",
            "--config c {} --set 'x=[1, 2]'",
        ),
        ("python -m fuxictr_llm leaderboard --backbones A --seeds 5", "{}"),
        ("python 'unbalanced", "{}"),
        (None, "{}"),
    ],
)
def test_the_data_of_a_run_are_built_with_what_its_record_names(command, repeated):
    built = prepare_command({"command": command, "expid": "A_b"})
    assert built == f"python -m fuxictr_llm prepare {repeated.format('--expid A_b')}"
