"""The README's commands are the ones that continuous integration runs, and its example of own data works."""

import itertools
import re
import shlex
import shutil
from pathlib import Path

from conftest import CITIES, small_table

from fuxictr_llm.__main__ import main
from fuxictr_llm.config.resolve import load_experiment, parse_overrides
from fuxictr_llm.experiment.run import prepare_run, run_experiment
from fuxictr_llm.llm.catalog import load_catalog
from support import as_arguments, edit

ROOT = Path(__file__).parents[1]
COMMANDS = (
    'pip install -e ".[test]" -c constraints.txt && python -m pytest',
    "pip install -e . -c constraints.txt && python run_expid.py --expid DeepFM_LLaCTR_movielens100k",
)


def test_the_two_commands_are_what_ci_runs():
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    for command in COMMANDS:
        assert f"```\n{command}\n```" in readme
        assert command.replace("pip install", "pip install --quiet") in ci


def test_the_example_of_own_data_runs(tiny_settings):
    Path("my_configs/method_config").mkdir(parents=True)
    Path("raw").mkdir()
    write_blocks("### Your own data", ["my_configs/dataset_config.yaml", "my_configs/shop_fields.yaml"])
    for seed, split in enumerate(("train", "valid", "test")):
        table = small_table(300, seed).drop(columns=["user", "tags"])
        table.assign(city=table["city"].isin(CITIES[:3]) + 1).to_csv(f"raw/{split}.csv", index=False)
    settings = {**tiny_settings, "epochs": 1, "verbose": 0, "num_threads": 1}
    sets = as_arguments(settings)
    assert main(["run", "--config", "my_configs", "--expid", "DeepFM_LLaCTR_shop", *sets]) == 0
    run = prepare_run(load_experiment("DeepFM_shop", "my_configs"), "unused")
    catalog = load_catalog(run.feature_map, run.data_dir, "my_configs/shop_fields.yaml")
    assert {field.name: set(field.values) for field in catalog.fields}["city"] == {"Rome", "Oslo"}


def test_the_example_of_an_own_method_trains_and_is_served(configs):
    edit(configs / "dataset_config.yaml", "shop:", "movielens100k:")
    configs.rename("shop_configs")
    Path("my_configs/method_config").mkdir(parents=True)
    blocks = write_blocks("### Your own method", ["spread.py", "my_configs/method_config/Spread.yaml"])
    assert sum(map(len, map(str.splitlines, blocks))) < 60
    for file in Path("shop_configs").glob("*.yaml"):
        shutil.copy(file, "my_configs")
    run = run_experiment(load_experiment("DeepFM_Spread_movielens100k", "my_configs"))
    assert run.run.params["lambda_spread"] == 0.5 and len(run.model.enhancement.scale.unique()) > 1
    assert main(["export", "--run", f"checkpoints/movielens100k/{run.record['model_id']}", "--to", "served"]) == 0
    off = load_experiment("DeepFM_Spread_movielens100k", "my_configs", overrides={"lambda_spread": 0.0})
    plain = load_experiment("DeepFM_movielens100k", "my_configs")
    assert run_experiment(off).record["metrics"] == run_experiment(plain).record["metrics"] != run.record["metrics"]


def write_blocks(title, paths):
    """Write the files that a section of the README shows; their texts."""
    section = (ROOT / "README.md").read_text().partition(f"\n{title}\n")[2].partition("\n##")[0]
    blocks = re.findall(r"```(?:yaml|python)\n# (\S+)\n(.*?)```", section, re.DOTALL)
    assert [path for path, _ in blocks] == paths
    for path, text in blocks:
        Path(path).write_text(text)
    return [text for _, text in blocks]


def test_every_file_that_the_readme_links_to_is_there():
    links = re.findall(r"\]\(([^)h#][^)]*)\)", (ROOT / "README.md").read_text())
    assert len(links) >= 4 and all((ROOT / link).is_file() for link in links)


def test_every_command_of_the_readme_names_an_experiment_that_there_is():
    text = (ROOT / "README.md").read_text().replace("\\\n", "")
    commands = re.findall(r"^(?:\S+ && )*python (?:run_expid\.py|-m fuxictr_llm \w+) .*--expid .*", text, re.MULTILINE)
    assert len(commands) >= 12
    for command in commands:
        words = shlex.split(command, comments=True)
        value_of = [(word, after) for word, after in itertools.pairwise(words) if word.startswith("--")]
        expid = next(after for word, after in value_of if word == "--expid")
        overrides = parse_overrides(after for word, after in value_of if word == "--set")
        if "--config" not in words:
            assert load_experiment(expid, overrides=overrides).params["model"]
