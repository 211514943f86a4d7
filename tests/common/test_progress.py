import io
import operator
import pty
from concurrent.futures import ThreadPoolExecutor

import pytest

from fuxictr_llm.common.progress import Progress, Watched, quiet_if


class Clock:
    seconds = 0.0

    def __call__(self):
        return self.seconds


def lines_of(seconds, total=100, steps=100, **changes):
    """What a stage shows that takes so long, and the seconds at which a line came."""
    clock, stream, moments = Clock(), io.StringIO(), []
    with Progress("training", total, stream=stream, clock=clock, **changes) as progress:
        for _ in range(steps):
            clock.seconds += seconds / steps
            before = stream.tell()
            progress.update((total - changes.get("done", 0)) // steps)
            if stream.tell() > before:
                moments.append(round(clock.seconds))
    return stream.getvalue(), moments


def test_a_short_stage_shows_nothing():
    assert lines_of(4.9) == ("", [])


def test_lines_have_count_rate_and_time_left():
    text, moments = lines_of(10, steps=10)
    assert moments == [5] and "\r" not in text
    assert text.splitlines() == [
        "training:  50% 50/100 [00:05<00:05, 10.00rows/s]",
        "training: 100% 100/100 [00:10<00:00, 10.00rows/s]",
    ]


def test_lines_come_less_often_the_longer_it_lasts():
    assert lines_of(100)[1] == [5, 10, 20, 40, 70]
    moments = lines_of(36_000, total=36_000, steps=36_000)[1]
    assert len(moments) < 25 and moments[0] == 5 and max(map(operator.sub, moments[1:], moments)) <= 3600


def test_what_was_done_earlier_does_not_count_for_the_rate():
    text, _ = lines_of(10, done=50, steps=10)
    assert text.splitlines()[0] == "training:  75% 75/100 [00:05<00:05,  5.00rows/s]"


def test_a_note_is_shown():
    clock, stream = Clock(), io.StringIO()
    with Progress("training", 100, stream=stream, clock=clock) as progress:
        clock.seconds = 5.0
        progress.update(50, note="best AUC 0.812")
    assert stream.getvalue().splitlines()[0].endswith("10.00rows/s, best AUC 0.812]")


def test_nothing_is_said_to_be_done_after_an_error():
    clock, stream = Clock(), io.StringIO()
    with pytest.raises(KeyError), Progress("training", 10, stream=stream, clock=clock) as progress:
        clock.seconds = 6.0
        progress.update(5)
        raise KeyError
    assert len(stream.getvalue().splitlines()) == 1


@pytest.mark.parametrize("quiet", ["shown", "other process"])
def test_it_can_be_quiet(quiet, monkeypatch):
    if quiet == "other process":
        monkeypatch.setenv("RANK", "1")
    assert lines_of(100, shown=quiet != "shown") == ("", [])


def test_a_terminal_gets_a_bar(monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr("fuxictr_llm.common.progress.DELAY", 0)
    with Progress("training", 2, stream=stream) as progress:
        progress.update(1, note="best AUC 0.812")
    assert "  0%" not in stream.getvalue()
    assert "training:  50%|" in stream.getvalue() and "best AUC 0.812" in stream.getvalue()


def test_the_rate_of_a_bar_is_that_of_the_whole_stage():
    clock, stream = Clock(), io.StringIO()
    stream.isatty = lambda: True
    with Progress("training", 100, stream=stream, clock=clock) as progress:
        clock.seconds = 10.0
        progress.update(50)
    assert " 50/100 [00:10<00:10,  5.00rows/s]" in stream.getvalue()


def test_a_terminal_without_a_size_gets_lines(monkeypatch):
    monkeypatch.setattr("fuxictr_llm.common.progress.DELAY", 0)
    main, other = pty.openpty()
    with open(main, "rb", buffering=0) as seen, open(other, "w") as stream:  # noqa: PTH123
        with Progress("training", 2, stream=stream) as progress:
            progress.update(1)
        assert seen.read(1000).startswith(b"training:  50% 1/2 [")


def test_what_need_not_be_done_does_not_count_for_the_rate():
    clock, stream = Clock(), io.StringIO()
    with Progress("hashing", 100, stream=stream, clock=clock) as progress:
        progress.skip(50)
        clock.seconds = 5.0
        progress.update(10)
    assert stream.getvalue().splitlines()[0] == "hashing:  60% 60/100 [00:05<00:20,  2.00rows/s]"


def test_several_threads_count():
    progress = Progress("training", 10**9, shown=False)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: progress.update(1), range(4000)))
    assert progress.done == 4000


def test_nothing_is_shown_in_a_quiet_block():
    with quiet_if(True), quiet_if(False):
        assert lines_of(100) == ("", [])
    with quiet_if(False):
        assert lines_of(100)[1]


def test_a_watched_loader_is_the_loader():
    class Loader(list):
        num_samples, num_blocks = 3, 1

    watched = Watched(Loader([[1, 2], [3]]), "evaluating", True, len)
    assert list(watched) == [[1, 2], [3]] and len(watched) == 2 and watched.num_samples == 3
