"""The page of a leaderboard: what it says while runs are going, and that a browser shows and sorts it."""

import io
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from fuxictr_llm.leaderboard.report import live
from fuxictr_llm.leaderboard.report.evidence import summarize
from fuxictr_llm.leaderboard.report.live import LivePage
from fuxictr_llm.leaderboard.report.page import State, to_html
from fuxictr_llm.leaderboard.report.report import make_report
from fuxictr_llm.leaderboard.report.run_list import RunLine, Runs, list_runs
from fuxictr_llm.leaderboard.run.progress import Display, Estimate, Snapshot, standings
from fuxictr_llm.leaderboard.run.results import Results
from support_leaderboard import write_record
from support_tables import STRANGE, runs, shifted

BASE = [0.700, 0.712, 0.705, 0.698, 0.709, 0.701]
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
REFRESH = '<meta http-equiv="refresh"'


def work(results, run):
    """What a process of the engine would leave of a run."""
    params = {**run.experiment.params, "model_root": str(results.folder / "runs")}
    write_record(replace(run.experiment, expid=run.name, params=params))
    Path(f"{results.files_of(run)}.log").write_text("the log")
    results.read_run(run)


@pytest.fixture
def page(plan, monkeypatch):
    monkeypatch.setattr(live, "SECONDS", 3600.0)  # no page but those that a test asks for
    return LivePage(Display(Results("board", plan(["FM", "LR"])), 2, Console(file=io.StringIO(), width=100)))


def test_the_page_follows_the_runs_and_ends_without_refresh(page):
    results, path = page.display.results, Path("board/table.html")
    first, second, third, fourth = results.plan.runs()
    with page.shown():
        for run in (first, second, third):
            page.started(run)
        work(results, first)
        page.finished(first)
        results.note_failure(second, "too <wide>")
        page.failed(second, "too <wide>")
        page._write_if_due()
        text = path.read_text()
        assert f'{REFRESH} content="10">' in text and "1 of 4 runs" in text
        assert re.findall(r"(\d+) (done|failed|running|to do)</span>", text) == [
            ("1", "done"),
            ("1", "failed"),
            ("1", "running"),
            ("1", "to do"),
        ]
        assert "Left: about " in text and "Best so far" in text and "too &lt;wide&gt;" in text
        links = re.findall(r'href="([^"]*)"', text)
        assert links == [f"runs/shop/{first.name}/{first.name}.{kind}" for kind in ("log", "run.json")] + [
            f"runs/shop/{second.name}/{second.name}.failure.json"
        ]
        assert all((path.parent / link).is_file() for link in links)
        path.unlink()
        page._write_if_due()  # nothing has happened
        assert not path.exists()
        page.failed(third, "x"), page.failed(fourth, "x")
    assert REFRESH in path.read_text() and "the tables are being made" in path.read_text()
    with pytest.raises(KeyboardInterrupt), page.shown():
        raise KeyboardInterrupt
    assert REFRESH not in path.read_text() and "the same command goes on" in path.read_text()
    assert {one.name for one in path.parent.iterdir()} == {"runs", "table.html"}  # nothing half written


def test_a_page_that_cannot_be_written_stops_no_run(page, monkeypatch, caplog):
    monkeypatch.setattr(live, "to_html", lambda *_: 1 / 0)
    with page.shown():
        page.started(page.display.results.plan.runs()[0])
        page._write_if_due()
    assert [record.getMessage() for record in caplog.records] == [
        "no page of the runs under way: ZeroDivisionError: division by zero"
    ]


def test_a_list_without_a_plan_has_what_is_known(tmp_path):
    lines = list_runs(tmp_path, Runs(runs(None, None, [0.7]), [], []))
    assert [(line.state, line.auc, line.files) for line in lines] == [("done", 0.7, {})]


def made_up_page(goes_on=True):
    made_up = [*runs(None, None, BASE), *runs("LLaCTR", None, shifted(BASE, 0.01)), *runs(None, None, [0.7], STRANGE)]
    made_up += runs("LLaCTR", "random", shifted(BASE, 0.002))
    aucs = [0.71, 0.69, None, 0.8, 0.75]
    names = [("DeepFM", "done"), (STRANGE, "done"), ("FM", "failed"), ("DCNv2", "done"), ("AFM", "done")]
    lines = [
        RunLine("shop", name, "plain", "seed 1", state, auc, auc and 1000 * auc, {"log": "runs/shop/a b.log"})
        for (name, state), auc in zip(names, aucs, strict=True)
    ]
    snapshot = Snapshot(40, 25, 1, 12, [], Estimate(5000.0, 12, 0), 12.3)
    state = State(snapshot, standings(made_up), "2030-01-02 03:04:05", goes_on=goes_on)
    return to_html(make_report(summarize(made_up), made_up), {}, lines, state)


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium, of the system or of playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright to drive a browser")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    with playwright.sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=path)
        except playwright.Error as error:
            pytest.skip(f"no Chromium here: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


def test_a_browser_shows_and_sorts_the_page(browser, tmp_path):
    path = tmp_path / "table.html"
    path.write_text(made_up_page(goes_on=False), encoding="utf-8")
    for width in (400, 1400):
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme="dark")
        shown = context.new_page()
        asked, errors = [], []
        shown.on("request", lambda request, asked=asked: asked.append(request.url))
        shown.on("pageerror", lambda error, errors=errors: errors.append(error))
        shown.on("console", lambda said, errors=errors: errors.append(said.text))
        shown.goto(path.as_uri())
        assert shown.evaluate("document.documentElement.scrollWidth") <= width  # tables scroll in boxes of their own
        assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 22, 22)"
        table = shown.locator('table[data-name="runs"]')
        column = table.locator("tbody tr td:nth-child(6)")
        as_made = column.all_text_contents()
        head, button = table.locator("th").nth(5), table.locator("th button").nth(5)
        assert head.get_attribute("aria-sort") == "none"
        button.focus()
        for direction, expected in (
            ("descending", ["0.80000", "0.75000", "0.71000", "0.69000", "-"]),
            ("ascending", ["0.69000", "0.71000", "0.75000", "0.80000", "-"]),
            ("none", as_made),
        ):
            shown.keyboard.press("Enter")
            assert head.get_attribute("aria-sort") == direction and column.all_text_contents() == expected
        shown.keyboard.press("Enter")
        shown.reload()
        assert column.all_text_contents()[0] == "0.80000" and head.get_attribute("aria-sort") == "descending"
        assert shown.evaluate("document.activeElement.textContent") == "AUC"
        table.locator("th button").nth(1).click()
        assert table.locator("tbody tr td:nth-child(2)").all_text_contents()[1:] == ["AFM", "DCNv2", "DeepFM", "FM"]
        for box in shown.locator(".scroll").all():  # backbone and arm stay, as far as there is room
            stay = (
                "box => { const cells = [...box.querySelectorAll('tbody tr:first-child .stays')]; box.scrollLeft = 300;"
            )
            stay += (
                " const left = box.getBoundingClientRect().left; let at = 1; return cells.length > 0 && cells.every("
            )
            stay += "cell => { const is = Math.abs(cell.getBoundingClientRect().left - left - at) < 1.5;"
            assert box.evaluate(f"{stay} at += cell.offsetWidth; return is; }}); }}")
        assert not errors and {*asked} == {path.as_uri()}
        context.close()
