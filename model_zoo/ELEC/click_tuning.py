"""A language model tuned on clicks (`tuning: lora`), from the store or anew: rows -> sample -> LoRA -> adapter.

"ELEC: Efficient Large Language Model-Empowered Click-Through Rate Prediction", arXiv 2509.07594, the adaptation stage.

Shape symbols: `n` rows, `U` units of text of a row.
"""

import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fuxictr_llm.common import cache as store
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import digest_of_file
from fuxictr_llm.common.processes import under_torchrun
from fuxictr_llm.llm import lora as adapter
from fuxictr_llm.llm.model_files import digest_of_model, find_language_model
from fuxictr_llm.llm.threads import of_threads

from .click_model import DrawnRows
from .config import ELECConfig

KIND = "click_adapters"
CHECKPOINTS = "click_tuning"
# Raise it when the same settings would give another adapter.
VERSION = 2


@dataclass(frozen=True)
class ClickRows:
    """What is learnt from: rows of one split.

    Attributes:
        positions: int `[n, U]`, which text of each unit a row has.
        clicks: float `[n]`, 0 or 1.
    """

    positions: np.ndarray
    clicks: np.ndarray


def tune_on_clicks(
    config: ELECConfig, gpu: int, units: Sequence[Sequence[str]], train: ClickRows, valid: ClickRows
) -> tuple[Path, dict[str, Any]]:
    """The folder of the adapter that the clicks of some train rows teach, and facts of the tuning.

    Labels of validation only choose the epoch whose weights are kept.

    Args:
        config: names the language model, how it makes a vector, and how it is tuned.
        gpu: index of the GPU, -1 for the CPU.
        units: the texts of each unit; only those of the rows drawn are asked for.
        train, valid: all rows of the two splits.

    Raises:
        UserError: the rows drawn are all of one class, the language model cannot be had or tuned, or the disk is full.
    """
    if under_torchrun():
        raise UserError("a language model is tuned on clicks in one process; start it without torchrun")
    folder = find_language_model(config.language_model)
    drawn = (
        draw_rows("train", train, units, config.click_rows, config.click_seed, "click_rows"),
        draw_rows("validation", valid, units, config.click_valid_rows, config.click_seed + 1, "click_valid_rows"),
    )
    made_from = _made_from(config, gpu, digest_of_model(folder), *drawn)
    entry = _find(made_from)
    if entry:
        logging.info("The adapter tuned on clicks is cached: %s", entry[0].parent)
    else:
        with store.entry_locked(KIND, made_from):
            entry = _find(made_from) or _tune(config, gpu, folder, *drawn, made_from)
    path, manifest = entry
    return path.parent, {key: value for key, value in manifest.items() if key != "made_from"}


def draw_rows(
    split: str, rows: ClickRows, units: Sequence[Sequence[str]], at_most: int, seed: int, key: str
) -> DrawnRows:
    """Rows of a split drawn at random, without repeats, and their texts: the same in whatever order the rows come.

    Args:
        key: the config key that `at_most` comes from.

    Raises:
        UserError: all of them were clicked, or none was.
    """
    count = len(rows.clicks)
    # Loaders shuffle, each run in its own way, and some without a seed.
    drawn = np.lexsort([rows.clicks, *rows.positions.T])
    if count > at_most:
        drawn = drawn[np.sort(np.random.default_rng(seed).choice(count, at_most, replace=False))]
    clicks = np.asarray(rows.clicks[drawn], dtype=np.float32)
    if len(np.unique(clicks)) < 2:
        label = f"the label {clicks[0]:g}" if len(clicks) else "no label"
        raise UserError(
            f"tuning: lora needs rows with and without a click; the {len(clicks)} rows drawn from the {count} of the "
            f"{split} split all have {label}; raise {key}, or take tuning: frozen"
        )
    texts, places = zip(
        *(_texts_of(unit, rows.positions[drawn, u]) for u, unit in enumerate(units)),
        strict=True,
    )
    return DrawnRows(list(texts), np.stack(places, axis=1), clicks)


def _texts_of(unit: Sequence[str], positions: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The texts at the positions, each once, and which of them stands at each position."""
    distinct, places = np.unique(positions, return_inverse=True)
    texts = [unit[int(position)] for position in distinct]
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    return list(numbers), np.array([numbers[text] for text in texts])[places]


def pooling_of(config: ELECConfig) -> str:
    """As the texts are encoded afterwards."""
    return "mean" if config.llm_pooling == "auto" else config.llm_pooling


def _made_from(config: ELECConfig, gpu: int, model_digest: str, train: DrawnRows, valid: DrawnRows) -> dict[str, Any]:
    return {
        "language_model": {"name": config.language_model, "sha256": model_digest},
        "device": "gpu" if gpu >= 0 else "cpu",  # they round differently
        "llm_dtype": config.dtype_on(gpu),
        "llm_pooling": pooling_of(config),
        "llm_max_text_tokens": config.llm_max_text_tokens,
        "settings": {key: value for key, value in asdict(config).items() if key.startswith(("lora_", "click_"))},
        "train_sha256": train.sha256,
        "valid_sha256": valid.sha256,
        "code": store.code_of(__name__),
        "version": VERSION,
        **of_threads(gpu),
    }


def _find(made_from: dict[str, Any]) -> tuple[Path, dict[str, Any]] | None:
    entry = store.find(KIND, made_from, adapter.WEIGHTS)
    if entry is None:
        return None
    path, manifest = entry
    config = path.with_name(adapter.CONFIG)
    if config.is_file() and digest_of_file(config) == manifest.get("config_sha256"):
        return entry
    logging.warning("%s is damaged: the language model is tuned anew", config)
    return None


def _tune(
    config: ELECConfig, gpu: int, folder: Path, train: DrawnRows, valid: DrawnRows, made_from: dict[str, Any]
) -> tuple[Path, dict[str, Any]]:
    # Heavy libraries are imported only where something has to be asked of a language model.
    from fuxictr_llm.llm.language_model import load_language_model

    from .click_model import learn_clicks

    started = time.perf_counter()
    model = load_language_model(
        folder, config.dtype_on(gpu), pooling_of(config), gpu, made_from["language_model"]["sha256"]
    )
    checkpoints = store.entry_dir(CHECKPOINTS, made_from)
    facts = learn_clicks(model, train, valid, config, checkpoints)
    facts |= {"seconds": round(time.perf_counter() - started, 3), "tokens_read": model.tokens_read}

    def write(path: Path) -> None:
        adapter.save_adapter(model.model, path, config.language_model)
        facts["config_sha256"] = digest_of_file(path.with_name(adapter.CONFIG))

    entry = store.save(KIND, made_from, adapter.WEIGHTS, write, facts)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return entry
