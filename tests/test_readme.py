"""What the READMEs show works: their examples run, their commands parse, their links lead somewhere."""

import argparse
import functools
import itertools
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import yaml
from conftest import CITIES, small_table

import fuxictr_llm
from fuxictr_llm.__main__ import main
from fuxictr_llm.config.resolve import load_experiment, parse_overrides
from fuxictr_llm.experiment.run import prepare_run, run_experiment
from fuxictr_llm.host.batches import synthetic_batch
from fuxictr_llm.llm.catalog import load_catalog
from fuxictr_llm.registry import method_names
from support import as_arguments, edit

ROOT = Path(__file__).parents[1]
COMMANDS = (
    'pip install -e ".[test]" -c constraints.txt && python -m pytest',
    "pip install -e . -c constraints.txt && python run_expid.py --expid DeepFM_LLaCTR_movielens100k",
)
LONGEST = 9000
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "model_zoo/README.md",
    *(f"model_zoo/{name}/README.md" for name in ("ELEC", "LLMEmb", "LLaCTR")),
    "fuxictr_llm/leaderboard/README.md",
    "benchmark_configs/README.md",
    "tests/README.md",
]
every_page = pytest.mark.parametrize("page", PAGES)


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def blocks_of(text, language=""):
    """The fenced blocks of a language; without one, those of commands."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def section_of(page, title):
    """The text below a heading, up to the next one of the same level or a higher one."""
    level, lines, code = len(title) - len(title.lstrip("#")), [], False
    text = iter(read(page).splitlines())
    assert title in text, f"{page} has no heading {title!r}"  # and `text` goes on behind it
    for line in text:
        code ^= line.startswith("```")
        if not code and re.match(rf"#{{1,{level}}} ", line):
            break
        lines.append(line)
    return "\n".join([*lines, ""])


def write_blocks(page, title, paths):
    """Write the files that a section shows, whose first line is a comment with their name; their texts."""
    named = re.findall(
        r"^```(?:yaml|python)\n# (\S+\.\w+)\n(.*?)^```", section_of(page, title), re.DOTALL | re.MULTILINE
    )
    assert [path for path, _ in named] == paths
    for path, text in named:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)
    return [text for _, text in named]


@pytest.fixture
def movies(configs, monkeypatch, tiny_settings):
    """`my_configs` with the small data set `shop` under the name movielens100k; the examples resolve on it."""
    edit(configs / "dataset_config.yaml", "shop:", "movielens100k:")

    def load(expid, seed=None, overrides=None):
        return load_experiment(expid, "my_configs", seed=seed, overrides={**tiny_settings, **(overrides or {})})

    monkeypatch.setattr(fuxictr_llm, "load_experiment", load, raising=False)
    return configs


def test_the_readme_is_short():
    assert len(read("README.md")) <= LONGEST


def test_the_two_commands_are_what_ci_runs():
    readme, ci = read("README.md"), (ROOT / ".ci" / "run").read_text()
    for command in COMMANDS:
        assert f"```\n{command}\n```" in readme
        assert command.replace("pip install", "pip install --quiet") in ci


@every_page
def test_every_relative_link_leads_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", read(page), flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\(([^)]+)\)", text)
    for link in links:
        path, _, heading = link.partition("#")
        if ":" in path:
            continue
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if heading:
            assert heading in anchors(target), link
    assert links


def anchors(page):
    """The headings of a page as GitHub writes them in links."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_the_picture_is_what_its_script_draws(tmp_path, monkeypatch):
    pictures = ROOT / "tests" / "pictures"
    monkeypatch.setattr(sys, "argv", ["draw_taps.py", str(tmp_path / "taps.png")])
    runpy.run_path(str(pictures / "draw_taps.py"), run_name="__main__")
    drawn, kept = (matplotlib.image.imread(folder / "taps.png") for folder in (tmp_path, pictures))
    assert drawn.shape == kept.shape
    assert np.abs(drawn - kept).mean() < 0.01  # other versions of freetype draw letters a little differently
    assert "(tests/pictures/taps.png)" in read("README.md")


def test_the_lines_of_python_train_export_and_load(movies):
    (program,) = blocks_of(section_of("README.md", "## In Python"), "python")
    assert len(program.splitlines()) <= 10
    names = {}
    exec(compile(program, "README.md", "exec"), names)
    assert names["experiment"].params["lambda_fre"] == 0.1 and names["experiment"].params["seed"] == 1
    (line,) = blocks_of(section_of("README.md", "## Serving"), "python")
    exec(line, names | {"batch": synthetic_batch(names["served"].model.feature_map, rows=5)}, names)
    assert names["clicks"].shape == (5,)


def test_the_example_of_own_data_runs(tiny_settings):
    files = ["my_configs/dataset_config.yaml", "my_configs/shop_fields.yaml"]
    blocks = write_blocks("README.md", "## Your data", files)
    assert sum(map(len, map(str.splitlines, blocks))) <= 16
    Path("my_configs/method_config").mkdir()
    Path("raw").mkdir()
    for seed, split in enumerate(("train", "valid", "test")):
        table = small_table(300, seed).drop(columns=["user", "tags"])
        table.assign(city=table["city"].isin(CITIES[:3]) + 1).to_csv(f"raw/{split}.csv", index=False)
    settings = {**tiny_settings, "epochs": 1, "verbose": 0, "num_threads": 1}
    sets = as_arguments(settings)
    assert main(["run", "--config", "my_configs", "--expid", "DeepFM_LLaCTR_shop", *sets]) == 0
    run = prepare_run(load_experiment("DeepFM_shop", "my_configs"), "unused")
    catalog = load_catalog(run.feature_map, run.data_dir, "my_configs/shop_fields.yaml")
    assert {field.name: set(field.values) for field in catalog.fields}["city"] == {"Rome", "Oslo"}


def test_the_example_of_an_own_backbone_trains_with_a_method(movies):
    before = (movies / "model_config.yaml").read_text()
    blocks = write_blocks("README.md", "## Your backbone", ["my_net.py", "my_configs/model_config.yaml"])
    assert sum(map(len, map(str.splitlines, blocks))) <= 19
    (movies / "model_config.yaml").write_text(before + blocks[1])
    result = run_experiment(fuxictr_llm.load_experiment("MyNet_LLaCTR_movielens100k"))
    assert type(result.model).__name__ == "MyNet_LLaCTR" and result.run.params["hidden_units"] == [64, 64]
    assert result.model.enhancement.anatomy.representation_width == 64


def test_the_short_example_of_an_own_method_trains(movies):
    blocks = write_blocks("README.md", "## Your method", ["calm.py", "my_configs/method_config/Calm.yaml"])
    assert sum(map(len, map(str.splitlines, blocks))) <= 17
    calm, plain = (run_experiment(load_experiment(expid, "my_configs")) for expid in (
        "DeepFM_Calm_movielens100k", "DeepFM_movielens100k"
    ))  # fmt: skip
    assert calm.run.params["lambda_calm"] == 0.2
    assert calm.record["metrics"] != plain.record["metrics"]
