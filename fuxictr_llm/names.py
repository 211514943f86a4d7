"""Names that files are called by: data sets (`<data_root>/<dataset_id>/`) and labels of runs (`<label>.model`)."""

import os

from fuxictr_llm.errors import UserError

# A file name has 255 bytes at most on the usual file systems. A run's files add to its label the control, the seed and
# a digest, `.field_similarities.png`, and what a file is called until it is whole.
LONGEST = 150


def check_name(kind: str, name: str, where: str = "", longest: int = LONGEST) -> None:
    """Check that a name can be that of a file in a folder: no path out of it, nothing that does not print.

    Args:
        kind: what it is a name of, for the message: `dataset_id`.
        where: what names it, for the message.
        longest: how many bytes it may have.

    Raises:
        UserError: it cannot.
    """
    if problem := _problem(name, longest):
        shown = name if len(name) <= LONGEST else f"{name[:40]}...{name[-10:]}"
        of = f" in {where}" if where and len(where) <= 2 * LONGEST else ""
        raise UserError(f"{kind} {shown!r}{of} {problem}; files are called by it, so give it another name")


def check_label(label: str, where: str = "") -> None:
    """As `check_name`, for an expid: `LongCTR/DIN_movies` is one, whose files are called `LongCTR-DIN_movies`.

    Raises:
        UserError: files cannot be called by it.
    """
    if any(part in ("", ".", "..") for part in label.split("/")):
        check_name("expid", label, where)
    check_name("expid", label.replace("/", "-"), where)


def _problem(name: str, longest: int) -> str | None:
    if not name:
        return "is empty"
    if "/" in name or "\\" in name:
        return "holds a path separator"
    if name.startswith(".") or name.endswith("."):
        return "begins or ends with a dot"
    if not name.isprintable():
        return "holds a line break, or a character that does not print"
    if name != name.strip():
        return "begins or ends with a space"
    if any(sign in name for sign in "*?["):
        return "holds *, ? or [, which FuxiCTR takes for a pattern of file names"
    try:
        length = len(os.fsencode(name))
    except UnicodeEncodeError:
        return "holds a character that this system cannot have in a file name"
    return f"is {length} bytes long, and {longest} is the most" if length > longest else None
