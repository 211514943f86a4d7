"""A published file is downloaded once, checked, and never used half."""

import hashlib
import urllib.error
import urllib.request

import pytest

from fuxictr_llm.__main__ import main
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import cache_dir
from fuxictr_llm.data.downloads import Download, downloaded


@pytest.fixture
def published(tmp_path):
    """A file under a file: address, and where it lies."""
    path = tmp_path / "ratings.dat"
    path.write_bytes(b"content")
    return Download(path.as_uri(), hashlib.sha256(b"content").hexdigest(), "MIT"), path


def test_it_is_downloaded_once_and_again_when_damaged(published):
    file, source = published
    path = downloaded(file)
    assert path.read_bytes() == b"content" and path.name == "ratings.dat" and cache_dir() in path.parents
    path.write_bytes(b"conten")
    assert downloaded(file).read_bytes() == b"content"
    source.unlink()
    assert downloaded(file) == path


def test_another_content_is_not_kept(published):
    file, source = published
    source.write_bytes(b"content, cut")
    with pytest.raises(UserError, match="has sha256 .* expected .*: it is not used"):
        downloaded(file)
    assert not [path for path in cache_dir().rglob("*") if path.is_file()]


@pytest.mark.parametrize("dataset_id", ["movietweetings_time", "xwines"])
def test_without_a_network_the_way_out_is_one_line(dataset_id, monkeypatch, capsys):
    def offline(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    assert main(["prepare", dataset_id]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: cannot download https://raw.githubusercontent.com/") and "--raw DIR" in error
    assert error.count("\n") == 1
