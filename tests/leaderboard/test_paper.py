"""paper.tex: methods down, backbones across, the best mean of a backbone in bold, verdicts as signs."""

import re

import pytest

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.leaderboard.report.evidence import summarize
from fuxictr_llm.leaderboard.report.paper import check_columns, to_paper
from support_tables import STRANGE, runs, shifted

BASE = [0.70, 0.71, 0.69, 0.70, 0.705]


def table_of(*results):
    return to_paper(summarize([run for some in results for run in some]))


def test_the_best_mean_is_bold_and_verdicts_are_signs_that_the_caption_explains():
    text = table_of(
        runs(None, None, BASE),
        runs("LLaCTR", None, shifted(BASE, 0.02)),
        runs("LLaCTR", "random", BASE),
        runs("LLaCTR", "shuffled", BASE),
        runs("ELEC", None, shifted(BASE, -0.02)),
        runs(None, None, BASE, "FM"),
    )
    lines = {line.split(" & ")[0]: line.split(" & ")[1:] for line in text.splitlines() if " & " in line}
    assert list(lines) == ["", "plain", "LLaCTR", "ELEC"]  # and no control
    assert lines["LLaCTR"][0] == r"$\mathbf{0.7210}{\scriptstyle\pm0.0074}^{\ast}$"
    assert lines["plain"][0].startswith("$0.7010{") and lines["plain"][2].startswith(r"$\mathbf{0.7010}")
    assert lines["ELEC"][0].startswith("$0.6810{") and lines["ELEC"][0].endswith(r"^{\downarrow}$")
    assert lines["ELEC"][2:] == ["--", r"-- \\"]
    caption = re.search(r"caption\{(.*)\}", text)[1]
    assert "5 runs" in caption and caption.count(r"$\ast$: better than plain and than every placebo") == 1
    assert r"$\downarrow$: worse than plain" in caption and r"\circ" not in caption


def test_equal_to_the_last_digit_shown_is_as_good_and_less_logloss_is_better():
    (other,) = runs("LLaCTR", None, [0.70001], metrics={"test": {"AUC": 0.70001, "logloss": 0.4}})
    text = table_of(runs(None, None, [0.7]), [other])
    assert text.count(r"\mathbf{0.7000}") == 2 and text.count(r"\mathbf{0.4000}") == 1
    assert r"\mathbf{0.5000}" not in text


def test_names_are_escaped_and_braces_match():
    text = table_of(runs(None, None, BASE, dataset=STRANGE), runs(STRANGE, None, BASE, STRANGE, dataset=STRANGE))
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}") and "<b>" not in text
    assert re.search(r"label\{tab:[\w-]+\}", text)


def test_columns_are_chosen_and_the_sign_goes_with_the_first_there_is():
    rows = summarize(
        [
            *runs(None, None, BASE),
            *runs("LLaCTR", None, shifted(BASE, 0.02)),
            *runs("LLaCTR", "random", BASE),
            *runs("LLaCTR", "shuffled", BASE),
        ]
    )
    check_columns(["gain", "RelaImpr", "parameters", "train_seconds", "gAUC"])
    text = to_paper(rows, ["gain", "RelaImpr", "parameters", "train_seconds", "gAUC"])
    lines = {
        line.split(" & ")[0]: line.removesuffix(r" \\").split(" & ")[1:] for line in text.splitlines() if " & " in line
    }
    assert lines[""] == ["gain", r"RelaImpr (\%)", "parameters", "training (s)"]  # and no gAUC, which nobody measured
    assert lines["plain"] == ["--", "--", "$5{,}000$", "$13$"]
    gain, improved, parameters, _ = lines["LLaCTR"]
    assert gain == r"$\mathbf{+0.0200}{\scriptstyle\pm0.0000}^{\ast}$"
    assert improved == rf"$\mathbf{{{100 * 0.02 / 0.201:+.2f}}}$" and parameters == "$5{,}070$"
    with pytest.raises(UserError, match=r"unknown column 'AUCC' in --paper-columns; did you mean 'AUC'\?"):
        check_columns(["AUC", "AUCC"])
