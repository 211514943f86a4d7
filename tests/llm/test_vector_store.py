"""Vectors on disk: what is asked for comes back, whatever became of the process or of a file."""

import contextlib
import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.llm.vectors import store as vector_store
from fuxictr_llm.llm.vectors.store import VectorStore, find_or_write

MATRIX = np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32)


@pytest.fixture
def written(monkeypatch):
    """Writes the matrix in shards of 4 rows; `written.asked` are the slices that were made."""
    monkeypatch.setattr(vector_store, "SHARD", 4)

    class Written:
        asked = []

        def __call__(self, matrix=MATRIX, stop_at=None, **of):
            def make(start, stop):
                self.asked.append((start, stop))
                if start == stop_at:
                    raise KeyboardInterrupt
                return matrix[start:stop]

            self.asked = []
            return find_or_write("things", {"of": "x", **of}, len(matrix), make, {"fact": 1})

    return Written()


def test_rows_come_back_in_any_order_and_as_often_as_asked(written):
    store = written()
    positions = torch.tensor([10, 0, 4, 4, 3, 9, 7])
    assert torch.equal(store.gather(positions), torch.from_numpy(MATRIX)[positions])
    assert torch.equal(store.gather(positions.int()), store.gather(positions)) and store.gather(
        positions[:0]
    ).shape == (0, 3)
    assert (store.rows, store.dim, len(store)) == (11, 3, 11) and store.manifest["fact"] == 1
    assert written.asked == [(0, 4), (4, 8), (8, 11)] and torch.equal(
        written().gather(positions), store.gather(positions)
    )
    assert written.asked == [] and written().seconds == store.seconds > 0
    for wrong in (-1, 11):
        with pytest.raises(IndexError):
            store.gather(torch.tensor([0, wrong]))
    single = written(MATRIX[:4], of="single")
    assert torch.equal(single.gather(torch.tensor([3, 1])), torch.from_numpy(MATRIX)[[3, 1]])


def test_who_waited_while_another_made_all_loses_nothing_of_it(written, monkeypatch):
    first = written()
    (first.folder / vector_store.MANIFEST).rename(first.folder / "aside")  # as it was when the other began to wait
    locked = vector_store.store.entry_locked

    @contextlib.contextmanager
    def after_the_other(*args):
        with locked(*args):
            (first.folder / "aside").rename(first.folder / vector_store.MANIFEST)
            yield

    monkeypatch.setattr(vector_store.store, "entry_locked", after_the_other)
    second = written()
    assert written.asked == [] and second.manifest == first.manifest and second.seconds > 0


def test_the_digest_is_of_the_content(written):
    first = written()
    assert first.sha256 == written(of="y").sha256 != written(MATRIX + 1, of="z").sha256
    assert first.folder != written(of="y").folder


def test_no_rows_make_an_empty_store(written):
    store = written(np.empty((0, 3), np.float32), of="none")
    assert store.rows == 0 and store.gather(torch.empty(0, dtype=torch.long)).shape[0] == 0


def test_a_kill_loses_one_shard_and_leaves_nothing_half(written, caplog):
    with pytest.raises(KeyboardInterrupt):
        written(stop_at=8)
    (folder,) = Path(os.environ["FUXICTR_LLM_CACHE"]).glob("things/*")
    (folder / ".vectors-00002.npy.1.tmp").write_bytes(b"half")
    with pytest.raises(UserError, match="are not whole: vectors-00002.npy is missing"):
        VectorStore(folder)
    (before,) = (json.loads(path.read_text())["seconds"] for path in folder.glob("manifest.json"))
    store = written()
    assert written.asked == [(8, 11)]
    assert caplog.text == ""
    assert store.seconds >= before >= 0
    assert sorted(path.name for path in folder.iterdir()) == [
        "manifest.json",
        *(f"vectors-0000{i}.npy" for i in range(3)),
    ]
    assert torch.equal(store.gather(torch.arange(11)), torch.from_numpy(MATRIX))


@pytest.mark.parametrize("harm", ["cut", "flipped", "gone", "not noted"])
def test_only_a_damaged_shard_is_made_anew(written, caplog, harm):
    store = written()
    path = store.folder / "vectors-00001.npy"
    content = path.read_bytes()
    if harm == "cut":
        path.write_bytes(content[:-5])
    elif harm == "flipped":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif harm == "gone":
        path.unlink()
    else:  # killed between the file and its note
        manifest = json.loads((store.folder / "manifest.json").read_text())
        del manifest["shards"][path.name]
        (store.folder / "manifest.json").write_text(json.dumps(manifest))
    assert VectorStore(store.folder).damaged() == ([path.name] if harm != "gone" else []) if harm != "gone" else True
    again = written()
    assert written.asked == [(4, 8)]
    assert path.read_bytes() == content
    assert again.sha256 == store.sha256
    assert caplog.text.count("vectors-00001.npy is damaged: it is computed anew") == (harm != "gone")


@pytest.mark.parametrize("manifest", ["{half", "[]", '{"rows": "many"}'])
def test_a_damaged_manifest_costs_all_and_is_named_where_it_is_given(written, manifest):
    store = written()
    (store.folder / "manifest.json").write_text(manifest)
    with pytest.raises(UserError, match=r"is no folder of vectors: its manifest.json is missing or damaged"):
        VectorStore(store.folder)
    assert written().sha256 == store.sha256 and len(written.asked) == 3


def test_vectors_that_are_no_numbers_are_refused(written):
    with pytest.raises(UserError, match="vectors 4 to 7 .* are not all finite numbers"):
        written(np.where(np.arange(33).reshape(11, 3) == 14, np.nan, MATRIX))


def test_a_full_disk_is_one_line(written, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="cannot write to .*: No space left on device; move the cache"):
        written()


def test_many_rows_are_few_files(monkeypatch):
    monkeypatch.setattr(vector_store, "SHARD", 1)
    monkeypatch.setattr(vector_store, "MOST_SHARDS", 3)
    store = find_or_write("things", {}, 11, lambda start, stop: MATRIX[start:stop])
    assert len(list(store.folder.glob("*.npy"))) == 3
    assert torch.equal(store.gather(torch.arange(11)), torch.from_numpy(MATRIX))
