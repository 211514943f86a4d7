"""A served model as a file of torch.export, which needs torch alone."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from fuxictr_llm.common.errors import UserError, reason_of
from fuxictr_llm.common.files import digest_of_file
from fuxictr_llm.serving.load import ServedModel
from fuxictr_llm.serving.traced import largest_difference, quiet

AFFECTS_RESULTS = False  # see common/code_digest.py

FILE = "model.pt2"


def write_pt2(program: ExportedProgram, served: ServedModel, folder: Path) -> dict[str, Any]:
    """Write `model.pt2`: `torch.export.load(file).module()(columns)` gives label -> probabilities `[N]`.

    Returns:
        The file with its digest, what wrote it, and the largest difference from the model.

    Raises:
        UserError: the file cannot be read again, or does not predict what the model does.
    """
    try:
        with quiet():
            torch.export.save(program, folder / FILE)
            module = torch.export.load(folder / FILE).module()
            difference = largest_difference(served, lambda batch: _answers(module, batch))
    except UserError:
        raise
    except Exception as error:  # torch's loader has errors of many kinds
        raise UserError(
            f"{served.config['model']} cannot be exported as .pt2 ({reason_of(error)}); leave out --pt2"
        ) from error
    return {
        "files": {FILE: digest_of_file(folder / FILE)},
        "exporter": f"torch.export {torch.__version__}",
        "largest_difference": difference,
    }


def _answers(module: torch.nn.Module, batch: dict[str, Tensor]) -> dict[str, np.ndarray]:
    with torch.no_grad():
        return {label: answer.numpy() for label, answer in module(batch).items()}
