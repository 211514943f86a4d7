"""The code that the server of a leaderboard's processes has loaded; they have it, whatever lies on the disk later."""

from fuxictr_llm.common.code_digest import digest_of_code
from fuxictr_llm.common.errors import UserError


def _now() -> str:
    return digest_of_code(["fuxictr_llm.experiment.run"])


CODE = _now()


def check_unchanged() -> None:
    """Check that the code of this process is that on the disk, which a run's record names.

    Raises:
        UserError: it is not.
    """
    if _now() != CODE:
        raise UserError("the code of fuxictr_llm was changed since the leaderboard was started; start it again")
