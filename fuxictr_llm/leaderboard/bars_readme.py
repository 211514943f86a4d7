"""The README.md of a row in BARS's folder form: how to run it, what came out, and the log."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fuxictr_llm.leaderboard.identity import control_of

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

{model} as fuxictr-llm {plugin} has it, a plugin of [FuxiCTR {fuxictr}](https://github.com/reczoo/FuxiCTR/tree/v{fuxictr}).

1. Install the versions listed above.
2. Put the data files where `{expid}_config/dataset_config.yaml` says, or change it.
3. Run

   ```bash
   python -m fuxictr_llm run --config {expid}_config --expid {expid} --gpu 0
   ```

### Results

{results}

### Logs

```
{log}```
"""


def readme(row: str, records: Sequence[Mapping[str, Any]], environments: str, log: str) -> str:
    """The page of a row.

    Args:
        records: of its runs, as they stand in results.csv.
    """
    config, versions = records[0]["config"], records[0]["versions"]
    dataset = config["dataset_id"]
    return PAGE.format(
        row=row,
        model=row.removesuffix(f"_{dataset}"),
        dataset=dataset,
        placebo=_placebo(config),
        environments=environments,
        data=_data(config, records[0]["data"]),
        plugin=versions.get("fuxictr-llm", "(version not recorded)"),
        fuxictr=versions.get("fuxictr", ""),
        expid=records[0]["model_id"],
        results=_results(records),
        log=log,
    )


def _placebo(config: Mapping[str, Any]) -> str:
    name = control_of(config)
    if name is None:
        return ""
    return f"\n\n**A placebo**: the control `{name}` of the method {config['method']}, not the method itself."


def _data(config: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    page = config.get("download")
    lines = [f"`{config['dataset_id']}`" + (f", from {page}." if page else ".")]
    lines += [f"    {split}  sha256 {digest}" for split, of in data["sha256"].items() for digest in of]
    return "\n".join([lines[0], "", *lines[1:]])


def _results(records: Sequence[Mapping[str, Any]]) -> str:
    """A table with a line for each run and, of several, average and standard deviation (of the population)."""
    metrics = list(records[0]["metrics"]["test"])
    values = np.array([[record["metrics"]["test"][name] for name in metrics] for record in records])
    rows = [[str(index), *(f"{value:.6f}" for value in line)] for index, line in enumerate(values, 1)]
    if len(records) > 1:
        rows += [
            ["Avg", *(f"{value:.6f}" for value in values.mean(axis=0))],
            ["Std", *(f"&#177;{value:.8f}" for value in values.std(axis=0))],
        ]
    lines = [["Run", *metrics], [":---:"] * (len(metrics) + 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
