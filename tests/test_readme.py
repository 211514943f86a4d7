"""What the READMEs show works: their examples run, their commands parse, their links lead somewhere.

Pages that a reader carries out from top to bottom: test_readme_in_order.py.
"""

import argparse
import dataclasses
import itertools
import re
import runpy
import shlex
import sys
import tomllib
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
import yaml

import fuxictr_llm
from fuxictr_llm.__main__ import main
from fuxictr_llm.commands.plans import controls_of
from fuxictr_llm.config.resolve import load_experiment, parse_overrides
from fuxictr_llm.config.sources import dataset_names
from fuxictr_llm.experiment.preparation import prepare_run
from fuxictr_llm.experiment.run import run_experiment
from fuxictr_llm.leaderboard.boards.published import read_board
from fuxictr_llm.leaderboard.plan.plan import Plan
from fuxictr_llm.leaderboard.run.space import read_space
from fuxictr_llm.llm.catalog import load_catalog
from fuxictr_llm.model_zoo.LLaCTR.vector_file import write_field_vectors
from fuxictr_llm.registry import find_method
from support import edit, params, small_feature_map

pytestmark = pytest.mark.usefixtures("registry_as_before")

ROOT = Path(__file__).parents[1]
COMMANDS = (
    'pip install -e ".[test]" -c constraints.txt && python -m pytest',
    "pip install -e . -c constraints.txt && python run_expid.py --expid DeepFM_LLaCTR_movielens100k",
)
LONGEST = 9000
# A folder a method: those that others register while tests run are not of the zoo.
METHODS = sorted(path.parent.name for path in ROOT.glob("model_zoo/*/config.py"))
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "model_zoo/README.md",
    *(f"model_zoo/{name}/README.md" for name in METHODS),
    "fuxictr_llm/leaderboard/README.md",
    "fuxictr_llm/serving/README.md",
    "fuxictr_llm/training/README.md",
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


def test_the_example_of_an_own_method_is_served_and_costs_nothing_when_off(movies):
    files = ["spread.py", "my_configs/method_config/Spread.yaml"]
    blocks = write_blocks("model_zoo/README.md", "## Your own method", files)
    assert sum(map(len, map(str.splitlines, blocks))) < 60
    run = run_experiment(load_experiment("DeepFM_Spread_movielens100k", "my_configs"))
    assert run.run.params["lambda_spread"] == 0.5 and len(run.model.enhancement.scale.unique()) > 1
    assert main(["export", "--run", f"checkpoints/movielens100k/{run.record['model_id']}", "--to", "served"]) == 0
    off = load_experiment("DeepFM_Spread_movielens100k", "my_configs", overrides={"lambda_spread": 0.0})
    plain = load_experiment("DeepFM_movielens100k", "my_configs")
    assert run_experiment(off).record["metrics"] == run_experiment(plain).record["metrics"] != run.record["metrics"]


def test_fuxictr_scripts_find_a_class_by_its_name(tmp_path):
    (program,) = blocks_of(section_of("model_zoo/README.md", "## FuxiCTR's own scripts and tuner"), "python")
    feature_map, file = small_feature_map("DeepFM"), tmp_path / "vectors.safetensors"
    fields = [name for name, spec in feature_map.features.items() if spec["type"] != "meta"]
    write_field_vectors(file, torch.randn(len(fields), 9), fields)
    names = {"feature_map": feature_map, "params": params("DeepFM", field_vectors=str(file), model="DeepFM_LLaCTR")}
    exec(program, names)
    assert type(names["model"]).__name__ == "DeepFM_LLaCTR"


def test_the_example_of_a_directory_of_ones_own_runs(configs, tmp_path):
    (configs / "dataset_config.yaml").unlink()  # the raw files and small settings stay
    write_blocks(
        "benchmark_configs/README.md",
        "## Your own directory",
        ["my_configs/dataset_config.yaml", "my_configs/click_fields.yaml"],
    )
    assert main(["run", "--config", "my_configs", "--expid", "DNN_clicks"]) == 0
    run = prepare_run(load_experiment("DNN_clicks", "my_configs"), "unused")
    catalog = load_catalog(run.feature_map, run.data_dir, "my_configs/click_fields.yaml")
    assert "on sale" in {field.name: field.values for field in catalog.fields}["tags"]


def test_the_words_of_the_texts_example_are_those_of_the_data_set():
    (words,) = write_blocks("model_zoo/ELEC/README.md", "## Texts", ["my_configs/movie_fields.yaml"])
    entry = yaml.safe_load(words)["movielens100k"]
    columns = load_experiment("DeepFM_movielens100k").params["feature_cols"]
    names = set(
        itertools.chain.from_iterable(
            column["name"] if isinstance(column["name"], list) else [column["name"]] for column in columns
        )
    )
    named = {*entry["fields"], *(text for part in entry["entities"].values() for text in [part["id"], *part["text"]])}
    assert named <= names


def test_the_search_space_fits_its_plan():
    write_blocks("fuxictr_llm/leaderboard/README.md", "## Tuning", ["space.yaml"])
    plan = Plan.crossed(["DeepFM"], ["movielens100k"], ["plain", "LLaCTR"], controls=True)
    assert read_space("space.yaml", plan).sections.keys() == {"DeepFM", "LLaCTR"}


KEYS = re.compile(r"^\| `(\w+)` \| (?:`([^`]*)` )?\|", re.MULTILINE)


@pytest.mark.parametrize("method", METHODS)
def test_the_table_of_keys_has_every_key_of_a_method_and_its_default(method):
    shared = dict(KEYS.findall(section_of("model_zoo/README.md", "### Config keys that methods share")))
    own = dict(KEYS.findall(section_of(f"model_zoo/{method}/README.md", "## Config keys")))
    assert len(own) > 5 and not own.keys() & shared.keys()
    keys = {field.name for field in dataclasses.fields(find_method(method).config_cls)}
    assert own.keys() - keys == set()
    assert keys - own.keys() <= shared.keys()
    entry = yaml.safe_load((ROOT / "benchmark_configs" / "method_config" / f"{method}.yaml").read_text())[method]
    defaults = {key: yaml.safe_load(text) for key, text in {**shared, **own}.items() if text}
    assert entry == {key: value for key, value in defaults.items() if key in keys}


def test_every_method_has_a_page_that_the_zoo_names():
    assert {"ELEC", "LLMEmb", "LLaCTR"} <= set(METHODS)
    for name in METHODS:
        assert f"({name}/README.md)" in read("model_zoo/README.md")


def commands_of(page):
    """The commands of ours in a page, as words: python run_expid.py, python -m fuxictr_llm, torchrun, fuxictr-llm."""
    text = re.sub(r"\\\n\s*", "", read(page))
    program = r"^(?:\S.* && )?(?:python run_expid\.py|python -m fuxictr_llm|torchrun .*-m fuxictr_llm|fuxictr-llm) "
    for block in blocks_of(text):
        for line in block.splitlines():
            if match := re.match(program, line):
                words = shlex.split(line[match.end() :], comments=True)
                yield ["run", *words] if "run_expid.py" in match[0] else words


def test_every_command_names_what_there_is(monkeypatch):
    parse, commands = argparse.ArgumentParser.parse_args, []

    def parsed(self, words=None, namespace=None):
        args = parse(self, words, namespace)
        args.command = commands.append
        return args

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    for words in itertools.chain.from_iterable(map(commands_of, PAGES)):
        assert main(words) == 0, words
    assert len(commands) >= 25
    for args in commands:
        settings = vars(args)
        if settings.get("expid") and not args.config and not args.zoo:
            assert load_experiment(args.expid, overrides=parse_overrides(args.set)).params["model"]
        if settings.get("backbones"):
            assert Plan.crossed(args.backbones, args.datasets, args.methods, controls=controls_of(args)).arms
        if settings.get("board"):
            assert read_board(args.board)
        if settings.get("name"):
            assert args.name in dataset_names()


def test_the_tests_page_names_every_mark():
    marks = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]
    listed = re.findall(r"^\| `(\w+)` \|", section_of("tests/README.md", "## Marks"), re.MULTILINE)
    assert sorted(listed) == sorted(mark.partition(":")[0] for mark in marks)


def test_the_citation_has_what_cff_requires_and_the_version_of_the_package():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["cff-version"] == "1.2.0" and citation["license"] == "Apache-2.0"
    assert str(citation["version"]) == fuxictr_llm.__version__
    assert f'version="{fuxictr_llm.__version__}"' in (ROOT / "setup.py").read_text()
    for entry in (citation, *citation["references"]):
        assert entry["title"]
        assert entry["type"]
        assert entry["authors"]
    assert {"message", "authors", "title"} <= citation.keys()
