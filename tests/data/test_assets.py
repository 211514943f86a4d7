"""Wheels are downloaded once, checked, and never used half."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

from fuxictr_llm.common import files
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import cache_dir, read_json, writable_dir
from fuxictr_llm.data import assets
from fuxictr_llm.data.assets import Asset, asset_dir
from fuxictr_llm.llm import model_files as model_folder
from support import flip_a_byte


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A small wheel outside the cache and an asset of its content; counts the downloads."""
    path = tmp_path / "some_pkg-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("some_pkg/data/a.txt", "A" * 100)
        archive.writestr("some_pkg/data/b.txt", "B")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(
        assets.ASSETS, "thing", Asset("some-pkg", "1.0", path.stat().st_size, digest, ("some_pkg/data/a.txt",), "MIT")
    )
    downloads = []

    def download(asset, folder):
        downloads.append(asset.wheel)
        with open(f"{folder}/{asset.wheel}", "wb") as file:  # noqa: PTH123
            file.write(path.read_bytes())

    monkeypatch.setattr(assets, "_pip_download", download)
    return path, downloads


def test_the_named_files_are_unpacked_once(wheel):
    folder = asset_dir("thing")
    assert (folder / "a.txt").read_text() == "A" * 100 and not (folder / "b.txt").exists()
    assert asset_dir("thing") == folder and wheel[1] == ["some_pkg-1.0-py3-none-any.whl"]


def test_a_half_unpacked_or_cut_folder_is_made_anew(wheel):
    folder = asset_dir("thing")
    (folder / "a.txt").write_text("A")
    assert (asset_dir("thing") / "a.txt").read_text() == "A" * 100
    (folder / "manifest.json").unlink()
    assert (asset_dir("thing") / "a.txt").read_text() == "A" * 100
    assert len(wheel[1]) == 1  # the wheel itself is kept


def test_a_changed_byte_is_noticed_and_mended(wheel, caplog):
    folder = asset_dir("thing")
    flip_a_byte(folder / "a.txt")
    assert (asset_dir("thing") / "a.txt").read_text() == "A" * 100
    assert "a.txt is damaged: it is made anew" in caplog.text and len(wheel[1]) == 1


def test_a_large_file_is_read_again_where_its_time_changed(wheel, monkeypatch, caplog):
    monkeypatch.setattr(files, "REMEMBERED_ABOVE", 1)
    folder = asset_dir("thing")
    assert asset_dir("thing") == folder
    with monkeypatch.context() as patched:
        patched.setattr(files, "_hash", None)  # nothing is read of what did not change
        assert asset_dir("thing") == folder
    os.utime(folder / "a.txt", ns=(1, 1))
    assert asset_dir("thing") == folder and "damaged" not in caplog.text  # copied, say


def test_a_folder_of_an_earlier_version_gets_its_digests(wheel, caplog):
    folder = asset_dir("thing")
    (folder / "manifest.json").write_text('{"sizes": {"a.txt": 100}}')
    assert "sha256" in read_json(asset_dir("thing") / "manifest.json") and "damaged" not in caplog.text


def test_a_wheel_put_into_the_downloads_is_used_without_network(wheel):
    downloads = cache_dir() / "downloads"
    downloads.mkdir(parents=True)
    (downloads / wheel[0].name).write_bytes(wheel[0].read_bytes())
    assert (asset_dir("thing") / "a.txt").is_file() and wheel[1] == []


def test_a_damaged_wheel_in_the_downloads_is_downloaded_again(wheel, caplog):
    downloads = cache_dir() / "downloads"
    downloads.mkdir(parents=True)
    (downloads / wheel[0].name).write_bytes(b"half")
    asset_dir("thing")
    assert len(wheel[1]) == 1 and "damaged" in caplog.text


def test_another_content_than_expected_is_not_used(wheel):
    wheel[0].write_bytes(wheel[0].read_bytes() + b"more")
    with pytest.raises(UserError, match="sha256 .* expected .* it is not used"):
        asset_dir("thing")
    assert not (cache_dir() / "assets").exists()


def pip_is(monkeypatch, code):
    """In place of pip the code runs; `folder` is where the wheel goes."""

    def popen(command, **options):
        code_of_pip = f"import sys; folder = {command[command.index('--dest') + 1]!r}; {code}"
        return start([sys.executable, "-c", code_of_pip], **options)

    start = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", popen)


def test_a_download_shows_how_much_is_here(monkeypatch, capfd, shown_at_once):
    monkeypatch.setattr(assets, "LOOK", 0.05)
    code = "import time; open(folder + '/part', 'wb').write(bytes(10**6)); time.sleep(0.5)"
    pip_is(monkeypatch, code)
    assets._pip_download(assets.ASSETS["movielens100k"], str(writable_dir(cache_dir() / "there", "")))
    lines = capfd.readouterr().err.splitlines()
    assert re.fullmatch(r"downloading recbole: +47% 1.00M/2.13M \[00:00<00:00, +[\d.]+MB/s\]", lines[-1])


def test_without_network_the_way_out_is_named(monkeypatch):
    pip_is(monkeypatch, "print('noise\\nERROR: No matching distribution found', file=sys.stderr); sys.exit(1)")
    with pytest.raises(UserError, match=r"cannot download recbole==1.2.1: ERROR: No matching .* put recbole-1.2.1"):
        asset_dir("movielens100k")
    with pytest.raises(UserError, match="unknown asset 'movielens100'; did you mean 'movielens100k'"):
        asset_dir("movielens100")


def test_a_model_is_converted_while_its_download_is_unpacked_for_the_first_time(wheel, monkeypatch, caplog):
    monkeypatch.setattr(model_folder, "GGUF_MODELS", ["thing"])

    def convert(name, folder):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(asset_dir(name) / "a.txt", folder / "model.safetensors")
        (folder / "config.json").write_text("{}")
        assets.seal(folder)

    monkeypatch.setattr(model_folder, "_convert", convert)
    folder = model_folder.find_language_model("thing")
    assert (folder / "model.safetensors").read_text() == "A" * 100
    for name in ("model.safetensors", "config.json"):
        flip_a_byte(folder / name)
        model_folder.find_language_model("thing")
        assert f"{folder / name} is damaged: it is made anew" in caplog.text
    assert (folder / "model.safetensors").read_text() == "A" * 100 and (folder / "config.json").read_text() == "{}"
