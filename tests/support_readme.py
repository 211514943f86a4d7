"""Carries out a page as its reader does: its files, commands and Python, in their order, in the folder of the test.

Packaged configs are scaled down for it, so that commands run as they are written: little data, one epoch, a tiny
language model.
"""

import itertools
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fuxictr_llm.__main__ import main

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
FILE_NAME = re.compile(r"# (\S+\.(?:yaml|py))\n")
OURS = re.compile(r"(?:python run_expid\.py|python -m fuxictr_llm|fuxictr-llm)(?: |$)")
COMMAND = re.compile(r"(?:python|pip|torchrun|mkdir|git|cd|fuxictr-llm|tensorboard|[A-Z_]+=\S+)(?: |$)")
SMALL = {"epochs": 1, "num_threads": 1, "verbose": 0, "pictures": False, "batch_size": 256}


def carry_out(page: str, left_out: Mapping[str, str], added: Mapping[str, str], names: dict[str, Any]) -> list[str]:
    """Do what a page says, from top to bottom; the commands of ours that ran.

    Args:
        left_out: pattern of a command that is not run -> why.
        added: pattern of a command -> options that make it short.
        names: what the page's Python knows at its beginning; it gets what that defines.
    """
    ran = []
    for language, block in blocks_of(page):
        if any(re.search(pattern, block) for pattern in left_out if language == "python"):
            continue
        if match := FILE_NAME.match(block):
            write_file(match[1], block)
        elif language == "python":
            exec(compile(block, page, "exec"), names)
        elif language in ("", "bash"):
            for command in commands_in(block):
                if any(re.search(pattern, command) for pattern in left_out):
                    continue
                if command.startswith("mkdir "):
                    Path(shlex.split(command)[-1]).mkdir(parents=True, exist_ok=True)
                    continue
                match = OURS.match(command)
                assert match, f"{page}: {command}: say in left_out why it is not run"
                options = " ".join(text for pattern, text in added.items() if re.search(pattern, command))
                words = shlex.split(f"{command[match.end() :]} {options}")
                code = main(["run", *words] if "run_expid" in match[0] else words)
                assert code == 0, f"{page}: {command}"
                ran.append(command)
    return ran


def blocks_of(page: str) -> Iterator[tuple[str, str]]:
    """Language and text of each fenced block."""
    for match in FENCE.finditer((ROOT / page).read_text(encoding="utf-8")):
        yield match[2], match[3]


def files_of(page: str) -> Iterator[tuple[str, str]]:
    """Name and text of the files that a page shows: their first line is a comment with the name."""
    for _, block in blocks_of(page):
        if match := FILE_NAME.match(block):
            yield match[1], block


def write_file(name: str, text: str) -> None:
    """Write a file as a reader would; YAML is added to what the file has."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_text() if path.suffix == ".yaml" and path.exists() else ""
    path.write_text(before + text)


def commands_in(block: str) -> Iterator[str]:
    """The commands of a block, one at a time, without comments; none where it shows something else."""
    lines = re.sub(r"\\\n\s*", "", block).splitlines()
    for line in lines:
        if COMMAND.match(line):
            yield from (part.strip() for part in re.sub(r"\s+#\s.*", "", line).split("&&"))


def write_small_configs(folder: Path, movies: Path, settings: Mapping[str, Any]) -> None:
    """Write a copy of the packaged configs that runs in seconds.

    Args:
        movies: a folder with GroupLens's files, see `write_movies`.
        settings: of the language model.
    """
    shutil.copytree(ROOT / "benchmark_configs", folder, ignore=shutil.ignore_patterns("*.png", "*.xz", "*.md"))
    for path in itertools.chain(*(folder.glob(f"{kind}_config/*.yaml") for kind in ("model", "method", "dataset"))):
        entries = yaml.safe_load(path.read_text())
        for entry in entries.values():
            if isinstance(entry, dict):
                entry |= {key: value for key, value in {**SMALL, **settings}.items() if key in entry}
                entry |= {"raw_data": str(movies)} if "raw_data" in entry else {}
        path.write_text(yaml.safe_dump(entries))


def write_movies(folder: Path, ratings: int = 800) -> None:
    """Write u.data, u.user and u.item in GroupLens's form: 40 users rate 40 movies."""
    draw, rows = np.random.default_rng(0), range(1, 41)
    folder.mkdir(parents=True)
    pairs = draw.choice(1600, ratings, replace=False)
    lines = [f"{1 + x // 40}\t{1 + x % 40}\t{draw.integers(1, 6)}\t{880000000 + 997 * i}" for i, x in enumerate(pairs)]
    (folder / "u.data").write_text("\n".join(lines) + "\n")
    lines = [f"{i}|{18 + i}|{'MF'[i % 2]}|{['artist', 'doctor', 'other'][i % 3]}|{80000 + 700 * i}" for i in rows]
    (folder / "u.user").write_text("\n".join(lines) + "\n")
    genres = ["|".join(str(int(kind == i % 19)) for kind in range(19)) for i in rows]
    lines = [f"{i}|Movie {i} ({1950 + i})|01-Jan-1995||url|{genres[i - 1]}" for i in rows]
    (folder / "u.item").write_text("\n".join(lines) + "\n")
