"""Checkpoints of a training: all that it needs to go on as if it had never been interrupted.

A training has one folder. In it, a checkpoint is a folder `step-<steps>` with

    state.safetensors   tensors: weights, optimizer, the method's, random states
    state.json          the other values, with the places of the tensors
    best.model          the weights of the best epoch so far (a hard link to the run's own file where there can be one)
    checkpoint.json     what the training was started with, and the digests of these files

It is written aside and renamed, and the one before it is removed after that: a process that is killed at any moment
leaves a whole one.
"""

import json
import logging
import math
import os
import random
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file, save_file
from torch import Tensor

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import (
    OTHER_CACHE,
    cache_dir,
    damaged_files,
    digest_of,
    digests_of,
    explain_write_errors,
    own_folder,
    read_json,
    writable_dir,
    write_json,
)
from fuxictr_llm.common.processes import is_main
from fuxictr_llm.common.runs import versions

AFFECTS_RESULTS = False  # see common/code_digest.py: what goes on from a checkpoint ends like what was never stopped

# Raised when checkpoints are written in another form.
VERSION = 3
MINUTES = 5.0  # between two checkpoints, where a config has no `checkpoint_minutes`
STATE, VALUES, BEST, MANIFEST = "state.safetensors", "state.json", "best.model", "checkpoint.json"
TENSOR, SPARSE, TUPLE, MAPPING = "tensor", "sparse", "tuple", "mapping"  # the marks of what JSON does not have


class Checkpoints:
    """The checkpoints of one training.

    Args:
        folder: theirs alone; its parent exists.
        made_from: all that the training depends on: one with another value does not go on from these checkpoints.
        minutes: between two of them; besides, there is one after every epoch. None: there are none.
    """

    def __init__(self, folder: Path, made_from: Mapping[str, Any], minutes: float | None):
        self.folder, self.made_from = folder, _as_json(made_from)
        self.seconds = math.inf if minutes is None else 60 * minutes
        self._last = time.monotonic()
        self._lock: FileLock | None = None
        self._works = minutes is not None

    def __enter__(self) -> "Checkpoints":
        """Reserve the folder for this process; of torchrun's, for the main one, which alone writes to it."""
        if not is_main():
            self._works = False
            return self
        locks = writable_dir(cache_dir() / "locks", OTHER_CACHE)
        self._lock = FileLock(locks / f"training-{digest_of(str(self.folder.absolute()))[:16]}.lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            logging.warning("%s is in use by another process: this one leaves no checkpoints", self.folder)
            self._works = False
        return self

    def __exit__(self, *error: object) -> None:
        if self._lock is not None:
            self._lock.release()

    @classmethod
    def of_training(cls, folder: Path, made_from: Mapping[str, Any], params: Mapping[str, Any]) -> "Checkpoints":
        """Those of a training with these settings and the packages that are installed."""
        used = {package: version for package, version in versions().items() if package in ("torch", "fuxictr")}
        return cls(folder, {**made_from, "versions": used}, params.get("checkpoint_minutes", MINUTES))

    @property
    def is_due(self) -> bool:
        """Whether the last one is `minutes` ago."""
        return self._works and time.monotonic() - self._last >= self.seconds

    def load(self, best: Path) -> dict[str, Any] | None:
        """What `save` was given last; None where there is nothing to go on from.

        Args:
            best: the best weights so far are put there.
        """
        for folder in self._whole_ones():
            manifest = read_json(folder / MANIFEST)
            if (problem := self._why_not(folder, manifest)) is not None:
                logging.warning("%s is not used: %s; training starts anew", folder, problem)
                return None
            if damaged := damaged_files(folder, manifest["sha256"]):
                logging.warning("%s is damaged (%s): it is not used", folder, damaged[0])
                continue
            if (folder / BEST).exists():
                _link(folder / BEST, best)
            return _unpacked(read_json(folder / VALUES), load_file(folder / STATE))
        return None

    def save(self, state: Mapping[str, Any], steps: int, best: Path) -> None:
        """Write a checkpoint; where the disk is full, training goes on and the last whole one stays.

        Args:
            state: nested dicts, lists and tuples of tensors and of what JSON has.
            steps: of training, so far.
            best: the file with the best weights so far; it need not be there.
        """
        if not self._works:
            return
        try:
            with explain_write_errors(self.folder, "training goes on, and the last whole checkpoint is kept"):
                self._write(state, steps, best)
        except UserError as error:
            logging.warning("no checkpoint: %s", error)
        self._last = time.monotonic()

    def _write(self, state: Mapping[str, Any], steps: int, best: Path) -> None:
        self.folder.mkdir(exist_ok=True)
        final = self.folder / f"step-{steps:09d}"
        tensors: dict[str, Tensor] = {}
        with own_folder(final) as own:
            written = own / final.name
            written.mkdir()
            write_json(written / VALUES, _packed(state, tensors))
            save_file(tensors, written / STATE)
            if best.exists():
                _link(best, written / BEST)
            manifest = {"version": VERSION, "made_from": self.made_from, "sha256": digests_of(written)}
            write_json(written / MANIFEST, manifest)
            if final.exists():  # a damaged one, or one of another training
                shutil.rmtree(final)
            written.replace(final)
        for older in self._whole_ones():
            if older != final:
                shutil.rmtree(older)

    def _whole_ones(self) -> list[Path]:
        """The newest one first."""
        return sorted((path.parent for path in self.folder.glob(f"step-*/{MANIFEST}")), reverse=True)

    def _why_not(self, folder: Path, manifest: Any) -> str | None:
        whole = isinstance(manifest, dict) and manifest.keys() >= {"made_from", "sha256"}
        if not whole or manifest.get("version") != VERSION:
            return f"it is of another version of fuxictr-llm, or its {MANIFEST} is damaged"
        before, now = manifest["made_from"], self.made_from
        names = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
        return f"it was made with another {', another '.join(names)}" if names else None

    def remove(self) -> None:
        """Remove all of them: the training is done, or shall start anew."""
        if self._works:
            shutil.rmtree(self.folder, ignore_errors=True)


def _link(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`; a copy where the file system has no links."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def random_states(device: torch.device) -> dict[str, Any]:
    """The states of all random generators that training draws from."""
    _, words, position, has_gauss, gauss = np.random.get_state()
    states = {
        "python": random.getstate(),
        "numpy": (torch.from_numpy(np.asarray(words, np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
    }
    if device.type != "cpu":
        states["device"] = torch.get_device_module(device).get_rng_state(device)
    return states


def restore_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    """Make all random generators go on from the states."""
    random.setstate(states["python"])
    words, *others = states["numpy"]
    np.random.set_state(("MT19937", words.numpy().astype(np.uint32), *others))
    torch.set_rng_state(states["torch"])
    if "device" in states and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states["device"], device)


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The value for JSON; its tensors are added to `tensors`, by their number."""
    if isinstance(value, Tensor) and value.is_sparse:  # a gradient of embedding_update: rows
        return {SPARSE: [_packed(part, tensors) for part in (value._indices(), value._values(), list(value.shape))]}
    if isinstance(value, Tensor):
        number = str(len(tensors))
        # A copy: safetensors refuses tensors that share memory, as tied weights do.
        tensors[number] = value.detach().to("cpu", copy=True).contiguous()
        return {TENSOR: number}
    if isinstance(value, Mapping):
        return {MAPPING: [[key, _packed(part, tensors)] for key, part in value.items()]}
    if isinstance(value, tuple):
        return {TUPLE: [_packed(part, tensors) for part in value]}
    if isinstance(value, list):
        return [_packed(part, tensors) for part in value]
    return value.item() if isinstance(value, np.generic) else value


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(part, tensors) for part in value]
    if not isinstance(value, dict):
        return value
    ((mark, content),) = value.items()
    if mark == TENSOR:
        return tensors[content]
    if mark == SPARSE:
        return torch.sparse_coo_tensor(*(_unpacked(part, tensors) for part in content))
    if mark == TUPLE:
        return tuple(_unpacked(part, tensors) for part in content)
    return {key: _unpacked(part, tensors) for key, part in content}


def _as_json(made_from: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(made_from, default=str))
