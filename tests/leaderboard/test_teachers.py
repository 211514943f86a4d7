"""The table of gain networks, which says whether they gain and what their students have of it."""

from fuxictr_llm.leaderboard.report.evidence import summarize
from fuxictr_llm.leaderboard.report.report import make_report
from fuxictr_llm.leaderboard.report.tables import to_markdown
from support_tables import runs


def elec_runs(gains, students, backbone="DeepFM", plain=0.7, **changes):
    found = []
    for seed, (gain, student) in enumerate(zip(gains, students, strict=True), 1):
        networks = {"plain": {"metrics": {"test": {"AUC": plain}}}, "gain": {"metrics": {"test": {"AUC": gain}}}}
        found += runs("ELEC", None, {seed: student}, backbone, record={"networks": networks}, **changes)
    return found


def test_means_over_seeds_and_the_recovery_of_the_means():
    results = [*runs(None, None, [0.7, 0.7, 0.7]), *elec_runs([0.732, 0.73, 0.728], [0.714, 0.71, 0.712])]
    results += elec_runs([0.69, 0.69], [0.71, 0.71], "FM")
    results += elec_runs([0.75, 0.71], [0.72, 0.704], "DCNv2")  # not surely better
    report = make_report(summarize(results), results)
    (table,) = [table for table in report.tables if table.title == "shop, gain networks"]
    assert [line.cells for line in table.lines] == [
        ["DeepFM", "ELEC", "+0.03000 ± 0.00200", "3 of 3 seeds", "+0.01200 ± 0.00200", "40%"],
        ["FM", "ELEC", "-0.01000 ± 0.00000", "0 of 2 seeds", "+0.01000 ± 0.00000", "-"],
        ["DCNv2", "ELEC", "+0.03000 ± 0.02828", "2 of 2 seeds", "+0.01200 ± 0.01131", "-"],
    ]
    assert "| DeepFM | ELEC | +0.03000 ± 0.00200 |" in to_markdown(report)


def test_splits_are_counted_once_and_their_seeds_averaged():
    first, second = ({"split": split, "rows": {"train": 900, "test": 100}} for split in (1, 2))
    results = [*runs(None, None, [0.7, 0.7], **first), *runs(None, None, [0.7, 0.7], **second)]
    results += elec_runs([0.76, 0.70], [0.71, 0.71], **first)  # in the mean +0.03 and +0.01
    results += elec_runs([0.72, 0.66], [0.70, 0.70], **second)  # -0.01 and 0
    report = make_report(summarize(results), results)
    (table,) = [table for table in report.tables if table.title == "shop, gain networks"]
    cells = ["DeepFM", "ELEC", "+0.01000 ± 0.02828", "1 of 2 splits", "+0.00500 ± 0.00707", "-"]
    assert [line.cells for line in table.lines] == [cells]


def test_runs_without_a_gain_network_have_no_such_table():
    results = [*runs(None, None, [0.7, 0.7]), *runs("LLaCTR", None, [0.71, 0.71])]
    assert not any("gain networks" in table.title for table in make_report(summarize(results), results).tables)
