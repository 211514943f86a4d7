"""The digest of the code on the disk when this module was imported.

The server of a leaderboard's processes imports it once: they run the code of that moment, whatever is changed later.
"""

from fuxictr_llm.common.code_digest import digest_of_code
from fuxictr_llm.common.errors import UserError


def _code_on_disk() -> str:
    return digest_of_code(["fuxictr_llm.experiment.run"])


CODE = _code_on_disk()


def check_unchanged() -> None:
    """Check that the code on the disk, which a run's record names, is still that of this process.

    Raises:
        UserError: it is not.
    """
    if _code_on_disk() != CODE:
        raise UserError("the code of fuxictr_llm was changed since the leaderboard was started; start it again")
