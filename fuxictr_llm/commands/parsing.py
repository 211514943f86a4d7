"""Reads what was typed: what is wrong with it is one line, with the nearest right word."""

import argparse
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from fuxictr_llm.common.errors import UserError, nearest, unknown

AFFECTS_RESULTS = False  # see common/code_digest.py
OPTION = re.compile(r"(?<!\S)--[a-z][\w-]*")


class _Misused(UserError):
    """What argparse finds wrong."""


class Parser(argparse.ArgumentParser):
    """A parser that shows texts as they are, and raises a UserError where argparse would print and exit."""

    def __init__(self, **settings: Any):
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **settings})

    def error(self, message: str) -> NoReturn:
        raise _Misused(message)


def parsed(parser: Parser, commands: Mapping[str, argparse.ArgumentParser], words: Sequence[str]) -> argparse.Namespace:
    """The options of a command line.

    Args:
        commands: name -> parser of each command.

    Raises:
        UserError: an option or the command is unknown, or a value does not fit.
    """
    if words and not words[0].startswith("-") and words[0] not in commands:
        raise unknown("command", words[0], commands)
    try:
        return parser.parse_args(words)
    except _Misused as error:
        command = words[0] if words and words[0] in commands else ""
        options = OPTION.findall(commands[command].format_help()) if command else []
        message, hint = str(error), ""
        if match := re.match(r"unrecognized arguments: (\S+)", message):
            hint = nearest(match[1].partition("=")[0], options) if match[1].startswith("-") else ""
        prog = commands[command].prog if command else parser.prog
        raise UserError(f"{message}{hint}; '{prog} --help' lists what there is") from None
