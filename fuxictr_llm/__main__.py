"""The command line: `fuxictr-llm COMMAND`, or `python -m fuxictr_llm COMMAND`; `run` is also `run_expid.py`."""

import errno
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from fuxictr_llm.commands import (
    bars,
    clean,
    doctor,
    encode,
    export,
    leaderboard,
    ls,
    predict,
    prepare,
    program,
    run,
    serve,
    verify,
    zoo,
)
from fuxictr_llm.commands.parsing import Parser, parsed
from fuxictr_llm.common.errors import UserError, reason_of
from fuxictr_llm.common.full_disk import is_of_full_disk
from fuxictr_llm.common.processes import end_processes, first_to_fail, under_torchrun
from fuxictr_llm.common.signals import Terminated, terminated_as_interrupted

AFFECTS_RESULTS = False  # see common/code_digest.py

COMMANDS = (run, prepare, encode, leaderboard, verify, bars, export, predict, serve, doctor, zoo, ls, clean)
DESCRIPTION = """\
Language models for click-through-rate prediction, as a plugin of FuxiCTR.

An experiment has a name, {Backbone}[_{Method}]_{dataset_id}: DeepFM_movielens100k is FuxiCTR's DeepFM,
DeepFM_LLaCTR_movielens100k the same with the method LLaCTR. What a method needs from a language model is computed
before training and stored; no language model runs at serving time.
"""
EXAMPLES = """\
examples:
  {program} run --list                                  what there is
  {program} run --expid DeepFM_LLaCTR_movielens100k     train and evaluate
  {program} leaderboard --backbones DeepFM --methods plain LLaCTR --datasets movielens100k --seeds 5
  {program} export --run checkpoints/movielens100k/DeepFM_LLaCTR_movielens100k --to served
  {program} COMMAND --help                              the options of a command
"""
SHARED = ("run", "encode")  # commands whose work the processes of torchrun share
MOVED: dict[tuple[str, ...], str] = {
    ("leaderboard", "verify"): "verify",
    ("leaderboard", "bars"): "bars",
}  # commands by their names until 0.1


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 2 something to put right, 130 interrupted, 143 terminated."""
    words = sys.argv[1:] if argv is None else list(argv)
    # Threads that wait for others spin for so long, and then leave their core: with torch's default, a run takes five
    # times as long where others use the cores too.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if under_torchrun():  # DDP warns where no parameter is unused, which it can only be told before it knows the model
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    parser = Parser(prog=program(), description=DESCRIPTION, epilog=EXAMPLES.format(program=program()))
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    for command in COMMANDS:
        command.add(commands)
    try:
        if name := MOVED.get(tuple(words[:2])):
            raise UserError(f"{' '.join(words[:2])!r} is now a command of its own: {program()} {name} ...")
        args = parsed(parser, commands.choices, words)
        _check_command(words[0])
        with nullcontext() if under_torchrun() else terminated_as_interrupted():  # torchrun's wait in C++
            args.command(args)
    except UserError as error:
        if first_to_fail():
            print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        how, code = ("terminated", 143) if isinstance(error, Terminated) else ("interrupted", 130)
        if first_to_fail():
            print(f"{how}; what was finished is kept, and the same command goes on from there", file=sys.stderr)
        return code
    except Exception as error:
        if not first_to_fail():
            return 2  # because another process failed, which has said why
        if (line := _known(error)) is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 2
    if under_torchrun():
        end_processes()
    return 0


def _known(error: Exception) -> str | None:
    """A line for what the system refuses at any place; None for other errors."""
    if getattr(error, "errno", None) == errno.ENAMETOOLONG:
        return f"{error.strerror}: {error.filename!r}"  # type: ignore[attr-defined]
    if is_of_full_disk(error):
        return f"{reason_of(error)}; make room there, and the same command goes on from what is finished"
    return None


def _check_command(name: str) -> None:
    """Check that several processes share the work of a command.

    Raises:
        UserError: torchrun started several, and each would do all of it.
    """
    if under_torchrun() and name not in SHARED:
        raise UserError(
            f"{name!r} does not share its work among torchrun's processes; start it without torchrun "
            f"({', '.join(SHARED)} do)"
        )


if __name__ == "__main__":
    sys.exit(main())
