"""What a run predicts for the test rows, kept in a file beside its record: safetensors with `y_true` and `y_pred`."""

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from fuxictr_llm.common.files import digest_of_file

AFFECTS_RESULTS = False  # see common/code_digest.py
PREDICTIONS = ".predictions.safetensors"


def write_predictions(path: Path, y_true: np.ndarray, y_pred: np.ndarray) -> str:
    """Write labels and probabilities, `[N]` or `[N, T]` in the order of the rows, as float32; the file's digest."""
    arrays = {"y_true": y_true, "y_pred": y_pred}
    save_file({name: np.ascontiguousarray(array, dtype=np.float32) for name, array in arrays.items()}, path)
    return digest_of_file(path)


def read_predictions(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities, as `write_predictions` got them."""
    arrays = load_file(path)
    return arrays["y_true"], arrays["y_pred"]
