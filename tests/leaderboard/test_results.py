"""The folder says which runs are done: what counts, what is named and ignored, and what it took."""

import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import own_folder, write_json
from fuxictr_llm.common.runs import seconds_by_kind, tokens_of
from fuxictr_llm.common.sealed import sealed
from fuxictr_llm.leaderboard.plan.plan import Arm, Plan
from fuxictr_llm.leaderboard.plan.queue import Queue
from fuxictr_llm.leaderboard.run import progress
from fuxictr_llm.leaderboard.run.progress import Display, Estimator, best_so_far, metric_text, standings
from fuxictr_llm.leaderboard.run.results import Results
from support import edit
from support_leaderboard import write_record


def done(results, runs):
    """The runs have left records."""
    for run in runs:
        params = {**run.experiment.params, "model_root": str(results.folder / "runs")}
        write_record(replace(run.experiment, expid=run.name, params=params))
    results.read()


@pytest.fixture
def board(plan):
    """FM at two seeds, done."""
    results = Results("board", plan(["FM"]))
    results.write_plan()
    done(results, results.plan.runs())
    return results


def states(results):
    return [len(results.finished()), len(results.failures()), len(results.to_do())]


def test_a_folder_is_read_by_its_own_plan(board):
    results = Results("board")
    assert results.plan.sha256 == board.plan.sha256
    assert states(results) == [2, 0, 0]
    assert not results.ignored
    first = results.finished()[0]
    assert (str(first.arm), first.seed, first.rows) == ("FM plain on shop", 1, {"train": 900, "test": 150})
    assert first.seconds == {"train": 2.0, "test": 0.5, "language_model": 0.0}
    with pytest.raises(UserError, match="'elsewhere' is no leaderboard"):
        Results("elsewhere")


def _cut(path):
    path.write_text(path.read_text()[:-40])


def _of_version(path):
    edit(path, '"fuxictr-llm": "', '"fuxictr-llm": "9.')


def _part(*keys, value=None):
    """Puts a value in the place of a part of a record."""

    def change(path):
        content = json.loads(path.read_text())
        part = content
        for key in keys[:-1]:
            part = part[key]
        part[keys[-1]] = value
        path.write_text(json.dumps(content))

    return change


def _other_seed(path):
    edit(path, '"seed": 1,\n    "num', '"seed": 2,\n    "num')


def _other_digit(path):
    """What makes .8 of .5 and leaves all forms as they are."""
    write_json(path, sealed(json.loads(path.read_text())))
    content = path.read_bytes()
    place = content.index(b'"AUC": 0.', content.index(b'"test": {')) + len(b'"AUC": 0.')
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_cut, "is damaged"),
        (_of_version, "is of fuxictr-llm 9."),
        (_part("metrics", value={"valid": None}), "is damaged"),
        (_part("stages", value={}), "is damaged"),
        (_part("stages", "train", "seconds", value="2"), "is damaged"),
        (_part("stages", "train", "seconds", value=float("nan")), "is damaged"),
        (_part("stages", "train", "made_in", value=-1.0), "is damaged"),
        (_part("slices", value=[1]), "is damaged"),
        (_part("slices", value={"by": "a"}), "is damaged"),
        (
            _part("slices", value={"by": "a", "slices": {"rare": {"train_rows": [1], "rows": 3, "AUC": 0.5}}}),
            "is damaged",
        ),
        (_part("versions"), "is damaged"),
        (_part("data", "rows", value=3), "is damaged"),
        (_part("data", "sha256", "train"), "is damaged"),
        (_other_seed, "is damaged"),
        (_other_digit, "is damaged (its record_sha256 is not that of its content)"),
    ],
)
def test_a_damaged_or_old_record_is_named_and_its_run_is_to_do(board, change, message):
    run = board.plan.runs()[0]
    change(Path(f"{board.files_of(run)}.run.json"))
    results = Results("board")
    (line,) = results.ignored
    assert f"{run.name}.run.json {message}" in line and line.endswith("it is ignored")
    assert results.to_do() == [run] and states(results) == [1, 0, 1]
    results.make_way(run)
    assert Path(f"{results.files_of(run)}.run.json.old").exists()
    results.read()
    assert not results.ignored


def test_other_data_is_another_run_and_absent_data_cannot_be_compared(board, tmp_path):
    test = tmp_path / "raw" / "test.csv"
    content = test.read_text()
    test.unlink()
    assert states(Results("board")) == [2, 0, 0]
    test.write_text(content + content.splitlines()[-1] + "\n")
    assert states(Results("board")) == [0, 0, 2]


def test_a_damaged_note_on_a_failure_is_named_and_its_run_is_to_do(plan):
    results = Results("board", plan(["FM"], seeds=[1]))
    results.note_failure(results.plan.runs()[0], "too wide")
    _part("key", value=[])(next(Path("board").rglob("*.failure.json")))
    results.read()
    assert states(results) == [0, 0, 1] and results.ignored[0].endswith("is damaged; it is ignored")


def test_other_code_of_a_model_or_other_words_of_the_fields_are_another_run(configs, plan, tmp_path):
    file = Path("mine.py")
    file.write_text("from fuxictr_llm.registry import find_backbone\n\n\nclass Mine(find_backbone('FM')):\n    pass\n")
    arms = [Arm("mine.py:Mine", "shop"), Arm("FM", "shop"), Arm("FM", "shop", "LLaCTR")]
    made = Plan(arms, seeds=[1, 2], config=str(configs))
    results = Results("board", made)
    done(results, [run for run in made.runs() if run.seed == 1])
    results.note_failure(made.runs()[1], "a mistake")
    assert states(results) == [3, 1, 2]
    file.write_text(file.read_text() + "# other\n")
    assert [str(run) for run in Results("board", made).to_do()[:2]] == [str(run) for run in made.runs()[:2]]
    assert states(Results("board", made)) == [2, 0, 4]
    edit(tmp_path / "words.yaml", "city of the shop", "where the shop is")
    assert states(Results("board", made)) == [1, 0, 5]


def test_a_failure_counts_until_data_version_or_settings_change(board, plan, tmp_path):
    more = Results("board", plan(["FM"], seeds=[1, 2, 3]))
    run = more.plan.runs()[2]
    more.note_failure(run, "too wide")
    assert states(more) == [2, 1, 0] and more.to_do(retry_failed=True) == [run]
    assert states(Results("board", plan(["FM"], seeds=[1, 2, 3], epochs=2))) == [0, 0, 3]
    (path,) = Path("board").rglob("*.failure.json")
    path.write_text(path.read_text().replace('"version": "', '"version": "9.'))
    assert states(Results("board", more.plan)) == [2, 0, 1]


def test_one_experiment_under_two_names_is_run_once_and_counts_for_both(configs, plan):
    made = plan(["FM"], seeds=[1])
    twin = replace(made.runs()[0], arm=replace(made.arms[0], backbone="Twin"))
    object.__setattr__(made, "_runs", (*made.runs(), twin))
    results = Results("board", made)
    assert results.to_do() == [made.runs()[0]]
    done(results, results.to_do())
    assert [result.arm.backbone for result in results.finished()] == ["FM", "Twin"]


@pytest.mark.parametrize("name", ["A copy", "Z copy"])  # read before and after the run's own file
def test_of_several_records_of_a_run_stale_ones_do_not_count_and_its_own_goes_first(board, name):
    own = Path(f"{board.files_of(board.plan.runs()[0])}.run.json")
    fresh = json.loads(own.read_text())
    stale = {**fresh, "data": {"sha256": {"train": ["other"]}}}
    metrics = {split: {"AUC": 0.9} for split in ("valid", "test")}

    def auc(first, second):
        own.write_text(json.dumps(first))
        own.with_name(f"{name}.run.json").write_text(json.dumps({**second, "metrics": metrics}))
        results = Results("board")
        return results.finished()[0].metrics["test"]["AUC"] if states(results) == [2, 0, 0] else None

    mine = fresh["metrics"]["test"]["AUC"]
    assert [auc(fresh, stale), auc(fresh, fresh), auc(stale, fresh), auc(stale, stale)] == [mine, mine, 0.9, None]


@pytest.mark.parametrize("name", ["A copy", "Z copy"])
def test_a_stale_failure_beside_one_that_counts_changes_nothing(plan, name):
    results = Results("board", plan(["FM"], seeds=[1]))
    results.note_failure(results.plan.runs()[0], "too wide")
    (note,) = Path("board").rglob("*.failure.json")
    stale = {**json.loads(note.read_text()), "data": {"train": ["other"]}, "reason": "too long"}
    note.with_name(f"{name}.failure.json").write_text(json.dumps(stale))
    results.read()
    assert [failure.reason for failure in results.failures()] == ["too wide"] and not results.to_do()


def test_seconds_are_by_kind_of_work_and_those_of_the_work_whenever_it_was_done():
    stages = {"prepare data": {"seconds": 50.0}, "encode": {"seconds": 0.1, "cached": True, "made_in": 7.0}}
    stages |= {"texts": {"seconds": 1.0}, "train gain": {"seconds": 0.2, "cached": True, "made_in": 3.0}}
    stages |= {"train": {"seconds": 2.0}, "test": {"seconds": 0.5}}
    assert seconds_by_kind(stages) == {"train": 5.0, "test": 0.5, "language_model": 8.0}
    partly = {"encode": {"seconds": 2.0, "rows": 10, "made_in": 9.0}, "train": {"seconds": 2.0}}
    assert seconds_by_kind(partly) == {"train": 2.0, "language_model": 9.0}
    assert seconds_by_kind({"train": {"seconds": 2.0}}) == {"train": 2.0, "language_model": 0.0}
    assert tokens_of(stages) == {}  # of a record of an earlier version
    stages["encode"] |= {"tokens_read": 900}
    stages["ask"] = {"seconds": 3.0, "tokens_read": 50, "tokens_written": 20}
    assert tokens_of(stages) == {"read": 950, "written": 20}
    assert tokens_of({**stages, "tune": {"seconds": 3.0, "tokens_read": None}}) == {"written": 20}
    assert tokens_of({"train": {"seconds": 2.0}}) == {"read": 0, "written": 0}
    del stages["ask"]
    stages["train gain"].pop("made_in")
    stages["encode"]["made_in"] = None
    assert seconds_by_kind(stages) == {"test": 0.5}


def test_the_first_of_each_language_model_work_goes_first_and_others_wait_for_it(plan):
    runs = plan(["FM", "LR"], ["plain", "LLMEmb", "LLaCTR"]).runs()
    queue, order = Queue(runs, known=()), []
    names = {run.key: f"{run.arm.backbone} {run.arm.label} {run.seed}" for run in runs}

    def take():
        run = queue.take(lambda run: True)
        order.append(run and names[run.key])
        return run

    embeddings, fields = take(), take()
    assert order == ["FM LLMEmb 1", "FM LLaCTR 1"]
    for _ in range(2):
        take()
    assert order[2:] == ["FM plain 1", "LR plain 1"]
    queue.ended(fields, well=True)
    queue.ended(embeddings, well=False)
    assert take().arm.label == "LLMEmb" and names[take().key] == "LR LLaCTR 1"  # it failed: another one asks
    assert [names[run.key] for run in [take(), take()]] == ["FM plain 2", "FM LLaCTR 2"]
    while take():
        pass
    assert sorted(order[:-1]) == sorted(names.values())
    assert queue.take(lambda run: False) is None


def test_estimates_go_by_what_is_most_alike(plan):
    results = Results("board", plan(["FM", "LR"], ["plain", "LLaCTR"]))
    assert str(Estimator([]).estimate(results.to_do())) == "no estimate yet: no similar run is done"
    done(results, [run for run in results.plan.runs() if run.arm.backbone == "FM" and run.seed == 1])
    estimator = Estimator(results.finished())
    seconds = [estimator.seconds_of(arm) for arm in results.plan.arms]
    assert seconds == [2.5, 9.5, 2.5, 9.5]
    assert str(estimator.estimate(results.to_do(), jobs=2)) == "about 18 s"
    assert estimator.seconds_of(replace(results.plan.arms[0], dataset="other", backbone="other")) is None


def test_the_live_table_shows_what_runs_and_what_is_best(board, plan):
    results = Results("board", plan(["FM", "LR"]))
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    display = Display(results, jobs=2, console=console)
    with display.shown():
        display.started(results.to_do()[0])
        display.failed(results.to_do()[1], "too [wide]")
    console.print(display._render())
    shown = console.file.getvalue()
    assert (
        "LR plain on shop, seed 2: FAILED: too [wide]" in shown
        and "2 of 4 runs done, 1 failed; left: about 2 s" in shown
    )
    assert "  LR plain on shop, seed 1, 0 s" in shown
    mean = sum(result.metrics["test"]["AUC"] for result in results.finished()) / 2
    assert re.search(rf"FM plain on shop +2 +{mean:.5f}", shown)


def test_a_log_gets_one_line_for_all_that_happened_since_the_last(board, plan, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 3600.0)
    results = Results("board", plan(["FM", "LR"]))
    display = Display(results, jobs=2, console=Console(file=io.StringIO(), width=40))
    first, second = results.to_do()
    with display.shown():
        display.started(first)
        display._print_line()
        display._print_line()  # nothing is new
        done(results, [first])
        results.read_run(first)
        display.finished(first)
        display.started(second)
        display.failed(second, "too [wide]")
    lines = display.console.file.getvalue().splitlines()
    assert lines[0] == "LR plain on shop, seed 1: started; 2 of 4 runs done; left: about 2 s"
    assert lines[1:] == ["LR plain on shop, seed 2: FAILED: too [wide]; 3 of 4 runs done, 1 failed; left: nothing"]


def test_the_table_fits_the_screen_and_has_the_best_of_each_data_set(board):
    results = [replace(run, arm=replace(run.arm, dataset=f"shop{part}")) for run in board.finished() for part in "abc"]
    shown = standings(results)
    assert [*shown] == ["shopa", "shopb", "shopc"] and all(len(arms) == 1 for arms in shown.values())
    display = Display(board, jobs=1, console=Console(file=io.StringIO(), width=60, height=8, force_terminal=True))
    display.finished_runs = [
        replace(run, arm=replace(run.arm, backbone=f"B{part}")) for run in results for part in "abcde"
    ]
    with display.console.capture() as capture:
        display.console.print(display._render())
    assert len(capture.get().splitlines()) <= 8 and "more" in capture.get()


def test_without_auc_no_auc_is_shown(board):
    console = Console(file=io.StringIO(), width=100)
    other = replace(board.finished()[0], metrics={"valid": {"logloss": 0.6}, "test": {"logloss": 0.5}})
    console.print(best_so_far([other, *board.finished()[1:]]), metric_text(other))
    assert re.search(r"FM plain on shop +1 ", shown := console.file.getvalue()) and "test logloss 0.500000" in shown


def test_weights_of_a_killed_run_go_when_it_comes_again(board):
    run = board.plan.runs()[0]
    files = board.files_of(run)
    with own_folder(Path(f"{files}.model")) as used:
        shutil.copytree(used, left_by_kill := files.with_name(f".{files.name}.model.01234567.tmp"))
        left = [left_by_kill, Path(f"{files}.csv"), used, Path(f"{files}.log")]
        for path in left[1::2]:
            path.write_text("x")
        board.make_way(run)
        assert [path.exists() for path in left] == [False, False, True, True]


def test_a_plan_of_other_seeds_keeps_what_is_done(board, plan):
    assert states(Results("board", plan(["FM", "LR"], seeds=[2, 3]))) == [1, 0, 3]
    assert isinstance(Results("board").plan, Plan)
