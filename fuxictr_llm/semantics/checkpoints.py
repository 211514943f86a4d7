"""Checkpoints of a tuning: their digests are written beside them, and looked at before one is gone on from."""

import logging
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from fuxictr_llm.files import damaged_files, digest_of_file, digests_of, read_json, write_json
from fuxictr_llm.semantics import distributed
from fuxictr_llm.semantics.tuning_watch import BEST, BEST_DIGESTS, gets_no_better, measurements

DIGESTS = "sha256.json"


class WithDigests(TrainerCallback):
    """Notes the sha256 of a checkpoint's files when all of them are written."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
            others = distributed.world_size() > 1  # each process writes its own random state, when it comes to it
            digests = {name: of for name, of in digests_of(folder).items() if not (others and "rng_state" in name)}
            write_json(folder / DIGESTS, digests)


def last_checkpoint(folder: Path, patience: int | None, name: str) -> str | None:
    """The newest checkpoint to go on from; those that a kill left half written, or that are damaged, are removed.

    So is one at which the tuning stopped early: the Trainer would go on from there.

    Args:
        patience: the tuning's, in epochs.
        name: of the tuning, for the log.
    """
    while folder.is_dir() and (last := get_last_checkpoint(str(folder))):
        checkpoint = Path(last)
        # The Trainer writes its state last, and we the digests behind it.
        state, digests = read_json(checkpoint / "trainer_state.json"), read_json(checkpoint / DIGESTS)
        whole = state and digests and len([*checkpoint.glob("rng_state*.pth")]) >= distributed.world_size()
        if whole and (damaged := damaged_files(checkpoint, digests)):
            logging.warning("%s is damaged: %s goes on from one before it", checkpoint / damaged[0], name)
        elif whole and measurements(state["log_history"]) and not _best_is_whole(folder):
            logging.warning("%s is damaged: %s begins anew", folder / BEST, name)
            shutil.rmtree(folder)
            return None
        elif whole and not gets_no_better(state["log_history"], patience):
            logging.info("%s goes on from %s", name, last)
            return last
        shutil.rmtree(last)
    return None


def _best_is_whole(folder: Path) -> bool:
    digests = read_json(folder / BEST_DIGESTS)
    return isinstance(digests, list) and (folder / BEST).is_file() and digest_of_file(folder / BEST) in digests
