"""Python code in processes of its own, forked from the tests' server: torch is loaded there, no language library is.

That takes a tenth of the time of `python -c`, which is for what must not know the modules of the server.
"""

import contextlib
import io
import traceback
from typing import NamedTuple

from fuxictr_llm.common.processes import Pool


class Ended(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def run_code(code: str) -> Ended:
    """What the code printed in a new process, and the code that it exits with."""
    return run_codes_at_once(code)[0]


def run_codes_at_once(*codes: str) -> list[Ended]:
    """As `run_code`, in so many processes at the same time."""
    results = {}
    with Pool(jobs=len(codes), time_limit=300) as pool:
        for index, code in enumerate(codes):
            pool.start(index, _execute, code)
        while len(pool):
            results |= dict(pool.wait())
    for result in results.values():
        assert isinstance(result, tuple), result
    return [Ended(*results[index]) for index in range(len(codes))]


def _execute(code: str) -> tuple[int, str, str]:
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            exec(code, {"__name__": "__main__"})
            returncode = 0
        except SystemExit as exit_:
            returncode = int(exit_.code or 0)
        except BaseException:
            traceback.print_exc()
            returncode = 1
    return returncode, stdout.getvalue(), stderr.getvalue()
