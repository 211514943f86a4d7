"""Every format shows the same numbers, what is strange in a name stays harmless, and little to show is no error."""

import csv
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.leaderboard.plan.plan import Arm
from fuxictr_llm.leaderboard.report.cells import p_cell, seconds_cell
from fuxictr_llm.leaderboard.report.evidence import summarize
from fuxictr_llm.leaderboard.report.latex import latex
from fuxictr_llm.leaderboard.report.report import make_report
from fuxictr_llm.leaderboard.report.tables import to_csv, to_html, to_latex, to_markdown, write_all
from fuxictr_llm.leaderboard.run.results import Failure
from support_tables import STRANGE, runs, shifted

BASE = [0.700, 0.712, 0.705, 0.698, 0.709, 0.701]
FACTS = {"command": f"leaderboard --backbones {STRANGE}", "plan": "a1b2", "date": "2030-01-02 03:04"}
FAILED = [Failure(Arm(STRANGE, "shop", "LLaCTR", "random"), 3, "k", f"out of\nmemory {STRANGE}")]
VOID = {"meta", "img"}


def strange_runs():
    made_up = [*runs(None, None, BASE, STRANGE), *runs("LLaCTR", None, shifted(BASE, 0.01), STRANGE)]
    made_up += runs("LLaCTR", "random", {1: 0.7, 2: 0.71, 4: 0.7, 5: 0.709, 6: 0.7}, STRANGE)
    return [
        *made_up,
        *runs("LLaCTR", "shuffled", [0.702, 0.714, 0.708, 0.7, 0.711, 0.703], STRANGE),
        *runs(None, None, [0.7], "FM"),
    ]


@pytest.fixture
def report():
    return make_report(summarize(strange_runs(), FAILED), strange_runs(), FAILED, FACTS)


class Page(HTMLParser):
    """Cells of tables and text of a page, whose elements must be closed in order."""

    def __init__(self, page):
        super().__init__()
        self.open, self.cells, self.text, self.attributes = [], [], "", []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.attributes += attributes
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & set(self.open):
            self.cells[-1][-1] += data


def test_numbers_are_rounded_and_differences_signed(report):
    cells = [dict(zip(report.tables[0].heads, line.cells, strict=True)) for line in report.tables[0].lines]
    assert [line.kind for line in report.tables[0].lines] == ["plain", "method", "control", "control", "plain"]
    assert cells[0]["AUC"] == "0.70417 ± 0.00549" and cells[4]["AUC"] == "0.70000"
    assert re.fullmatch(r"\+0\.01000 \[\+0\.0099\d, \+0\.0100\d\]", cells[1]["gain over plain [95 %]"])
    assert cells[1]["relative AUC"] == "+1.42 %" and cells[1]["RelaImpr"] == "+4.90 %"
    assert cells[1]["training s"] == "14"
    assert cells[1]["language model s"] == "100"
    assert cells[1]["inference"] == "1.00x"
    assert cells[1]["parameters"] == "5,000 + 70" and cells[0]["parameters"] == "5,000"
    assert cells[1]["method over control [95 %]"] == "-"
    assert re.fullmatch(r"\+0\.00783 \[\+0\.00\d{3}, \+0\.00\d{3}\]", cells[3]["method over control [95 %]"])
    assert cells[2]["seeds"] == "5 of 6 (1 failed)" and cells[0]["seeds"] == "6"
    assert (p_cell(0.0004), p_cell(0.04567), p_cell(None)) == ("<0.001", "0.046", "-")
    assert (seconds_cell(0), seconds_cell(0.0321), seconds_cell(9.96), seconds_cell(12345.6)) == (
        "0",
        "0.0",
        "10",
        "12,346",
    )


def test_a_board_whose_validation_is_its_test_split_says_so(report):
    same = runs(None, None, BASE, record={"data": {"sha256": {"train": ["a"], "valid": ["b"], "test": ["b"]}}})
    (note_on_test,) = [note for note in make_report(summarize(same), same).notes if "chosen on test" in note]
    assert note_on_test.startswith("shop: validation is the test split")
    assert not any("chosen on test" in note for note in report.notes)


def test_a_control_that_gives_the_same_models_is_named():
    plain, same, other = [0.70, 0.71, 0.72], [0.71, 0.72, 0.71], [0.71, 0.72, 0.72]
    results = [
        *runs(None, None, plain),
        *runs("ELEC", None, same),
        *runs("ELEC", "self", same),
        *runs("ELEC", "noise", same),
        *runs("LLaCTR", None, same),
        *runs("LLaCTR", "random", other),
    ]
    notes = [note for note in make_report(summarize(results), results).notes if "digit for digit" in note]
    assert len(notes) == 1 and notes[0].startswith(
        "shop: the runs of ELEC equal those of its control self and of noise,"
    )


def test_columns_in_which_nothing_would_stand_are_left_out(report):
    assert "gAUC" not in report.tables[0].heads and "validation AUC" not in report.tables[0].heads
    no_test = runs(None, None, BASE, metrics={"valid": {"AUC": 0.7, "logloss": 0.6}, "test": {}})
    heads = make_report(summarize(no_test), no_test).tables[0].heads
    assert "validation AUC" in heads
    assert "logloss" not in heads
    assert "gain over plain [95 %]" not in heads
    of_groups = runs(None, None, BASE, metrics={"valid": {}, "test": {"AUC": 0.7, "gAUC": 0.6}})
    assert "gAUC" in make_report(summarize(of_groups), of_groups).tables[0].heads


def test_markdown_keeps_its_columns_and_shows_names_as_they_are(report):
    text = to_markdown(report, ["gain_shop.png"])
    lines = [line for line in text.split("## Failed")[0].splitlines() if line.startswith("|")]
    columns = [len(re.findall(r"(?<!\\)\|", line)) - 1 for line in lines]
    assert columns == [len(table.heads) for table in report.tables for _ in range(len(table.lines) + 2)]
    assert r"A\_B\|c\$^{x}&lt;b&gt;&amp;%#\~\\\*" in lines[2]
    assert r"random, seed 3: failed: out of memory A\_B\|c" in text and "![gain\\_shop](<gain_shop.png>)" in text
    for part in ("- plan: a1b2", "torch 2.13.0", "train ab12, test cd34"):
        assert part in text


def test_latex_is_escaped_and_its_braces_match(report):
    text = to_latex(report)
    assert r"A\_B|c\$\textasciicircum{}\{x\}$<$b$>$\&\%\#\textasciitilde{}\textbackslash{}*" in text
    body = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("%"))
    bare = re.sub(r"\\[{}$&%]", "", body)
    assert bare.count("{") == bare.count("}") and bare.count("$") % 2 == 0
    rows = [line for line in bare.splitlines() if line.endswith(r"\\")]
    assert {line.count("&") for line in rows} == {len(table.heads) - 1 for table in report.tables}
    assert "0.70417 $\\pm$ 0.00549" in text
    assert "$+$0.01000 [$+$" in text
    assert text.count("\\midrule") == 2 * len(report.tables)
    assert "% plan: a1b2\n" in text and "% Failed or missing: shop" in text
    assert latex("50 % of\na-b") == r"50 \% of a-b"


def test_csv_has_the_numbers_as_they_are():
    rows = summarize(strange_runs(), FAILED)
    lines = list(csv.DictReader(io.StringIO(to_csv(rows))))
    assert [line["backbone"] for line in lines] == [STRANGE] * 4 + ["FM"]
    plain, llactr, random, shuffled, fm = lines
    assert float(plain["test_AUC_mean"]) == rows[0].test["AUC"].mean and plain["over_plain_mean"] == ""
    assert float(llactr["over_plain_high"]) == rows[1].over_plain.high and llactr["verdict"] == rows[1].verdict
    assert float(shuffled["method_over_control_mean"]) == rows[1].over_controls["shuffled"].mean
    assert (random["seeds"], random["failed"], fm["test_AUC_sd"]) == ("1 2 4 5 6", "3", "")
    assert to_csv([]) == ""


def test_the_page_is_whole_and_asks_nothing_of_the_network(report):
    page = to_html(report, {"gain_shop.png": b"\x89PNG"})
    seen = Page(page)
    assert [len(cells) for cells in seen.cells[:6]] == [len(report.tables[0].heads)] * 6
    assert seen.cells[1] == report.tables[0].lines[0].cells and STRANGE in seen.text
    links = [value for name, value in seen.attributes if name in ("src", "href")]
    assert links == ["data:image/png;base64,iVBORw=="]
    assert "url(" not in page
    assert "@import" not in page
    assert (
        page.count("<script>") == page.count("<script") == 1 and "default-src 'none'" in page and "refresh" not in page
    )
    assert "prefers-color-scheme: dark" in page and ("name", "viewport") in seen.attributes
    assert f"failed: out of memory {STRANGE}" in seen.text and "✔ proven: better" in seen.text


NO_TEST = {"metrics": {"valid": {"AUC": 0.7, "logloss": 0.6}, "test": {}}, "slices": None, "seconds": {"train": 3.0}}


@pytest.mark.parametrize(
    ("results", "failures", "pictures"),
    [
        ([], [], set()),
        ([], FAILED, set()),
        (runs(None, None, [0.7]), [], {"cost"}),
        (runs("LLaCTR", None, [0.7, 0.8]), [], {"cost"}),
        (runs(None, None, [0.7], **NO_TEST) + runs("ELEC", None, [0.8], **NO_TEST), [], set()),
        (runs(None, None, [0.7]) + runs("ELEC", None, [0.7]), [], {"cost", "gain", "frequency", "gain_by_cost"}),
        (runs(None, None, [0.7]) + runs("ELEC", None, [0.7], seconds={}, rows={}, parameters={}, record={}), [],
         {"cost", "gain", "frequency"}),
    ],
    ids=["nothing", "all failed", "one run", "no plain arm", "no test data", "one seed", "bare"],
)  # fmt: skip
def test_there_is_always_something_to_write(results, failures, pictures, tmp_path):
    paths = write_all(tmp_path, summarize(results, failures), results, failures, FACTS)
    tables = {f"table.{kind}" for kind in ("md", "csv", "tex", "html")}
    assert {path.name for path in paths} == tables | {"paper.tex"} | {f"{name}_shop.png" for name in pictures}
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {path.name for path in paths}
    Page((tmp_path / "table.html").read_text(encoding="utf-8"))
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert ("failed: out of memory" in text) == bool(failures) and "a1b2" in text


def test_a_table_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    write_all(tmp_path, summarize([], FAILED), [], FAILED, FACTS)
    before = (tmp_path / "table.md").read_bytes()

    def full(path, content):
        path.write_text("half", encoding="utf-8")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"cannot write to .*: No space left on device; give another folder with --out"):
        write_all(tmp_path, summarize([], FAILED), [], FAILED, FACTS)
    assert (tmp_path / "table.md").read_bytes() == before
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]


@pytest.mark.parametrize(
    ("missing", "text"),
    [((2, 3), "not run at seed 2; seed 3"), (((1, 2), (2, 1)), "not run at split 1, seed 2; split 2, seed 1")],
)
def test_what_has_not_run_is_named_as_it_is_repeated(missing, text):
    (row,) = summarize(runs(None, None, [0.7]))
    assert make_report([replace(row, missing=missing)]).troubles == [f"shop DeepFM plain: {text}"]


@pytest.mark.parametrize(
    ("by", "of", "tuning", "leans"),
    [
        ("random", 1, "3 trials", True),
        ("time", 2, "3 trials", True),
        ("time", 1, "3 trials", False),
        ("random", 2, "", False),
        (None, 1, "3 trials", False),
    ],
)
def test_a_search_that_saw_the_test_rows_of_the_splits_is_told(by, of, tuning, leans):
    resplit = {"by": by, "number": 1, "of": of} if by else None
    changes = {"split": int(bool(by)), "rows": {"train": 900, "test": 100}, "record": {"config": {"resplit": resplit}}}
    results = runs(None, None, [0.7], **changes)
    notes = make_report(summarize(results), results, facts={"tuning": tuning}).notes
    assert any("the AUCs of all arms lean upwards" in note for note in notes) == leans


def test_facts_name_every_version_and_every_state_of_the_data():
    results = runs(None, None, [0.7, 0.8])
    results += runs("ELEC", None, [0.7], record={"versions": {"torch": "2.14.0"}, "data": {"sha256": "ef56"}})
    facts = make_report([], results, [], {"command": "a\n b"}).facts
    assert facts["command"] == "a b" and facts["versions"] == "torch 2.13.0 and 2.14.0"
    assert facts["data shop (sha256)"] == "train ab12, test cd34 or ef56" and facts["date"]
