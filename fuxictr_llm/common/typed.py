"""The options that were typed, repeated where a message names another command."""

import argparse
import contextlib
import shlex
import sys
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

AFFECTS_RESULTS = False  # see common/code_digest.py
PROGRAM = "python -m fuxictr_llm"
OF_RUNS = ("run", "encode")  # commands of which another run may repeat the options


def command_for(expid: str, without: Container[str] | None = None, seed: bool = True) -> str:
    """The command that runs an experiment with the config, seed and settings of the command that was typed.

    Args:
        without: config keys whose `--set` is left out; None: all of them.
        seed: whether `--seed` is repeated.
    """
    stem, words = Path(sys.argv[0]).stem, sys.argv[1:]
    is_ours = stem == "run_expid" or (stem in ("fuxictr-llm", "__main__") and words[:1] and words[0] in OF_RUNS)
    program = {"run_expid": "python run_expid.py", "fuxictr-llm": "fuxictr-llm run"}.get(stem, f"{PROGRAM} run")
    return f"{program} {_repeated(words if is_ours else [], expid, without, seed)}"


def prepare_command(record: Mapping[str, Any]) -> str:
    """The command that builds the data set of a run anew, with the config and settings that the run's record names."""
    words: list[str] = []
    with contextlib.suppress(ValueError):  # a stranger's record
        words = shlex.split(str(record.get("command") or ""))
    return f"{PROGRAM} prepare {_repeated(words, str(record.get('expid')), (), seed=False)}"


def _repeated(words: Sequence[str], expid: str, without: Container[str] | None, seed: bool) -> str:
    """The options among words of a command, for another experiment."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    for option in ("--config", "--zoo", "--gpu", "--seed"):
        parser.add_argument(option)
    parser.add_argument("--set", action="append", default=[])
    try:
        typed = parser.parse_known_args(words)[0]
    except argparse.ArgumentError:
        typed = parser.parse_args([])
    repeated = []
    for option in ("config", "zoo", "gpu", *(["seed"] if seed else [])):
        if (value := getattr(typed, option)) is not None:
            repeated += [f"--{option}", value]
    repeated += ["--expid", expid]
    for setting in typed.set:
        if without is not None and setting.partition("=")[0] not in without:
            repeated += ["--set", setting]
    return shlex.join(repeated)
