"""The store: found by what went in, never half, never damaged."""

import pytest

from fuxictr_llm.common import cache as store

MADE_FROM = {"model": "m", "texts": ["a", "ü"]}


def save(content="x"):
    return store.save("things", MADE_FROM, "a.txt", lambda path: path.write_text(content), {"fact": 1})


def test_an_entry_is_found_by_what_went_in_in_any_order():
    assert store.find("things", MADE_FROM, "a.txt") is None
    path, manifest = save()
    assert manifest["made_from"] == MADE_FROM and manifest["fact"] == 1
    assert store.find("things", dict(reversed(MADE_FROM.items())), "a.txt") == (path, manifest)
    assert store.find("things", {**MADE_FROM, "texts": ["a"]}, "a.txt") is None


def test_a_changed_file_and_a_missing_manifest_count_as_absent(caplog):
    path, _ = save()
    path.write_text("y")
    assert store.find("things", MADE_FROM, "a.txt") is None and "is damaged: it is computed anew" in caplog.text
    save()
    path.with_name("manifest.json").write_text("{half")
    assert store.find("things", MADE_FROM, "a.txt") is None
    save()
    assert store.find("things", MADE_FROM, "a.txt")[0].read_text() == "x"


def test_a_write_that_fails_leaves_nothing_and_keeps_the_old():
    path, _ = save("old")

    def broken(target):
        target.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.save("things", MADE_FROM, "a.txt", broken, {})
    assert store.find("things", MADE_FROM, "a.txt")[0].read_text() == "old"
    assert [entry.name for entry in path.parent.parent.iterdir()] == [path.parent.name]
