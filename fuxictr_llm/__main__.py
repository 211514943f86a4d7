"""The command line: `fuxictr-llm COMMAND`, or `python -m fuxictr_llm COMMAND`; `run` is also `run_expid.py`."""

import argparse
import errno
import sys
from collections.abc import Sequence

import fuxictr_llm
from fuxictr_llm.commands import bars, doctor, encode, export, leaderboard, prepare, program, run, verify, zoo
from fuxictr_llm.common.errors import UserError

AFFECTS_RESULTS = False  # see common/code_digest.py

COMMANDS = (run, prepare, encode, leaderboard, verify, bars, export, doctor, zoo)
MOVED: dict[tuple[str, ...], str] = {
    ("leaderboard", "verify"): "verify",
    ("leaderboard", "bars"): "bars",
}  # commands by their names until 0.1


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 2 something to put right, 130 interrupted."""
    words = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(prog=program(), description=fuxictr_llm.__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    try:
        if name := MOVED.get(tuple(words[:2])):
            raise UserError(f"{' '.join(words[:2])!r} is now a command of its own: {program()} {name} ...")
        args = parser.parse_args(words)
        args.command(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        print(f"error: {error.strerror}: {error.filename!r}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept, and the same command goes on from there", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
