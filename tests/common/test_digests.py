"""Parts of a digest that share a key are refused, and the remembered digest of a changed file is not used."""

from pathlib import Path

import pytest

from fuxictr_llm.common.files import digest_of_file, merged


def test_two_parts_that_share_a_key_are_refused():
    assert merged({"a": 1}, {}, {"b": 2}) == {"a": 1, "b": 2}
    with pytest.raises(ValueError, match="two parts of a digest have the key 'units'"):
        merged({"units": "digests", "a": 1}, {"units": 2})


def test_remembered_digests(monkeypatch):
    monkeypatch.setattr("fuxictr_llm.common.files.REMEMBERED_ABOVE", 0)
    Path("a").write_text("a")
    keys = [digest_of_file("a"), digest_of_file("a", "md5")]
    Path("a").write_text("bb")
    assert len({*keys, digest_of_file("a"), digest_of_file("a", "md5")}) == 4
