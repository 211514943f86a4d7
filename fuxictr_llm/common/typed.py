"""The options that were typed, repeated where a message names another command."""

import argparse
import shlex
import sys
from collections.abc import Container
from pathlib import Path

AFFECTS_RESULTS = False  # see common/code_digest.py
OF_RUNS = ("run", "encode")  # commands of which another run may repeat the options


def command_for(expid: str, without: Container[str] | None = None, seed: bool = True) -> str:
    """The command that runs an experiment with the config, seed and settings of the command that was typed.

    Args:
        without: config keys whose `--set` is left out; None: all of them.
        seed: whether `--seed` is repeated.
    """
    words = ["python", "run_expid.py"] if _stem() == "run_expid" else ["python", "-m", "fuxictr_llm", "run"]
    words = ["fuxictr-llm", "run"] if _stem() == "fuxictr-llm" else words
    typed = _typed()
    for option in ("config", "zoo", "gpu", *(["seed"] if seed else [])):
        if (value := getattr(typed, option)) is not None:
            words += [f"--{option}", value]
    words += ["--expid", expid]
    for setting in typed.set if without is not None else ():
        if setting.partition("=")[0] not in without:
            words += ["--set", setting]
    return shlex.join(words)


def _stem() -> str:
    return Path(sys.argv[0]).stem


def _typed() -> argparse.Namespace:
    """The options of this process's command; none where it is no run of ours."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    for option in ("--config", "--zoo", "--gpu", "--seed"):
        parser.add_argument(option)
    parser.add_argument("--set", action="append", default=[])
    words = sys.argv[1:]
    is_ours = _stem() in ("fuxictr-llm", "__main__") and words[:1] and words[0] in OF_RUNS
    try:
        return parser.parse_known_args(words if is_ours or _stem() == "run_expid" else [])[0]
    except argparse.ArgumentError:
        return parser.parse_args([])
