"""Vectors on disk, `[N, D]`: shards that are stored as soon as they are done and mapped into memory; and placebos.

A store is a folder with `manifest.json`, which says in words how it was made and holds the digest of each shard, and
the shards `vectors-00000.npy`, ... Memory is used for the rows that are looked up, not for all N.

A placebo has other vectors in the place of the language model's: what a method gains with it as well, it does not gain
from the words.

Shape symbols: `K` vectors of a placebo, `D_llm` width of the language model.
"""

import io
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fuxictr_llm.common import cache as store
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import (
    OTHER_CACHE,
    damaged_files,
    digest_of,
    digest_of_file,
    digests_of_files,
    explain_write_errors,
    read_json,
    remove_abandoned,
    replacing,
    writable_dir,
    write_json,
)
from fuxictr_llm.common.in_use import hold
from fuxictr_llm.common.progress import Progress

# Placebos that are made of the language model's own vectors.
OF_VECTORS = ("random", "shuffled")
MANIFEST = "manifest.json"
# A kill loses at most one shard; a maker of slow ones may keep parts of it in `part_of`.
SHARD = 10_000
# Each is a file that stays open; looking rows up visits all of them.
MOST_SHARDS = 256
Made = np.ndarray | tuple[np.ndarray, int, int]


def random_like(vectors: Tensor, seed: int) -> Tensor:
    """Gaussian rows with the norms of `vectors`, `[K, D_llm]`."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(vectors.shape, generator=generator)
    return drawn / drawn.norm(dim=-1, keepdim=True) * vectors.norm(dim=-1, keepdim=True)


def shuffled(vectors: Tensor, seed: int) -> Tensor:
    """The rows of `vectors` handed round over the fields: with K > 1 no field keeps its own, `[K, D_llm]`."""
    order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))
    result = torch.empty_like(vectors)
    result[order] = vectors[order.roll(1)]
    return result


def identity(num_fields: int) -> Tensor:
    """One-hot fields, `[K, K]`: all cosines are zero."""
    return torch.eye(num_fields)


@dataclass(frozen=True)
class Shard:
    """A shard that was written: its file's name and digest, its rows, their width, how many are of a cut text.

    `tokens` is what a language model read for it.
    """

    name: str
    sha256: str
    rows: int
    dim: int
    cut: int = 0
    tokens: int = 0


# Asks a writer for the shards of these numbers.
Over = Callable[["ShardWriter", Sequence[int]], Iterable[Shard]]


class VectorStore:
    """Vectors `[N, D]` in a folder.

    Attributes:
        folder: with the shards and the manifest.
        manifest: how the store was made.

    Raises:
        UserError: the folder is no whole store.
    """

    def __init__(self, folder: Path):
        self.folder, self.manifest = Path(folder), read_json(Path(folder) / MANIFEST)
        if not _is_manifest(self.manifest):
            raise UserError(f"{str(folder)!r} is no folder of vectors: its {MANIFEST} is missing or damaged")
        self._names = [_name(number) for number in range(_count(self.rows, self.manifest["shard_rows"]))]
        if missing := [name for name in self._names if not (self.folder / name).is_file()]:
            raise UserError(f"vectors in {str(folder)!r} are not whole: {_listed(missing)} missing")

    def __len__(self) -> int:
        return self.rows

    @property
    def rows(self) -> int:
        return self.manifest["rows"]

    @property
    def dim(self) -> int:
        return self.manifest["dim"]

    @property
    def seconds(self) -> float | None:
        """How long the making took; None: not known."""
        return self.manifest.get("seconds")

    @property
    def cut(self) -> int:
        """How many vectors are of a text that was cut, as far as that was noted."""
        return sum(self.manifest.get("cut", {}).values())

    @property
    def tokens(self) -> int | None:
        """How many tokens a language model read for the vectors; None: not known."""
        noted = self.manifest.get("tokens", {})
        return sum(noted.values()) if noted.keys() >= {*self._names} else None

    @property
    def sha256(self) -> str:
        """Digest of the content, over the shards' digests."""
        return digest_of([self.manifest["shards"][name] for name in self._names])

    def damaged(self) -> list[str]:
        """The shards whose content is not what was written."""
        noted = self.manifest["shards"]
        now = digests_of_files(self.folder / name for name in self._names)
        return [name for name, digest in zip(self._names, now, strict=True) if digest != noted.get(name)]

    def gather(self, positions: Tensor) -> Tensor:
        """The rows at `positions`, in their order, float32 `[n, D]` on the CPU."""
        places = positions.cpu().long().numpy()
        if len(places) and not 0 <= places.min() <= places.max() < self.rows:
            raise IndexError(f"a store of {self.rows} vectors has no vectors {places.min()} to {places.max()}")
        if len(self._shards) == 1:
            return torch.from_numpy(self._shards[0][places])
        rows = np.empty((len(places), self.dim), np.float32)
        order = np.argsort(places)
        ascending, shard_rows = places[order], self.manifest["shard_rows"]
        ends = np.searchsorted(ascending, np.arange(1, len(self._shards) + 1) * shard_rows)
        start = 0
        for number, end in enumerate(ends):
            if end > start:
                rows[order[start:end]] = self._shards[number][ascending[start:end] - number * shard_rows]
            start = end
        return torch.from_numpy(rows)

    @cached_property
    def _shards(self) -> list[np.ndarray]:
        return [np.asarray(np.load(self.folder / name, mmap_mode="r", allow_pickle=False)) for name in self._names]


def find_or_write(
    kind: str,
    made_from: Mapping[str, Any],
    rows: int,
    make: Callable[[int, int], Made],
    facts: Mapping[str, Any] | None = None,
    over: Over | None = None,
) -> VectorStore:
    """The store of that kind that was made from these things; what there is not of it is made, shard after shard.

    Args:
        rows: N.
        make: start and stop -> float32 `[stop - start, D]`, or these, how many are of texts that were cut, and how many
            tokens were read for them.
        facts: what the manifest should say besides.
        over: asks the writer for the shards of these numbers, in any order; None: one after the other.

    Raises:
        UserError: it cannot be written, or vectors are not finite.
    """
    folder = store.entry_dir(kind, made_from).absolute()
    shard_rows = max(SHARD, -(-rows // MOST_SHARDS))
    plan = {"made_from": made_from, "rows": rows, "shard_rows": shard_rows}
    hold(folder)
    if not (folder / MANIFEST).is_file() or _missing(folder, plan):
        with store.entry_locked(kind, made_from):
            writable_dir(folder, OTHER_CACHE)
            remove_abandoned(folder, again=True)
            for left in folder.glob(".*.tmp"):  # as earlier versions left them
                if left.is_file():
                    left.unlink(missing_ok=True)
            with explain_write_errors(folder, OTHER_CACHE):
                missing = _missing(folder, plan)
                for path in (folder / _name(number) for number in missing):
                    if path.is_file():
                        logging.warning("%s is damaged: it is computed anew", path)
                _write(ShardWriter(folder, rows, shard_rows, make), plan | dict(facts or {}), missing, over or _in_turn)
        hold(folder)
    return VectorStore(folder)


def _write(writer: "ShardWriter", plan: Mapping[str, Any], missing: list[int], over: Over) -> None:
    known = read_json(writer.folder / MANIFEST) or {}
    names = {_name(number) for number in missing}
    whole = {name: digest for name, digest in (known.get("shards") or {}).items() if name not in names}
    noted = {
        key: {name: count for name, count in (known.get(key) or {}).items() if name in whole}
        for key in ("cut", "tokens")
    }
    manifest = {**plan, "dim": known.get("dim", 0) if whole else 0, "shards": whole, **noted}
    before, started = known.get("seconds") if whole else 0.0, time.perf_counter()
    if before is not None:
        manifest["seconds"] = before
    write_json(writer.folder / MANIFEST, manifest)
    for shard in over(writer, missing):
        manifest["dim"], manifest["shards"][shard.name] = shard.dim, shard.sha256
        if shard.cut:
            manifest["cut"][shard.name] = shard.cut
        manifest["tokens"][shard.name] = shard.tokens
        if before is not None:
            manifest["seconds"] = round(before + time.perf_counter() - started, 3)
        write_json(writer.folder / MANIFEST, manifest)


def _in_turn(writer: "ShardWriter", numbers: Sequence[int]) -> Iterator[Shard]:
    done = writer.rows - sum(map(writer.rows_of, numbers))
    with Progress("vectors of rows", writer.rows, done=done) as progress:
        for number in numbers:
            shard = writer(number)
            yield shard
            progress.update(shard.rows)


def _missing(folder: Path, plan: Mapping[str, Any]) -> list[int]:
    """The numbers of the shards that are not there as they were written."""
    manifest = read_json(folder / MANIFEST)
    fits = _is_manifest(manifest) and all(manifest[key] == plan[key] for key in ("rows", "shard_rows"))
    noted = manifest["shards"] if fits else {}

    damaged = {*damaged_files(folder, noted)}
    whole = noted.keys() - damaged
    return [number for number in range(_count(plan["rows"], plan["shard_rows"])) if _name(number) not in whole]


@dataclass(frozen=True)
class ShardWriter:
    """Makes and writes the shard of a number; may be sent to another process."""

    folder: Path
    rows: int
    shard_rows: int
    make: Callable[[int, int], Made]

    def __call__(self, number: int) -> Shard:
        start = number * self.shard_rows
        stop = start + self.rows_of(number)
        made = self.make(start, stop)
        made, cut, tokens = made if isinstance(made, tuple) else (made, 0, 0)
        vectors = np.ascontiguousarray(made, dtype=np.float32)
        if not np.isfinite(vectors).all():
            raise UserError(f"vectors {start} to {stop - 1} for {str(self.folder)!r} are not all finite numbers")
        content = io.BytesIO()
        np.save(content, vectors, allow_pickle=False)
        path = self.folder / _name(number)
        with explain_write_errors(path, OTHER_CACHE), replacing(path) as temporary:
            temporary.write_bytes(content.getbuffer())  # numpy does not say why it could not write to a file
        part_of(self.folder, start).unlink(missing_ok=True)
        rows, dim = vectors.shape
        return Shard(path.name, digest_of_file(path), rows, dim, cut, tokens)

    def rows_of(self, number: int) -> int:
        """How many rows the shard of a number has."""
        return min(self.shard_rows, self.rows - number * self.shard_rows)


def part_of(folder: Path, start: int) -> Path:
    """Where a maker may keep what it has of the shard that begins with row `start`; gone when the shard is written."""
    return folder / f"vectors-from-{start}.part"


def _name(number: int) -> str:
    return f"vectors-{number:05d}.npy"


def _count(rows: int, shard_rows: int) -> int:
    return -(-rows // shard_rows)


def _is_manifest(manifest: Any) -> bool:
    keys = {"rows": int, "shard_rows": int, "dim": int, "shards": dict}
    return isinstance(manifest, dict) and all(isinstance(manifest.get(key), kind) for key, kind in keys.items())


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''} {'is' if len(names) == 1 else 'are'}"
