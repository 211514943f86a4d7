"""UserError, the one error that users see: a line that names the thing, the value and the way out."""

import difflib
from collections.abc import Iterable

AFFECTS_RESULTS = False  # see common/code_digest.py


class UserError(Exception):
    """An error that the user can put right. The command line prints it as one line and exits with 2."""


def reason_of(error: BaseException) -> str:
    """The first line of an error's message; the name of its class where it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'X'?` for the known name closest to `name`, or an empty string."""
    by_lower = {str(candidate).lower(): candidate for candidate in known}
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else ""


def unknown(kind: str, name: str, known: Iterable[str], where: str = "") -> UserError:
    """The error for a name that is not among the known ones; `where` says where it was given."""
    known = sorted({*map(str, known)})  # YAML reads some names as numbers
    hint = nearest(name, known) or ";"
    shown = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
    return UserError(f"unknown {kind} {name!r}{' in ' + where if where else ''}{hint} known: {shown or 'none'}")
