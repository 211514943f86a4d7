"""The runs below a folder, as `ls` lists them and `clean` removes them; torch is not needed for it.

A run has a folder of its own, `<model_root>/<dataset_id>/<model_id>`. Earlier versions left its files beside those of
other runs: there they are those with its model_id.
"""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuxictr_llm.common.files import digest_of, read_json
from fuxictr_llm.common.run_files import RECORD, TENSORBOARD, name_of_run
from fuxictr_llm.common.stored import CHECKPOINT, Entry, entry_of, not_locked, remove_together

AFFECTS_RESULTS = False  # see common/code_digest.py
RUNS, UNFINISHED = "runs", "unfinished"  # kinds, beside those of the cache
ENDS = (".model", ".log", ".png", ".out", ".csv", RECORD, ".predictions.safetensors")
UNFINISHED_MODEL = ".unfinished.model"
LEFT = re.compile(r"(.+_[0-9a-f]{8})(?:\.checkpoint|\.unfinished\.model)")  # of a run that ended before its time


@dataclass(frozen=True)
class FinishedRun:
    """A run that has a record.

    Attributes:
        files: all that it left, its record first; a folder is one of them, links are not.
        size: theirs, in bytes.
    """

    record: dict[str, Any]
    files: tuple[Path, ...]
    size: int

    @property
    def name(self) -> str:
        """What `export --run` takes."""
        return name_of_run(self.files[0])

    @property
    def time(self) -> str:
        return str(self.record.get("time") or "")

    def metric(self, split: str, name: str = "AUC") -> float | None:
        """A metric of the run; None where it was not measured."""
        value = ((self.record.get("metrics") or {}).get(split) or {}).get(name)
        return value if isinstance(value, float) else None

    def remove(self) -> bool:
        """Remove its files where no process trains with its settings; whether that was so."""
        folder, expid = self.files[0].parent, str(self.record.get("expid"))
        full_id = f"{expid}_{str(self.record.get('config_sha256'))[:8]}"
        # It may have been trained in the folder of its expid, which was another run's when it ended.
        homes = {folder, folder.parent / expid}
        with not_locked([_lock_of(home, full_id) for home in homes]) as free:
            if free:
                remove_together(self.files)
                with contextlib.suppress(OSError):  # something else is in it
                    folder.rmdir()
        return free


def runs_below(folders: Iterable[Path]) -> list[FinishedRun]:
    """The runs below these folders, in the order of time."""
    runs = [run for folder in folders for run in _runs_below(folder)]
    return sorted(runs, key=lambda run: (run.time, run.name))


def _runs_below(top: Path) -> Iterator[FinishedRun]:
    for folder, inner, names in _below(top):
        ids = {name.removesuffix(RECORD) for name in names if name.endswith(RECORD)}
        files: dict[str, list[Path]] = {model_id: [folder / f"{model_id}{RECORD}"] for model_id in ids}
        for name in names:
            # A model_id may begin as another one does.
            owner = max((one for one in ids if name.startswith(f"{one}.")), key=len, default=None)
            if owner is not None and name.endswith(ENDS) and name != f"{owner}{RECORD}":
                files[owner].append(folder / name)
        if folder.name in ids and TENSORBOARD in inner:
            files[folder.name].append(folder / TENSORBOARD)
        for paths in files.values():
            record = read_json(paths[0])
            if isinstance(record, dict) and {"model_id", "config"} <= record.keys():
                yield FinishedRun(record, tuple(paths), sum(entry_of(RUNS, path).size for path in paths))


def _below(top: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Each folder, with the names of its folders and files; links are neither followed nor named."""
    for folder, *both in os.walk(top):
        inner, names = ([name for name in sorted(each) if not Path(folder, name).is_symlink()] for each in both)
        yield Path(folder), inner, names


def unfinished_below(folders: Iterable[Path]) -> list[Entry]:
    """Checkpoints and weights that runs left which ended before their time."""
    found = []
    for top in folders:
        for folder, inner, names in _below(top):
            found += [entry_of(UNFINISHED, folder / name) for name in sorted([*inner, *names]) if LEFT.fullmatch(name)]
    return found


def remove_unfinished(entry: Entry) -> bool:
    """Remove what `unfinished_below` found where no process goes on with it; whether that was so."""
    name = entry.path.name.removesuffix(CHECKPOINT).removesuffix(UNFINISHED_MODEL)
    with not_locked([_lock_of(entry.path.parent, name)]) as free:
        if free:
            remove_together([entry.path])
    return free


def _lock_of(folder: Path, full_id: str) -> str:
    """The lock of a process that trains with the settings of `full_id`, as training/checkpoints.py names it."""
    place = (folder / f"{full_id}{CHECKPOINT}").absolute()
    return f"training-{digest_of(str(place))[:16]}"
