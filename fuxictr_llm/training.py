"""FuxiCTR's own fit, with errors that users understand and weights that are saved whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fuxictr.pytorch.models import BaseModel

from fuxictr_llm.errors import UserError
from fuxictr_llm.files import explain_write_errors, replacing

OTHER_MODEL_ROOT = "name another folder with --set model_root=DIR"


def fit(model: BaseModel, train_rows: Any, valid_rows: Any, params: dict[str, Any]) -> int:
    """Train until early stopping; the epoch whose weights were kept, which the model then has.

    Raises:
        UserError: nothing would be kept, training diverged, or weights cannot be written.
    """
    steps = len(train_rows) * params["epochs"]
    if (params.get("eval_steps") or 0) > steps:
        raise UserError(
            f"eval_steps {params['eval_steps']} is more than all {steps} steps of training: nothing is kept"
        )
    best = _BestEpoch(model)
    try:
        with best.noting():
            model.fit(train_rows, validation_data=valid_rows, **params)
    except (ValueError, RuntimeError) as error:
        # What the metrics and torch's cross entropy say of predictions that are NaN.
        if not any(sign in str(error) for sign in ("NaN", "between 0 and 1")):
            raise
        rate = params["learning_rate"]
        raise UserError(f"training diverged: predictions are NaN; lower learning_rate (now {rate})") from error
    return best.epoch


class _BestEpoch:
    """Notes at which epoch the weights were last saved, and has them saved whole or not at all."""

    def __init__(self, model: BaseModel):
        self.model, self.epoch = model, 0

    def save(self, checkpoint: str) -> None:
        with explain_write_errors(Path(checkpoint), OTHER_MODEL_ROOT), replacing(checkpoint) as temporary:
            type(self.model).save_weights(self.model, str(temporary))
        self.epoch = self.model._epoch_index + 1

    @contextmanager
    def noting(self) -> Iterator[None]:
        self.model.save_weights = self.save
        try:
            yield
        finally:
            del self.model.save_weights  # the model is as its class has it: it can be copied and pickled
