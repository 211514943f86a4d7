"""What a run says at its end: its metrics, and a table of its networks beside the plain backbone."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fuxictr.utils import print_to_list

from fuxictr_llm import registry
from fuxictr_llm.common.checks import field_names
from fuxictr_llm.common.files import read_json
from fuxictr_llm.common.run_files import RECORD, records_in
from fuxictr_llm.common.runs import Stages
from fuxictr_llm.common.typed import command_for
from fuxictr_llm.config.resolve import NOT_IN_IDENTITY, constructor_hints
from fuxictr_llm.data.slices import slices_table
from fuxictr_llm.distillation.recovery import recovery_of
from fuxictr_llm.experiment.cold import unseen_table

AFFECTS_RESULTS = False  # see common/code_digest.py
OWN = "vanilla"  # the name of the run's own network beside those that were trained on the way


def log_summary(record: Mapping[str, Any], stages: Stages, files: Path, pictures: list[Path]) -> None:
    """Log the metrics, how long the run took, and where the files are.

    Args:
        files: the run's files without their endings.
    """
    counts, names = record["parameters"], [path.name.removeprefix(files.name) for path in pictures]
    valid, *valid_by_task = _metric_lines(record, "valid")
    test, *test_by_task = _metric_lines(record, "test") or ["no test data"]
    lines = [
        f"{record['model_id']}, seed {record['seed']}",
        f"  test        {test}",
        *(f"    {line}" for line in test_by_task),
        f"  validation  {valid} (best of {stages.done['train']['epochs']} epochs: {record['best_epoch']})",
        *(f"    {line}" for line in valid_by_task),
        f"  parameters  backbone {counts['backbone']:,}, method {counts['method']:,}",
        f"  time        {stages}",
        f"  files       {files.parent} ({', '.join(['.model', '.log', RECORD, *names])})",
    ]
    if record.get("cold_values"):  # not in records of earlier versions
        lines += [f"  {line}" for line in unseen_table(record["cold_values"])]
    if record["networks"]:
        lines += networks_table(record, files.parent.parent)
    logging.info("Summary\n%s", "\n".join(lines))


def _metric_lines(record: Mapping[str, Any], split: str) -> list[str]:
    """The metrics of a split; where there are several tasks, their means and then those of each."""
    metrics, labels, names = record["metrics"][split], record["labels"], record["config"]["metrics"]
    if len(labels) == 1 or not metrics:
        return [print_to_list(metrics)] if metrics else []
    width = max(map(len, labels))
    tasks = {label: {name: metrics[f"{label}_{name}"] for name in names} for label in labels}
    means = print_to_list({name: metrics[name] for name in names})
    return [means, *(f"{label:<{width}}  {print_to_list(values)}" for label, values in tasks.items())]


def networks_table(record: Mapping[str, Any], folder: Path) -> list[str]:
    """A table of a run's networks, one of their AUC by slices, and in both the plain backbone where it has run.

    Args:
        folder: the folder with the runs on this data set.
    """
    networks = {**record["networks"], OWN: record}
    plain = {} if "plain" in networks else find_plain(record, folder)
    networks = {**({"plain": plain} if plain else {}), **networks}
    names = record["config"]["metrics"]  # not those of single tasks
    columns = [(split, name) for split in ("valid", "test") for name in record["metrics"][split] if name in names]
    lines = ["  " + "".join([f"{'network':26}", *(f"{f'{split} {name}':>16}" for split, name in columns)])]
    for name, facts in networks.items():
        measured = facts["metrics"] or {}  # a teacher from elsewhere may have been measured by others
        values = [measured.get(split, {}).get(metric) for split, metric in columns]
        shown = [f"{'-':>16}" if value is None else f"{value:16.6f}" for value in values]
        lines.append("  " + "".join([f"{name:26}", *shown]))
    if not plain and "plain" not in networks:
        lines.append(f"  (the plain backbone with these settings has not run here: {_command_of_plain(record)})")
    found = [(split, recovery_of(networks, split, names, record["metrics"])) for split in ("valid", "test")]
    lines += [f"  {split}: {recovery}" for split, recovery in found if recovery]
    slices = {name: facts["slices"] for name, facts in networks.items() if facts.get("slices")}
    return lines + (["  " + line for line in slices_table(slices).splitlines()] if slices else [])


def _command_of_plain(record: Mapping[str, Any]) -> str:
    """Runs the backbone of a run as the run was, without the settings of its method alone."""
    config = record["config"]
    of_backbone = constructor_hints(registry.find_backbone(config["model"])).keys()
    of_method = field_names(registry.find_method(config["method"]).config_cls) - of_backbone
    expid = f"{config['model'].rpartition(':')[2]}_{config['dataset_id']}"
    return command_for(expid, without={*of_method, "method_regularizer"})


def find_plain(record: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The record of the plain backbone's run with the same settings, data and code; empty where there is none."""
    for path in records_in(folder):
        other = read_json(path) or {}
        config = other.get("config") or {"method": ""}
        compared = config.keys() - {*NOT_IN_IDENTITY, "method"}
        same = all(record["config"].get(key) == config[key] for key in compared)
        same &= _backbone_code(other) == _backbone_code(record)
        if config.get("method") is None and same and other.get("data") == record["data"]:
            return other
    return {}


def _backbone_code(record: Mapping[str, Any]) -> str | None:
    """The digest of its backbone's code; None where the record does not have it."""
    return ((record.get("sources") or {}).get("code") or {}).get("backbone")
