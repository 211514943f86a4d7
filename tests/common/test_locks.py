"""Who waits for long says for whom."""

import os
import threading
from pathlib import Path

from fuxictr_llm.common import locks
from fuxictr_llm.common.files import cache_dir
from fuxictr_llm.common.locks import holder_of, locked


def test_who_waits_names_the_process_that_holds_the_lock(monkeypatch):
    monkeypatch.setattr(locks, "SECONDS_IN_SILENCE", 0.1)
    warned, order = threading.Event(), []

    def warning(text, *parts):
        order.append(text % parts)
        warned.set()

    def wait():
        with locked("vectors"):
            order.append("second")

    waiting = threading.Thread(target=wait)
    monkeypatch.setattr(locks.logging, "warning", warning)
    with locked("vectors"):
        waiting.start()
        assert warned.wait(60)
    waiting.join(60)
    assert f"Waiting for process {os.getpid()} on " in order[0] and "(vectors)" in order[0] and order[1:] == ["second"]
    assert not list(Path(cache_dir(), "locks").glob("*.json"))


def test_a_damaged_note_names_nobody(tmp_path):
    (tmp_path / "x.lock.json").write_text('{"pid": 1')
    assert holder_of(tmp_path / "x.lock") == holder_of(tmp_path / "y.lock") == "another process"
