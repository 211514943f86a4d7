"""The bootstrap over test users against literal samples, and what its intervals are kept for."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fuxictr_llm.common.files import digest_of_file, read_json, write_json
from fuxictr_llm.experiment.predictions import PREDICTIONS, read_predictions, write_predictions
from fuxictr_llm.leaderboard.report.evidence import summarize
from fuxictr_llm.leaderboard.report.overall import over_backbones
from fuxictr_llm.leaderboard.report.report import make_report
from fuxictr_llm.leaderboard.report.users import aucs, mean_aucs, over_users, samples, users_of_test
from support_tables import runs


@pytest.fixture
def rows():
    """Labels, scores with many ties, and users of 300 rows."""
    draw = np.random.default_rng(0)
    return draw.integers(0, 2, 300).astype(np.float32), draw.integers(0, 20, 300) / 20, draw.integers(0, 40, 300)


def test_an_auc_of_weights_is_that_of_the_rows_as_often(rows):
    y_true, y_pred, users = rows
    (weights,) = samples(40, 50, seed=1, rows=300)
    assert weights.shape == (40, 50) and (weights.sum(axis=0) == 40).all()
    fast = aucs(y_true, y_pred, users, weights)
    for column, auc in zip(weights.T, fast, strict=True):
        drawn = np.concatenate(
            [np.flatnonzero(users == user) for user, times in enumerate(column) for _ in range(int(times))]
        )
        assert auc == pytest.approx(roc_auc_score(y_true[drawn], y_pred[drawn]), abs=1e-12)
    two = mean_aucs(np.stack([y_true, 1 - y_true], 1), np.stack([y_pred, y_pred], 1), users, weights)
    assert two == pytest.approx(np.full(50, 0.5))


def test_a_sample_with_one_class_has_no_auc_and_parts_are_the_whole(rows, monkeypatch):
    assert np.isnan(aucs(np.ones(3), np.ones(3), np.arange(3), np.ones((3, 1), np.float32)))
    monkeypatch.setattr("fuxictr_llm.leaderboard.report.users.MOST_CELLS", 300 * 7)
    parts = [*samples(40, 50, seed=1, rows=300)]
    assert [part.shape[1] for part in parts] == [7] * 7 + [1]


def board(shift, seeds=3, rows=400, users=40):
    """Made-up runs whose predictions are kept, with the rows of a user alike; LLaCTR's are better by `shift`."""
    draw, found = np.random.default_rng(5), []
    user = np.repeat(np.arange(users), rows // users)
    y_true = draw.integers(0, 2, users)[user].astype(float)
    raw = Path("test.csv")
    raw.write_text("who,y\n" + "".join(f"u{who},{int(label)}\n" for who, label in zip(user, y_true, strict=True)))
    for method, control, by in ((None, None, 0.0), ("LLaCTR", None, shift), ("LLaCTR", "random", 0.0)):
        for seed in range(1, seeds + 1):
            name = f"{method}{control}{seed}"
            noise = np.random.default_rng(seed).normal(0, 1, users)[user]
            path = Path(f"board/runs/shop/{name}/{name}{PREDICTIONS}")
            path.parent.mkdir(parents=True, exist_ok=True)
            digest = write_predictions(path, y_true, (1 + by) * y_true + noise)
            auc = roc_auc_score(y_true, read_predictions(path)[1])
            config = {"dataset_id": "shop", "data_format": "csv", "test_data": str(raw), "cluster_by": "who"}
            record = {"model_id": name, "config": config, "predictions_sha256": digest}
            record["data"] = {"sha256": {"test": [digest_of_file(raw)]}}
            found += runs(method, control, {seed: auc}, record=record)
    return found


def intervals_of(found):
    lines = over_backbones(summarize(found), found)
    return over_users(Path("board"), found, lines)["shop"]


def test_the_interval_covers_the_gain_and_counts_users_not_rows():
    found = board(1.0)
    made = intervals_of(found)
    assert made.words == "40 test users (who)"
    low, high = made.intervals["LLaCTR", "plain"]
    gain = over_backbones(summarize(found), found)[0].gain.mean
    assert 0 < low < gain < high
    one_row_each = intervals_of(board(1.0, rows=40)).intervals["LLaCTR", "plain"]
    assert (low, high) == pytest.approx(one_row_each)  # ten rows of a user alike tell no more than one
    none = intervals_of(board(0.0))
    assert none.intervals["LLaCTR", "plain"] == (0.0, 0.0) == none.intervals["LLaCTR", "LLaCTR random"]
    line = make_report(summarize(found), found, users={"shop": made}).tables[0].lines[1]
    assert f"[{low:+.5f}, {high:+.5f}]" in line.cells


def test_intervals_are_kept_and_made_anew_for_other_runs():
    found = board(1.0)
    made = intervals_of(found)
    for path in Path("board/runs/shop").glob("*/*"):
        path.unlink()
    assert intervals_of(found) == made
    assert (
        intervals_of([run for run in found if run.seed < 3]).words
        == "none: 6 of 6 runs have kept no predictions of the test rows"
    )
    assert len(read_json("board/users.json")["shop"]["intervals"]) == 3


def test_intervals_over_rows_do_not_outlast_the_absence_of_the_test_file():
    found = board(1.0)
    Path("test.csv").rename("away.csv")
    narrow = intervals_of(found)
    assert narrow.words == "400 test rows (their users could not be read)" and not Path("board/users.json").exists()
    Path("away.csv").rename("test.csv")
    made = intervals_of(found)
    assert made.words == "40 test users (who)"
    Path("test.csv").rename("away.csv")
    assert intervals_of(found) == made  # which are still true
    low, high = made.intervals["LLaCTR", "plain"]
    narrow_low, narrow_high = narrow.intervals["LLaCTR", "plain"]
    assert high - low > 1.5 * (narrow_high - narrow_low)


def test_intervals_are_made_anew_for_another_test_file_and_another_column_of_users():
    found = board(1.0)
    config = found[0].record["config"]
    config["cluster_by"] = None
    config["field_config"] = "words.yaml"
    for run in found:
        run.record["config"] = config
    Path("words.yaml").write_text("entities: {user: {id: who}}")
    made = intervals_of(found)
    assert made.words == "40 test users (who)"
    Path("words.yaml").rename("words_away.yaml")
    assert intervals_of(found) == made
    Path("words.yaml").write_text("entities: {user: {id: y}}")
    assert intervals_of(found).words == "2 test users (y)"
    text = Path("test.csv").read_text()
    Path("test.csv").write_text(text.replace("u1,", "u0,"))
    for run in found:
        run.record["data"]["sha256"]["test"] = [digest_of_file(Path("test.csv"))]
    Path("words.yaml").write_text("entities: {user: {id: who}}")
    assert intervals_of(found).words == "39 test users (who)"


def test_a_file_of_intervals_of_another_form_is_made_anew():
    found = board(1.0)
    made = intervals_of(found)
    whole = read_json("board/users.json")
    parts = whole["shop"]
    damaged = [{**parts, "intervals": [["LLaCTR", 1.0]]}, {**parts, "words": None}, {"made_from": parts["made_from"]}]
    damaged += [{key: value for key, value in parts.items() if key != lost} for lost in parts]
    for content in ([], "text", {"shop": []}, *({"shop": each} for each in damaged)):
        write_json(Path("board/users.json"), content)
        assert intervals_of(found) == made and read_json("board/users.json") == whole


def test_what_users_cannot_be_told_by_is_said():
    found = board(1.0)
    config, digests = found[0].record["config"], found[0].record["data"]["sha256"]["test"]
    codes, words, known = users_of_test(config, digests, 400)
    assert known and (np.unique(codes).size, words) == (40, "40 test users (who)") and codes[0] == codes[9] != codes[10]
    for changes, why, is_known in (
        ({"cluster_by": None}, "400 test rows (no column of users: cluster_by names one)", True),
        ({"cluster_by": "whom"}, "400 test rows (their users could not be read)", False),
        ({"test_data": "gone.csv"}, "400 test rows (their users could not be read)", False),
    ):
        each, words, known = users_of_test({**config, **changes}, digests, 400)
        assert (words, known) == (why, is_known) and np.unique(each).size == 400
    assert users_of_test(config, digests, 399)[1:] == ("399 test rows (the file of their users has 400)", False)
    assert users_of_test(config, ["other"], 400)[1:] == ("400 test rows (the file of their users has changed)", False)
