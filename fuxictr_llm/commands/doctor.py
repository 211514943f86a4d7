"""`doctor`: what the taps find in a model, and checks by real runs."""

import argparse
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from fuxictr_llm.commands import add_command, add_methods, chosen_gpu, experiment_of, methods_of
from fuxictr_llm.common.errors import UserError, unknown

if TYPE_CHECKING:
    from fuxictr_llm.diagnosis.tiny import TinyCase
    from fuxictr_llm.enhancement.anatomy import Anatomy


# How an outcome is shown: a failure is to be seen at once.
OUTCOMES = {"passed": "passed", "failed": "FAILED", "not tried": "not tried"}


def add(commands: Any) -> None:
    """Declare the command."""
    text = "show what the taps find in a model, and check by real runs what it can be used for"
    parser = add_command(commands, "doctor", doctor, text)
    parser.add_argument("--model", help="a backbone, package.module:Class or file.py:Class, on tiny data; or --expid")
    add_methods(parser)


def doctor(args: argparse.Namespace) -> None:
    """Print the tables.

    Raises:
        SystemExit: with code 1, where a check failed.
    """
    if bool(args.model) == bool(args.expid):
        raise UserError("doctor needs --model or --expid, one of the two; run --list shows the backbones")
    _check_names(args)
    from rich.console import Console
    from rich.markup import escape

    from fuxictr_llm.diagnosis.doctor import CHECKS, anatomy_of, method_check, quiet, run_check
    from fuxictr_llm.registry import find_method

    with quiet():
        case = _built_case(args) if args.expid else _tiny_case(args)
    checks = [*CHECKS.items(), *((name, method_check(find_method(name).model_cls)) for name in methods_of(args))]
    anatomy, console = anatomy_of(case), Console(highlight=False)
    console.print(*_about(case), "", sep="\n", markup=False)
    console.print(_taps_table(case, anatomy), "", sep="\n")
    if choices := list(_choices(case, anatomy)):
        title = "candidates, and the config keys that choose one"
        console.print(_table(title, ("key", "value", "sees"), choices), "", sep="\n")
    failed = 0
    table = _table("checks", ("check", "", "found"), [])
    with console.status("checking"):
        for name, check in checks:
            finding = run_check(check, case)
            failed += finding.outcome == "failed"
            table.add_row(name, OUTCOMES[finding.outcome], escape(finding.text))
    console.print(table)
    if failed:
        console.print(f"{failed} of {len(checks)} checks failed")
        raise SystemExit(1)


def _check_names(args: argparse.Namespace) -> None:
    """What is misspelt is said before torch is imported."""
    from fuxictr_llm.config.sources import read_source
    from fuxictr_llm.host.checkout import use_checkout
    from fuxictr_llm.registry import find_backbone

    use_checkout(args.zoo)
    if args.model:
        find_backbone(args.model, "--model")
    else:
        read_source(args.expid, args.config)


def _tiny_case(args: argparse.Namespace) -> "TinyCase":
    from fuxictr_llm.host.checkout import use_checkout

    use_checkout(args.zoo)
    from fuxictr_llm.common.checks import check_value
    from fuxictr_llm.config.resolve import parse_overrides
    from fuxictr_llm.diagnosis.tiny import tiny_case
    from fuxictr_llm.host.evaluated import check_settings
    from fuxictr_llm.registry import find_backbone

    cls, changes = find_backbone(args.model, "--model"), parse_overrides(args.set)
    hints = _hints_of_keys(cls, methods_of(args))
    for key, value in changes.items():
        if key not in hints:
            raise unknown("key", key, hints, f"--set, of {cls.__name__}")
        if hints[key] is not None:
            check_value(key, value, hints[key])
    check_settings(changes, cls, "--set")
    seed = {} if args.seed is None else {"seed": args.seed}
    return tiny_case(cls, **{"gpu": chosen_gpu(args.gpu), **changes, **seed})


def _hints_of_keys(cls: type, methods: Iterable[str]) -> dict[str, Any]:
    """The keys of the constructor, the taps and the methods, and their types; None where the type is not known."""
    from typing import get_type_hints

    from fuxictr_llm.config.keys import ModelKeys
    from fuxictr_llm.config.resolve import constructor_hints
    from fuxictr_llm.registry import find_method

    configs = [find_method(name).config_cls for name in methods]
    of_methods = {field.name: None for config in configs for field in dataclasses.fields(config)}
    return {**of_methods, **constructor_hints(cls), **get_type_hints(ModelKeys, include_extras=True)}


def _built_case(args: argparse.Namespace) -> "TinyCase":
    """The experiment's model and the first rows of its train data, which is built where it is not yet."""
    experiment = experiment_of(args)
    from fuxictr_llm.diagnosis.tiny import RunCase
    from fuxictr_llm.experiment.preparation import prepare_data

    return RunCase.from_run(prepare_data(experiment, experiment.expid))


def _about(case: "TinyCase") -> Iterator[str]:
    from fuxictr_llm.config.origins import origin_of

    file, features = origin_of(case.cls).file, case.feature_map.features
    kinds = sorted({spec["type"] for spec in features.values()})
    yield f"{case.cls.__name__}" + (f" of {file}" if file else "")
    yield f"on the data set {case.feature_map.dataset_id}, with features of the types {', '.join(kinds)}"
    for kind, reason in case.left_out.items():
        yield f"without {kind}: {reason}"


def _taps_table(case: "TinyCase", anatomy: "Anatomy") -> Any:
    return _table(
        "taps",
        ("tap", "sees", "module"),
        [
            ("embeddings", embeddings_text(case, anatomy), anatomy.embedding or ""),
            ("logit", f"T = {len(anatomy.tasks)}: {', '.join(anatomy.tasks)}", _activations(anatomy)),
            ("representation", representation_text(anatomy), "\n".join(_representations(anatomy))),
        ],
    )


def embeddings_text(case: "TinyCase", anatomy: "Anatomy") -> str:
    """How many of the fields are seen, how wide, and which are not; or why none."""
    if not anatomy.fields:
        return f"none: {anatomy.missing.get('embeddings', '')}"
    fields = [name for name, spec in case.feature_map.features.items() if spec["type"] != "meta"]
    missing = [name for name in fields if name not in anatomy.fields]
    widths = sorted(set(anatomy.dims))
    text = f"{len(anatomy.fields)} of {len(fields)} fields, D = {anatomy.embedding_dim}"
    text += f" (projected from {', '.join(map(str, widths))})" if len(widths) > 1 else ""
    return text + (f"; not {', '.join(missing)}" if missing else "")


def representation_text(anatomy: "Anatomy") -> str:
    """R, as the sum of its parts; or why there is none, and what is taken in its place."""
    if anatomy.widths:
        sums = " + ".join(map(str, anatomy.widths))
        return f"R = {anatomy.representation_width}" + (f" = {sums}" if len(anatomy.widths) > 1 else "")
    reason = f"none: {anatomy.missing.get('representation', '')}"
    return reason + (f", R = {anatomy.representation_width}" if anatomy.representation_width else "")


def _activations(anatomy: "Anatomy") -> str:
    names = dict.fromkeys(name or "the model's own sigmoid" for name in anatomy.activations)
    return "\n".join(names)


def _representations(anatomy: "Anatomy") -> list[str]:
    if anatomy.named:
        return [anatomy.named]
    return [f"{layer.module} (call {layer.call + 1})" if layer.call else layer.module for layer in anatomy.logit_layers]


def _choices(case: "TinyCase", anatomy: "Anatomy") -> Iterator[tuple[str, str, str]]:
    """Key, value and what it would see, where there is more than one candidate for a tap."""
    from fuxictr_llm.diagnosis.doctor import quiet

    candidates, taken = anatomy.candidates, " (taken)"
    if len(candidates.embeddings) > 1:
        for name, fields in candidates.embeddings.items():
            yield "tap_embedding", name, f"{len(fields)} fields{taken if name == anatomy.embedding else ''}"
    if len(candidates.representations) > 1:
        with quiet():
            model = case.build()
        chosen = {layer.module for layer in anatomy.logit_layers} | {anatomy.named}
        for name in candidates.representations:
            width = model.get_submodule(name).in_features
            yield "tap_representation", name, f"R = {width}{taken if name in chosen else ''}"


def _table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Any:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    return table
