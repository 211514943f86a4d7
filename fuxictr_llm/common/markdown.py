"""GitHub's Markdown: texts that it shows as they are, in tables and lists."""

import re
from collections.abc import Iterable, Sequence

AFFECTS_RESULTS = False  # see common/code_digest.py

LEFT, RIGHT, CENTRE, ANY = ":--", "--:", ":---:", "---"  # where the cells of a column stand
SPECIAL = re.compile(r"[\\`*_|~$]|(?<=\])\(")


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line, within a table or without."""
    text = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return SPECIAL.sub(lambda sign: f"\\{sign[0]}", text)


def table_of(heads: Sequence[str], rows: Iterable[Sequence[str]], places: Sequence[str] | None = None) -> str:
    """A table without a newline at its end.

    Args:
        heads, rows: texts, which are escaped.
        places: LEFT, RIGHT, CENTRE or ANY for each column; None: ANY for all.
    """
    lines = [map(escaped, heads), places or [ANY] * len(heads), *(map(escaped, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def list_of(texts: Iterable[str]) -> str:
    """A list without a newline at its end; the texts are escaped."""
    return "\n".join(f"- {escaped(text)}" for text in texts)
