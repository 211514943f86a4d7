"""Texts in Markdown are shown as they are, and no cell leaves its column."""

import pytest

from fuxictr_llm.common.formats import CENTRE, escaped, list_of, table_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a](http://b) `c`\nd", r"[a]\(http://b) \`c\` d"),
        ("a|b\\|c", r"a\|b\\\|c"),  # a backslash before a pipe does not undo its escape
        ("<b> & &lt;", "&lt;b&gt; &amp; &amp;lt;"),
        ("p < 0.05 ± 1 [0, 1], 3/4", "p &lt; 0.05 ± 1 [0, 1], 3/4"),
    ],
)
def test_a_text_is_shown_as_it_is(text, expected):
    assert escaped(text) == expected


def test_a_table_has_one_line_a_row_whatever_stands_in_the_cells():
    assert table_of(["a|b", "c"], [["1\r\n2", ""], ["x", "|"]]).splitlines() == [
        r"| a\|b | c |",
        "| --- | --- |",
        "| 1 2 |  |",
        r"| x | \| |",
    ]
    assert table_of(["a"], [], [CENTRE]) == "| a |\n| :---: |"


def test_a_list_has_one_line_an_entry():
    assert list_of(["a\n- b", "c*"]) == "- a - b\n- c\\*"
