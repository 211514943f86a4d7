"""Half-written folders go with their process: a later one removes those of killed ones, and of no other."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fuxictr_llm.__main__ import main
from fuxictr_llm.common import files as temporaries
from fuxictr_llm.common.files import own_folder, remove_abandoned, replacing, replacing_dir

OWNER = """
import sys, time
from pathlib import Path
from fuxictr_llm.common.files import replacing_dir
from fuxictr_llm.common.files import own_folder
with {what} as folder:
    (folder / "half").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def owner(what):
    """A process that has a temporary folder and waits."""
    process = subprocess.Popen([sys.executable, "-c", OWNER.format(what=what)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.fixture
def parent():
    folder = Path("place").absolute()
    folder.mkdir()
    return folder


def left(parent):
    return sorted(path.name for path in parent.iterdir())


@pytest.mark.parametrize("what", ["own_folder(Path('place/data'))", "replacing_dir('place/data')"])
def test_what_a_killed_process_leaves_goes_and_a_living_ones_stays(parent, what):
    killed, living = owner(what), owner(what)
    try:
        killed.send_signal(signal.SIGKILL)
        killed.wait(300)
        assert len(left(parent)) == 2
        remove_abandoned(parent, again=True)
        (kept,) = left(parent)
        assert (parent / kept / "owner.lock").exists()
        assert kept.startswith(".data.")
        assert kept.endswith(".tmp")
        assert str(killed.pid) not in kept
    finally:
        living.kill()
        living.wait(300)
    remove_abandoned(parent, again=True)
    assert not left(parent)


def test_containers_whose_processes_are_all_number_1_have_folders_of_their_own(parent, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with own_folder(parent / "data") as one, own_folder(parent / "data") as other:
        remove_abandoned(parent, again=True)
        assert one != other and one.is_dir() and other.is_dir()
    assert not left(parent)


def test_writing_removes_what_was_left_before(parent):
    (parent / ".movies.abcdefgh.tmp").mkdir()
    (parent / ".movies.abcdefgh.tmp" / "owner.lock").touch()
    (parent / ".born.12345678.tmp").mkdir()  # killed before it had a lock
    with replacing(parent / "table.csv") as path:
        assert path.suffix == ".csv" and len(left(parent)) == 1
        path.write_text("x")
    assert left(parent) == ["table.csv"]


def test_a_link_is_replaced_and_what_it_points_to_stays(parent):
    (parent / "target").mkdir()
    (parent / "target" / "mine").write_text("mine")
    (parent / "data").symlink_to(parent / "target")
    with replacing_dir(parent / "data") as folder:
        (folder / "new").touch()
    assert not (parent / "data").is_symlink()
    assert left(parent / "data") == ["new"] and left(parent / "target") == ["mine"]


@pytest.mark.parametrize("how", ["killed", "failed"])
def test_a_folder_is_there_whenever_the_one_that_replaces_it_stops(parent, how, monkeypatch):
    """Between the two renames, the old folder is away and the new one not there yet."""
    (parent / "data").mkdir()
    (parent / "data" / "old").touch()
    rename = Path.replace

    def stops(path, target):
        if path.name == "data" and path.parent.name.endswith(".tmp"):
            os._exit(9) if how == "killed" else None
            raise OSError("no")
        return rename(path, target)

    def replaces():
        monkeypatch.setattr(Path, "replace", stops)
        with replacing_dir(parent / "data") as folder:
            (folder / "new").touch()

    if how == "killed":
        if (child := os.fork()) == 0:
            replaces()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        assert not (parent / "data").exists()
        remove_abandoned(parent, again=True)
    else:
        with pytest.raises(OSError, match="no"):
            replaces()
    assert left(parent) == ["data"] and left(parent / "data") == ["old"]


def test_folders_that_are_not_ours_stay(parent):
    (parent / ".mine.abcdefgh.tmp").mkdir()
    (parent / ".mine.abcdefgh.tmp" / "notes").touch()
    (parent / ".other").mkdir()
    (parent / ".a.abcdefgh.tmp").touch()
    (parent / ".link.abcdefgh.tmp").symlink_to(parent / ".other")
    before = left(parent)
    remove_abandoned(parent, again=True)
    assert left(parent) == before
    remove_abandoned(parent / "absent")


def test_a_removal_that_is_killed_is_gone_on_with(parent, monkeypatch):
    folder = parent / ".a.abcdefgh.tmp"
    (folder / "deep").mkdir(parents=True)
    (folder / "owner.lock").touch()
    monkeypatch.setattr(temporaries.shutil, "rmtree", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        remove_abandoned(parent, again=True)
    assert (folder / "owner.lock").exists()
    monkeypatch.undo()
    remove_abandoned(parent.absolute(), again=True)
    assert not left(parent)


def test_a_folder_that_is_taken_for_abandoned_while_it_is_made_is_made_anew(parent, monkeypatch):
    make, made = temporaries.tempfile.mkdtemp, []

    def removed_at_once(*args, **kwargs):
        folder = make(*args, **kwargs)
        made.append(folder)
        if len(made) == 1:
            remove_abandoned(parent, again=True)
        return folder

    monkeypatch.setattr(temporaries.tempfile, "mkdtemp", removed_at_once)
    with own_folder(parent / "a") as folder:
        assert len(made) == 2
        assert str(folder) == made[1]
        assert left(parent) == [folder.name]
    assert not left(parent)


def test_without_locks_everything_is_written_and_nothing_removed(parent, monkeypatch):
    def no_locks(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(temporaries.fcntl, "flock", no_locks)
    with replacing_dir(parent / "a") as folder:
        (folder / "x").touch()
        remove_abandoned(parent, again=True)
    assert left(parent) == ["a"] and left(parent / "a") == ["x"]


def test_long_names_and_old_folders(parent):
    name = "ж" * 100 + ".json"
    for content in ("old", "new"):
        with replacing_dir(parent / name) as folder:
            (folder / "x").write_text(content)
    assert left(parent) == [name] and (parent / name / "x").read_text() == "new"
    assert (parent / name).stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_killed_run_leaves_nothing_that_the_next_one_does_not_remove(configs):
    """Killed as soon as a temporary appears in a place where a run writes; then the same command goes on."""
    command = [sys.executable, "-m", "fuxictr_llm", "run", "--config", str(configs), "--expid", "FM_shop"]
    for place in ("data", "checkpoints/shop/FM_shop"):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not list(Path(place).glob(".*.tmp/*")):
            time.sleep(0.01)
        process.kill()
        process.wait(300)
        assert list(Path(place).glob(".*")), place
    assert main(command[3:]) == 0
    assert not [path for path in Path().rglob(".*") if path.suffix in (".tmp", ".old", ".training")]
