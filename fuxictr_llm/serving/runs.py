"""Reads the record and the weights of a run."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import digest_of_file, read_json
from fuxictr_llm.common.run_files import files_of
from fuxictr_llm.common.sealed import is_as_sealed
from fuxictr_llm.serving.config import Trained, check_content


def read_run(record_file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A run's record and its trained state.

    Raises:
        UserError: one of them is missing, damaged or of another run.
    """
    record = read_json(record_file)
    if not isinstance(record, dict) or not {"config", "feature_map", "config_sha256"} <= record.keys():
        raise UserError(f"{str(record_file)!r} is damaged or of an earlier version; run the experiment again")
    if not is_as_sealed(record):
        raise UserError(f"{str(record_file)!r} is damaged (its record_sha256 is another); run the experiment again")
    weights = Path(f"{files_of(record_file)}.model")
    if not weights.is_file():
        raise UserError(f"{str(weights)!r} is missing; run the experiment again")
    check_content(record, Trained, repr(str(record_file)), "run the experiment again")
    noted = record.get("weights_sha256")  # not in records of earlier versions
    if noted and digest_of_file(weights, read_all=True) != noted:
        raise UserError(
            f"{str(weights)!r} is damaged or of another run (its sha256 is not the one in {record_file.name}); run the "
            "experiment again"
        )
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no pickle of weights fails in many ways
        raise UserError(f"{str(weights)!r} is damaged ({type(error).__name__}); run the experiment again") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{str(weights)!r} holds no weights; run the experiment again")
    return record, state
