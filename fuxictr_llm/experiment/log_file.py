"""The log of a run, on the screen and in a file; a disk that is full costs the file's lines, not the run."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fuxictr_llm.common.files import explain_write_errors
from fuxictr_llm.training.build import OTHER_MODEL_ROOT
from fuxictr_llm.training.listener import Stopped

AFFECTS_RESULTS = False  # see common/code_digest.py


class LogFile(logging.FileHandler):
    """A FileHandler that says once where its file cannot be written.

    logging would print a traceback for each line, and `close` raise what hides the error that the run ended with.
    """

    _said = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._said:
            self._said = True
            message = "cannot write to %r: %s; the rest of the log is on the screen alone"
            logging.warning(message, self.baseFilename, error.strerror or error)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # of the lines that were not written
            super().close()


@contextmanager
def quiet() -> Iterator[None]:
    """Log nothing but errors."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Log to the screen and to the end of a file, in FuxiCTR's format."""
    with explain_write_errors(path, OTHER_MODEL_ROOT):
        to_file = LogFile(path, mode="a", encoding="utf-8")
    handlers: list[logging.Handler] = [to_file, logging.StreamHandler()]
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s P%(process)d %(levelname)s %(message)s"))
    root.handlers, root.level = handlers, logging.INFO
    for noisy in ("httpx", "filelock", "accelerate"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        yield
    except Stopped:  # no error
        raise
    except BaseException as error:  # the screen shows one line, the file keeps where it came from
        record = root.makeRecord("root", logging.ERROR, "", 0, "%r", (error,), sys.exc_info())
        to_file.handle(record)
        raise
    finally:
        root.handlers, root.level = before, level
        for handler in handlers:
            handler.close()
