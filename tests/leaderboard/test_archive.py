"""The file of a table's runs: the table comes out of it again, and the leaderboard goes on from it."""

import json
import lzma
import re
from dataclasses import replace
from pathlib import Path

import pytest

from fuxictr_llm.__main__ import main
from fuxictr_llm.commands.leaderboard import write_tables
from fuxictr_llm.config.sources import packaged_configs
from fuxictr_llm.leaderboard.run.results import Results
from fuxictr_llm.registry import find_backbone
from support import edit
from support_leaderboard import write_record

ARCHIVE = "board/runs.jsonl.xz"
TABLES = packaged_configs() / "leaderboard"


@pytest.fixture
def board(plan):
    """A leaderboard of made-up runs, of which those of LR failed, in the folder `board`."""
    results = Results("board", plan(["FM", "LR"], ["plain", "LLaCTR"], seeds=range(1, 4), controls=True))
    results.folder.mkdir()
    results.write_plan()
    failed, *others = reversed(results.plan.runs())
    for run in others:
        params = {**run.experiment.params, "model_root": "board/runs"}
        sample = {"columns": {"color": [4, 2]}, "y_pred": [[0.5], [0.6]]}
        write_record(replace(run.experiment, expid=run.name, params=params), sample=sample)
    results.note_failure(failed, "out of memory")
    results.read()
    write_tables(results)
    return results


def tables_in(folder: str) -> dict[str, str]:
    """Name -> text; without the links to files, of which there are as many as lie in the folder."""
    return {path.name: re.sub("<a href=.*?</a> ?", "", path.read_text()) for path in Path(folder).glob("table.*")}


def test_the_table_comes_out_of_the_file_without_the_data_and_the_config(board, capsys):
    tables = tables_in("board")
    assert "runs: runs.jsonl.xz (sha256 " in tables["table.md"] and "out of memory" in tables["table.md"]
    assert b"y_pred" not in lzma.decompress(Path(ARCHIVE).read_bytes())  # rows of data are not passed on
    assert len(tables["table.md"]) < 10_000 and Path(ARCHIVE).stat().st_size < 15_000  # of 24 records
    Path("raw").rename("away")
    Path("my_configs").rename("away_too")
    assert main(["leaderboard", "--from", ARCHIVE, "--out", "again"]) == 0
    assert tables_in("again") == tables
    assert "leaderboard --from again/plan.yaml goes on with it" in capsys.readouterr().out
    assert main(["leaderboard", "--from", "again/runs.jsonl.xz"]) == 0  # its own folder
    assert {path.name for path in Path().glob("leaderboards/*")} == set()


def test_the_file_names_no_folder_of_the_machine(board, tmp_path, monkeypatch):
    cache = tmp_path / "some cache"
    monkeypatch.setenv("FUXICTR_LLM_CACHE", str(cache))
    run = board.plan.runs()[0]
    (path,) = Path("board/runs").rglob(f"{run.name}*.run.json")
    notes = {
        "field_vectors": {"path": f"{cache}/field_vectors/1f/vectors.safetensors"},
        "value_vectors": ["/elsewhere"],
    }
    record = {**json.loads(path.read_text()), "notes": notes, "backbone": {"file": find_backbone.__code__.co_filename}}
    path.write_text(json.dumps(record))
    board.read()
    write_tables(board)
    _, line, *_ = [json.loads(line) for line in lzma.decompress(Path(ARCHIVE).read_bytes()).splitlines()]
    assert line["record"]["notes"]["field_vectors"] == {"path": "<cache>/field_vectors/1f/vectors.safetensors"}
    assert line["record"]["notes"]["value_vectors"] == ["/elsewhere"]
    assert line["record"]["backbone"]["file"] == "<code>/fuxictr_llm/registry.py"
    assert json.loads(path.read_text()) == record


def test_a_leaderboard_goes_on_from_the_file_with_what_still_holds(board):
    assert main(["leaderboard", "--from", ARCHIVE, "--out", "again"]) == 0
    again = Results("again")
    assert [str(run) for run in again.to_do()] == [
        "LR LLaCTR shuffled on shop, seed 3"
    ]  # notes on failures are not unpacked
    assert len(again.finished()) == len(board.finished()) == 23
    edit(Path("raw/test.csv"), "red", "gray")
    assert len(Results("again").to_do()) == 24  # of other data


def test_a_file_that_cannot_be_used_is_named_and_nothing_is_lost(board, capsys):
    def refused(*args):
        assert main(["leaderboard", *args]) == 2
        return capsys.readouterr().err

    whole = Path(ARCHIVE).read_bytes()
    head, *lines = lzma.decompress(whole).splitlines()
    for content in (
        whole[: len(whole) // 2],
        b"garbage",
        lzma.compress(b"[]"),
        lzma.compress(b"{}"),
        lzma.compress(head + b"\n{}"),
    ):
        Path("bad.jsonl.xz").write_bytes(content)
        assert "'bad.jsonl.xz' is no archive of runs, or is damaged" in refused(
            "--from", "bad.jsonl.xz", "--out", "again"
        )
    Path("bad.jsonl.xz").write_bytes(lzma.compress(json.dumps({**json.loads(head), "form": 9}).encode()))
    assert "is an archive of another version (form 9, not 1)" in refused("--from", "bad.jsonl.xz")
    outside = json.loads(lines[0])
    outside["record"]["model_id"] = "../../outside"
    Path("bad.jsonl.xz").write_bytes(lzma.compress(head + b"\n" + json.dumps(outside).encode()))
    assert "is damaged: run 0 has the name '../../outside'" in refused("--from", "bad.jsonl.xz", "--out", "again")
    assert "'gone.jsonl.xz' cannot be read" in refused("--from", "gone.jsonl.xz")
    assert "runs nothing, so that --dry-run does not go with it" in refused("--from", ARCHIVE, "--dry-run")
    assert "--backbones is part of the plan that --from names" in refused("--from", ARCHIVE, "--backbones", "FM")
    edit(Path("board/plan.yaml"), "epochs: 1", "epochs: 2")
    assert "'board' holds another leaderboard; give another folder with --out" in refused("--from", ARCHIVE)
    assert not list(Path().rglob("outside*"))


@pytest.mark.parametrize("archive", sorted(TABLES.rglob("*.jsonl.xz")), ids=lambda path: path.name)
def test_a_committed_table_comes_out_of_its_runs(archive):
    assert archive.stat().st_size < 1_000_000
    assert main(["leaderboard", "--from", str(archive), "--out", "again"]) == 0
    page = Path("again/table.md").read_text(encoding="utf-8")
    assert page == archive.with_name(archive.name.replace(".jsonl.xz", ".md")).read_text(encoding="utf-8")
    assert len(page.encode()) < 60_000


@pytest.mark.parametrize("kind", ["record", "failure"])
def test_a_record_that_is_not_whole_makes_the_file_a_damaged_one(board, capsys, kind):
    head, *lines = [json.loads(line) for line in lzma.decompress(Path(ARCHIVE).read_bytes()).splitlines()]
    index = next(index for index, line in enumerate(lines) if kind in line)
    whole = lines[index][kind]
    contents = [{}, None, [], {**whole, "config": {}}, {**whole, "metrics": {}}] if kind == "record" else [{}, None]
    contents += [{key: value for key, value in whole.items() if key != lost} for lost in ("config", "key", "reason")]
    for content in [each for each in contents if each != whole]:
        damaged = [{**line, kind: content} if line is lines[index] else line for line in lines]
        text = "\n".join(map(json.dumps, [head, *damaged]))
        Path("bad.jsonl.xz").write_bytes(lzma.compress(text.encode()))
        assert main(["leaderboard", "--from", "bad.jsonl.xz", "--out", "again"]) == 2
        assert f"is damaged (the record of run {index} is not whole)" in capsys.readouterr().err
        assert not Path("again").exists()


def test_power_takes_a_pilot_from_the_file_or_the_folder_and_needs_one(board, capsys):
    for source in (ARCHIVE, "board/plan.yaml"):
        assert main(["leaderboard", "--from", source, "--power", "0.002"]) == 0
        out = capsys.readouterr().out
        assert out.startswith("shop: seeds that prove a gain of +0.00200 AUC") and "FM LLaCTR: " in out
    assert main(["leaderboard", "--from", ARCHIVE, "--power", "2"]) == 2
    assert "--power 2.0 is no gain in AUC" in capsys.readouterr().err
    assert main(["leaderboard", "--from", "board/plan.yaml", "--out", "empty", "--power"]) == 2
    assert "--power needs a pilot: no method has finished runs" in capsys.readouterr().err
    assert not Path("empty").exists()
