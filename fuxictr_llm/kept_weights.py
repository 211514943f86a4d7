"""A run's weights and record take their place together; weights are kept where a run fails after its training."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fuxictr_llm.errors import UserError
from fuxictr_llm.files import digest_of_file, write_json
from fuxictr_llm.run_record import Stages


@contextmanager
def weights_kept(weights: Path, kept: Path, stages: Stages) -> Iterator[None]:
    """For a block that trains and then goes on: if it fails after the stage `train`, `weights` become `kept`.

    A finished run's files are not touched. What fails before, or is interrupted, leaves nothing: the same command
    trains again. `kept` is gone when the block ends well.

    Raises:
        UserError: that of the block, which then also says where the weights are.
    """
    try:
        yield
    except Exception as error:
        if "train" not in stages.done or not weights.is_file():
            raise
        weights.replace(kept)
        where = f"the weights, trained to the end, are kept in {str(kept)!r}"
        if isinstance(error, UserError):
            raise UserError(f"{error}; {where}") from error
        logging.error("the run failed after its training; %s", where)
        raise
    finally:
        weights.unlink(missing_ok=True)
    kept.unlink(missing_ok=True)


def put_in_place(weights: Path, files: Path, record: dict[str, Any]) -> None:
    """Make weights and record `<files>.model` and `.run.json`; those of an older run go only when both can take place.

    The record gets the digest of the weights.

    Raises:
        OSError: they cannot be written.
    """
    written = weights.with_name(f"{weights.name}.json")  # in the same folder as the weights, which is the run's own
    record["weights_sha256"] = digest_of_file(weights)
    try:
        write_json(written, record)
        weights.replace(f"{files}.model")
        written.replace(f"{files}.run.json")
    finally:
        written.unlink(missing_ok=True)
