"""Whether an error comes of a full disk, whichever library met it."""

import errno
from collections.abc import Iterator

from fuxictr_llm.common.files import TORCH_WRITE_ERRORS

AFFECTS_RESULTS = False  # see common/code_digest.py

NUMBERS = (errno.ENOSPC, errno.EDQUOT)
# torch does not say why it cannot write.
SIGNS = ("No space left on device", "Disk quota exceeded", "os error 28", *TORCH_WRITE_ERRORS)


def is_of_full_disk(error: BaseException) -> bool:
    """Whether an error, or one that it comes from, says that a disk or a quota is full."""
    return any(
        getattr(part, "errno", None) in NUMBERS or any(sign in str(part) for sign in SIGNS) for part in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
