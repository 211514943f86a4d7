"""`ls` and `clean`: what there is of runs and cache, and that nothing else is removed."""

import json
import os
import time
from pathlib import Path

import pytest
from filelock import FileLock
from layouts import LAYOUTS

from fuxictr_llm.__main__ import main
from fuxictr_llm.common import cache
from fuxictr_llm.common.files import cache_dir, digest_of
from fuxictr_llm.common.in_use import MOST, held_alone, hold
from fuxictr_llm.common.run_files import run_files
from support_process import run_code

DAY = 24 * 3600


SHOP = Path("checkpoints/shop")


def made_run(model_id, auc=0.7, files_of=run_files):
    """Files of a run, as it leaves them."""
    files = files_of(SHOP, model_id)
    files.parent.mkdir(parents=True, exist_ok=True)
    for end in (".model", ".log", ".weights.png"):
        Path(f"{files}{end}").write_bytes(b"x" * 500)
    record = {"expid": "A_shop", "model_id": model_id, "config": {}, "time": "2026-01-02T03:04:05"}
    record |= {"metrics": {"valid": {"AUC": auc}, "test": {}}, "config_sha256": "0123456789abcdef"}
    Path(f"{files}.run.json").write_text(json.dumps(record))
    return files


def entry(kind="networks", number=1):
    """An entry of the cache."""
    path, _ = cache.save(kind, {"number": number}, "file", lambda path: path.write_bytes(b"x" * 1000), {})
    return path.parent


def age(path, days):
    for part in (*path.rglob("*"), path):
        os.utime(part, (time.time() - days * DAY,) * 2, follow_symlinks=False)


def in_another_process(code):
    """Of this test's cache; what this process holds is no obstacle there."""
    ended = run_code(
        f"import os; os.environ['FUXICTR_LLM_CACHE'] = {str(cache_dir())!r}; os.chdir({str(Path.cwd())!r})\n{code}"
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


CLEAN = "from fuxictr_llm.__main__ import main; raise SystemExit(main({words!r}))"


@LAYOUTS
def test_ls_shows_runs_with_their_size_and_auc_and_the_kinds_of_the_cache(files_of, capsys):
    files = made_run("A_shop", 0.75, files_of)
    made_run("A_shop.old", 0.65, files_of)  # begins as the other one does
    files.with_name("notes.txt").write_text("mine")
    entry(number=1), entry(number=2)
    assert main(["ls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[1]: line.split() for line in lines[1:3]}
    size = 1500 + Path(f"{files}.run.json").stat().st_size
    expected = ["A_shop", "checkpoints/shop/A_shop", "2026-01-02", "03:04", "0.750000", "-", f"{size / 1e3:.1f}", "kB"]
    assert rows["checkpoints/shop/A_shop"] == expected
    assert rows["checkpoints/shop/A_shop.old"][4] == "0.650000"
    assert lines[3].startswith("2 runs, ") and any(line.split()[:2] == ["networks", "2"] for line in lines)
    assert main(["ls", "--cache", "checkpoints"]) == 0
    listed = capsys.readouterr().out
    assert cache.entry_dir("networks", {"number": 2}).name in listed and "A_shop" not in listed


def test_ls_and_clean_of_nothing(capsys):
    assert main(["ls"]) == main(["clean"]) == 0
    assert "0 runs" in capsys.readouterr().out


def test_clean_lists_and_removes_with_yes_alone_by_kind_and_age(capsys):
    old, new, other = entry(number=1), entry(number=2), entry("text_vectors", 3)
    age(old, 40), age(other, 40)
    words = ["clean", "--kind", "networks", "--older-than", "30d"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert str(old) in printed and str(new) not in printed and str(other) not in printed
    assert "1 things, 1." in printed and old.exists()
    assert main([*words, "--yes"]) == 0
    assert not old.exists() and new.exists() and other.exists()
    assert main(["clean", "--yes"]) == 0
    assert not new.exists() and not other.exists()
    assert [path.name for path in (cache_dir() / "networks").iterdir()] == []


def test_what_another_process_makes_or_uses_stays():
    used, made = entry(number=1), entry(number=2)
    hold(used)
    with held_alone(made) as free:  # this process lets it go
        assert free
    clean = CLEAN.format(words=["clean", "--yes"])
    with FileLock(cache_dir() / "locks" / f"networks-{made.name}.lock"):
        printed = in_another_process(clean)
    assert used.exists() and made.exists() and printed.count("left, as a process uses it") == 2
    assert main(["clean", "--yes"]) == 0  # the process that uses them itself may
    assert not used.exists() and not made.exists()


def test_what_was_cleaned_away_is_made_again_and_was_used_when_it_is_found():
    made = entry()
    age(made, 40)
    assert cache.find("networks", {"number": 1}, "file")
    assert time.time() - made.stat().st_mtime < DAY  # used now
    assert main(["clean", "--yes"]) == 0
    assert cache.find("networks", {"number": 1}, "file") is None
    assert entry() == made and made.exists()


def open_files():
    return len([*Path("/proc/self/fd").iterdir()])


def test_what_cannot_be_removed_is_named_and_the_rest_goes(capsys, monkeypatch):
    locked, other = entry(number=1), entry("text_vectors", 2)
    replace = Path.replace

    def refused(self, target):
        if self == locked:
            raise PermissionError(13, "Permission denied")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refused)
    assert main(["clean", "--yes"]) == 0
    assert f"left, as it cannot be removed (Permission denied): {locked}" in capsys.readouterr().out
    assert locked.exists() and not other.exists()


def test_a_process_holds_so_many_folders_at_most():
    before = open_files()
    for number in range(MOST + 20):
        entry(number=number)
    assert open_files() <= before + MOST


def test_links_and_what_is_not_ours_stay(tmp_path):
    outside = tmp_path / "outside"
    (outside / "0123456789abcdef").mkdir(parents=True)
    for file in (outside / "precious", outside / "0123456789abcdef" / "manifest.json"):
        file.write_text("{}")
    entry()
    kind = cache_dir() / "networks"
    (kind / "fedcba9876543210").symlink_to(outside, target_is_directory=True)
    (cache_dir() / "linked").symlink_to(outside, target_is_directory=True)
    inner = entry(number=2)
    (inner / "link").symlink_to(outside, target_is_directory=True)
    strangers = [kind / "mine", kind / "00000000000000ff", cache_dir() / "models" / "mine", cache_dir() / "notes"]
    for folder in strangers:
        folder.mkdir(parents=True)
    files = made_run("A_shop")
    files.with_name("A_shop.png").symlink_to(outside / "precious")
    files.with_name("tensorboard").symlink_to(outside, target_is_directory=True)
    Path("checkpoints/shop/B_shop.model").symlink_to(outside / "precious")
    Path("checkpoints/A_shop_01234567.checkpoint").symlink_to(outside, target_is_directory=True)
    assert main(["clean", "--yes"]) == main(["clean", "--yes", "--kind", "runs", "unfinished"]) == 0
    assert not inner.exists() and sorted(path.name for path in files.parent.iterdir()) == ["A_shop.png", "tensorboard"]
    assert sorted(path.name for path in outside.rglob("*")) == ["0123456789abcdef", "manifest.json", "precious"]
    assert all(folder.is_dir() for folder in strangers)
    assert Path("checkpoints/shop/B_shop.model").is_symlink()


@LAYOUTS
def test_runs_go_when_they_are_named_and_what_unfinished_ones_left_before(files_of):
    files, other = made_run("A_shop", files_of=files_of), made_run("A_shop.old", files_of=files_of)
    left = [files.with_name("A_shop_01234567.checkpoint"), files.with_name("C_89abcdef.unfinished.model")]
    left[0].mkdir()
    left[1].write_text("x")
    Path(f"{files}.txt").write_text("mine")
    if files_of is run_files:
        files.with_name("tensorboard").mkdir()
    age(Path("checkpoints"), 40)
    lock = f"training-{digest_of(str(left[0].absolute()))[:16]}"
    (cache_dir() / "locks").mkdir(parents=True)
    with FileLock(cache_dir() / "locks" / f"{lock}.lock"):  # of a process that goes on with it
        assert "left, as" in in_another_process(CLEAN.format(words=["clean", "--yes", "checkpoints"]))
        assert left[0].exists() and not left[1].exists() and Path(f"{files}.model").exists()
        in_another_process(CLEAN.format(words=["clean", "--yes", "--kind", "runs"]))
        assert Path(f"{files}.model").exists() and Path(f"{other}.model").exists()  # both have these settings
    assert main(["clean", "--yes", "--kind", "runs", "--older-than", "50d"]) == 0
    assert Path(f"{files}.model").exists()
    assert main(["clean", "--yes", "--kind", "runs"]) == 0
    assert sorted(path.name for path in files.parent.iterdir()) == ["A_shop.txt", left[0].name]
    assert [*SHOP.iterdir()] == [files.parent] or files_of is Path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["clean", "--kind", "networs"], "unknown kind 'networs' in --kind; did you mean 'networks'?"),
        (["clean", "--older-than", "soon"], "--older-than 'soon' is no age; give hours, days or weeks"),
        (["clean", "absent"], "'absent' is no folder"),
        (["ls", "absent"], "'absent' is no folder"),
    ],
)
def test_bad_options_are_one_line(words, message, capsys):
    entry()
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1
