"""Finished runs as a row of BARS: a folder that its scripts/gen_readme_md.py reads (github.com/reczoo/BARS).

<Model>/<Model>_<dataset_id>/
    README.md           how to run it, the results and the log; made from the other files
    <expid>_config/     dataset_config.yaml and model_config.yaml, in FuxiCTR's form, and the user's own files
    <expid>.log         of the first run; BARS takes the expid from its name
    environments.txt    [Hardware] and [Software]; BARS takes the last line for FuxiCTR's version
    results.csv         FuxiCTR's line of each run; where there are several, seed=... stands in front
"""

import csv
import shutil
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from fuxictr_llm.common.checks import check_name
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import explain_write_errors, read_json, replacing_dir, writable_dir
from fuxictr_llm.common.formats import CENTRE, table_of
from fuxictr_llm.common.run_files import files_of, find_run
from fuxictr_llm.config.keys import DatasetKeys
from fuxictr_llm.config.resolve import NOT_IN_IDENTITY, Experiment
from fuxictr_llm.experiment.record import result_cells
from fuxictr_llm.leaderboard.boards.own_files import own_files_of
from fuxictr_llm.leaderboard.plan.arms import control_of
from fuxictr_llm.leaderboard.run.results import OTHER_OUT

PAGE = """## {row}

How to run {model} on {dataset}, and what came out.{placebo}

| [Environments](#Environments) | [Dataset](#Dataset) | [Code](#Code) | [Results](#Results) | [Logs](#Logs) |
|:-----------------------------:|:-------------------:|:-------------:|:-------------------:|:-------------:|

### Environments

```
{environments}```

### Dataset

{data}

### Code

{code}

1. Install the versions listed above.
2. Put the data files where `{expid}_config/dataset_config.yaml` says, or change it.
3. Run

   ```bash
   python -m fuxictr_llm run --config {expid}_config --expid {expid}{options}
   ```

### Results

{results}

### Logs

```
{log}```
"""
REQUIRED_KEYS = ("model_id", "seed", "metrics", "config", "versions", "command", "time", "data")
# Config keys that may differ between the runs of a row.
SEED_KEYS = {*NOT_IN_IDENTITY, "seed", "control_seed", "num_threads"}
# What BARS calls the packages that it lists, in its order; FuxiCTR must be the last.
SOFTWARE = {
    "python": "python",
    "pytorch": "torch",
    "pandas": "pandas",
    "numpy": "numpy",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "pyyaml": "pyyaml",
    "h5py": "h5py",
    "tqdm": "tqdm",
    "transformers": "transformers",
    "fuxictr-llm": "fuxictr-llm",
    "fuxictr": "fuxictr",
}


def readme(
    row: str, records: Sequence[Mapping[str, Any]], environments: str, log: str, named: Mapping[str, str]
) -> str:
    """The page of a row.

    Args:
        records: of its runs, as they stand in results.csv.
        named: the user's own files and classes, as in the row's config.
    """
    config = records[0]["config"]
    dataset = config["dataset_id"]
    return PAGE.format(
        row=row,
        model=row.removesuffix(f"_{dataset}"),
        dataset=dataset,
        placebo=_placebo(config),
        environments=environments,
        data=_data(config, records[0]["data"]),
        code=_code(records[0], named),
        options=_options(records[0]),
        expid=records[0]["model_id"],
        results=_results(records),
        log=log,
    )


def _code(record: Mapping[str, Any], named: Mapping[str, str]) -> str:
    """Whose code the model and the method are, and what runs them."""
    config, versions, kind = record["config"], record["versions"], (record.get("backbone") or {}).get("kind")
    model, method, folder = config["model"], config.get("method"), f"{record['model_id']}_config"
    version = versions.get("fuxictr", "")
    fuxictr = f"[FuxiCTR {version}](https://github.com/reczoo/FuxiCTR/tree/v{version})"
    plugin = f"fuxictr-llm {versions.get('fuxictr-llm', '(version not recorded)')}, a plugin of {fuxictr}"

    def of_user(name: str, key: str) -> str:
        file, _, cls = named.get(key, name).rpartition(":")
        return f"`{cls}` of `{folder}/{file}`" if key in named else f"`{cls}` of the Python module `{file}`"

    if ":" in model:
        whose = f"{of_user(model, 'model')}, a model of its author's own, run by {plugin}"
    elif kind in ("checkout", "fuxictr"):
        place = "a checkout of FuxiCTR, whose folder is given as --zoo" if kind == "checkout" else "the fuxictr package"
        whose = f"`{model}` of {place}, run by {plugin}"
    else:
        whose = f"{model} as {plugin}, has it"
    with_method = f", with the method {of_user(method, 'method')}" if method and ":" in method else ""
    return f"{whose}{with_method}."


def _options(record: Mapping[str, Any]) -> str:
    zoo = " --zoo FuxiCTR" if (record.get("backbone") or {}).get("kind") == "checkout" else ""
    return zoo + (" --gpu 0" if record["config"].get("gpu", -1) >= 0 else "")


def _placebo(config: Mapping[str, Any]) -> str:
    name = control_of(config)
    if name is None:
        return ""
    return f"\n\n**A placebo**: the control `{name}` of the method {config['method']}, not the method itself."


def _data(config: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    page = config.get("download")
    lines = [f"`{config['dataset_id']}`" + (f", from {page}." if page else ".")]
    lines += [f"    {split}  sha256 {digest}" for split, files in data["sha256"].items() for digest in files]
    return "\n".join([lines[0], "", *lines[1:]])


def _results(records: Sequence[Mapping[str, Any]]) -> str:
    """A table with a line for each run; of several also mean and standard deviation (of the population)."""
    metrics = list(records[0]["metrics"]["test"])
    values = np.array([[record["metrics"]["test"][name] for name in metrics] for record in records])
    rows = [[str(index), *(f"{value:.6f}" for value in line)] for index, line in enumerate(values, 1)]
    if len(records) > 1:
        rows += [
            ["Avg", *(f"{value:.6f}" for value in values.mean(axis=0))],
            ["Std", *(f"±{value:.8f}" for value in values.std(axis=0))],
        ]
    heads = ["Run", *metrics]
    return table_of(heads, rows, [CENTRE] * len(heads)).replace("±", "&#177;")  # as BARS writes it


def write_row(runs: Sequence[Path | str], out: Path | str) -> Path:
    """Write the row of one experiment, run at one or more seeds; the folder.

    Args:
        runs: as `export_run` takes them; the first one's log and config are those of the row.
        out: the folder that holds the models' folders: a checkout of BARS has it as `ranking/ctr`.

    Raises:
        UserError: a run is missing or damaged, has no test metrics, is of other settings or data than the first, a file
            of its model is not here or has changed, or a row is there already.
    """
    files = [find_run(run) for run in runs]
    records = [_read(file) for file in files]
    _check_alike(records, files)
    log, own = _log_of(files[0]), own_files_of(records[0])
    model = model_name(records[0]["config"])
    row = f"{model}_{records[0]['config']['dataset_id']}"
    for kind, name in (("model", model), ("row", row), ("model_id", records[0]["model_id"])):
        check_name(kind, name, repr(str(files[0])), longest=200)
    target = Path(out) / model / row
    if target.exists():
        raise UserError(f"{str(target)!r} is there already; move it away, or {OTHER_OUT}")
    writable_dir(target.parent, OTHER_OUT)
    with explain_write_errors(target, OTHER_OUT), replacing_dir(target) as folder:
        expid = records[0]["model_id"]
        _experiment(records[0], own.model).write_directory(folder / f"{expid}_config", own.named)
        for place, file in own.files.items():
            copy = folder / f"{expid}_config" / place
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        (folder / f"{expid}.log").write_text(log, encoding="utf-8")
        environments = environments_of(records[0])
        (folder / "environments.txt").write_text(environments, encoding="utf-8")
        write_results(folder / "results.csv", records)
        text = readme(target.name, records, environments, log, own.named)
        (folder / "README.md").write_text(text, encoding="utf-8")
    return target


def model_name(config: Mapping[str, Any]) -> str:
    """`DeepFM`, `DeepFM_LLaCTR`, of its placebo `DeepFM_LLaCTR_random`; of `net.py:MyNet` the class.

    Raises:
        UserError: the method is unknown, and so are its placebos.
    """
    backbone = config["model"].rpartition(":")[2].replace("/", "-")
    return "_".join(filter(None, (backbone, (config.get("method") or "").rpartition(":")[2], control_of(config))))


def environments_of(record: Mapping[str, Any]) -> str:
    """What a run ran on and with, in the two sections of BARS."""
    machine, versions = record.get("hardware") or {}, record["versions"]
    gpu = machine.get("gpu") or ("none" if machine else None)
    hardware = {"CPU": machine.get("cpu"), "GPU": gpu, "RAM": machine.get("ram")}
    software = {name: versions[package] for name, package in SOFTWARE.items() if package in versions}
    lines = ["[Hardware]", *(f"{name}: {value or 'not recorded'}" for name, value in hardware.items())]
    lines += ["", "[Software]", f"CUDA: {machine.get('cuda') or 'none'}"]
    return "\n".join([*lines, *(f"{name}: {value}" for name, value in software.items())]) + "\n"


def write_results(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write FuxiCTR's result lines; a cell with a comma, as a command with a list in it, is quoted."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        for record in records:
            cells = result_cells(record, datetime.fromisoformat(record["time"]))
            writer.writerow([f"seed={record['seed']}", *cells] if len(records) > 1 else cells)


def _read(file: Path) -> dict[str, Any]:
    record = read_json(file)
    if not isinstance(record, dict) or any(key not in record for key in REQUIRED_KEYS):
        raise UserError(f"{str(file)!r} is damaged or no run record; run the experiment again")
    if not record["metrics"].get("test"):
        raise UserError(f"{str(file)!r} has no test metrics: it ran without test data, and BARS lists test figures")
    return record


def _check_alike(records: Sequence[Mapping[str, Any]], files: Sequence[Path]) -> None:
    first, seeds = records[0], [record["seed"] for record in records]
    for index, record in enumerate(records):
        keys = (first["config"].keys() | record["config"].keys()) - SEED_KEYS
        different = sorted(key for key in keys if first["config"].get(key) != record["config"].get(key))
        different += ["data"] if record["data"] != first["data"] else []
        if different:
            where = f"{str(files[index])!r} and {str(files[0])!r}"
            raise UserError(f"{where} differ in {', '.join(different)}; a row is one experiment at several seeds")
        if record["seed"] in seeds[:index]:
            raise UserError(f"{str(files[index])!r}: seed {record['seed']} is given twice")


def _log_of(file: Path) -> str:
    """The part of a log that is of its last run; a log file keeps those before."""
    path = Path(f"{files_of(file)}.log")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {str(path)!r}, which is part of a row: {error}") from error
    starts = [number for number, line in enumerate(lines) if " INFO Params: {" in line]
    return "\n".join(lines[starts[-1] if starts else 0 :]) + "\n"


def _experiment(record: Mapping[str, Any], model: str) -> Experiment:
    config = {**record["config"], "model": model}
    dataset_keys = frozenset(config) & (frozenset(DatasetKeys.__annotations__) - {"dataset_id"})
    return Experiment(record["model_id"], config, dataset_keys, frozenset(), changed=False, config_name="")
