"""Reads and checks the config.json of an exported folder and the record of a run: others may have written them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Required

from pydantic import Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from fuxictr_llm.common.checks import STRICT
from fuxictr_llm.common.errors import UserError, reason_of
from fuxictr_llm.common.files import remove_abandoned
from fuxictr_llm.config.keys import Metric

FORMAT = 1
CONFIG = "config.json"
AGAIN = "write it anew with 'python -m fuxictr_llm export --run RUN --to DIR'"
LONGEST = 100  # characters of a value that are shown

Width = Annotated[int, Field(ge=1, le=2**17)]  # FuxiCTR makes a list of this length
Size = Annotated[int, Field(ge=1, lt=2**63)]
Name = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$", max_length=300)]
Index = Annotated[int, Field(ge=0, lt=2**63)]
NEEDED = {"categorical": ("vocab_size",), "sequence": ("vocab_size", "max_len"), "embedding": ("pretrain_dim",)}


@with_config(STRICT)
class ExportedColumn(TypedDict, total=False):
    """The keys of a column that FuxiCTR's layers read; it may have more."""

    type: Required[Literal["numeric", "categorical", "sequence", "embedding", "meta"]]
    source: str | list[str]
    vocab_size: Size
    max_len: Width
    pretrain_dim: Width | None
    embedding_dim: Size
    padding_idx: Index | None
    oov_idx: Index
    share_embedding: str | None
    feature_encoder: str | list[str] | None
    pretrain_usage: Literal["init", "sum", "concat"]
    freeze_emb: bool
    first_cold_id: Index


@with_config(STRICT)
class ExportedFeatureMap(TypedDict):
    """A feature map as `host.columns.describe_feature_map` describes it."""

    dataset_id: str
    embedding_dim: Size | list[Size] | None
    labels: Annotated[list[str], Field(min_length=1)]
    features: Annotated[dict[str, ExportedColumn], Field(min_length=1)]


@with_config(STRICT)
class Folded(TypedDict, total=False):
    """The folded method, one of `enhancement.folded.FOLDED`."""

    fields: Required[list[str]]
    settings: dict[str, Any]  # of its config


@with_config(STRICT)
class ExportedBackbone(TypedDict, total=False):
    """An origin as `config.origins.Origin.portable` gives it."""

    kind: str | None
    sha256: str | None


@with_config(STRICT)
class ExportedFiles(TypedDict, total=False):
    """The preprocessing, as `preprocessing.write_preprocessing` notes it."""

    files: dict[str, str]
    missing: str


@with_config(STRICT)
class Evaluation(TypedDict, total=False):
    """How the run measured its test rows."""

    metrics: list[Metric]  # FuxiCTR evaluates the name of an NDCG
    batch_size: Size
    num_threads: Size | None
    group_id: str | None


@with_config(STRICT)
class Exported(TypedDict, total=False):
    """The keys of config.json that serving and teachers read; it has more."""

    model: Required[Name]
    params: Required[dict[str, Any]]
    feature_map: Required[ExportedFeatureMap]
    weights_sha256: Required[str]
    folded: Folded | None
    backbone: ExportedBackbone | None
    data: dict[str, Any] | None
    cold_values: dict[str, list[str]] | None
    preprocessing: ExportedFiles | None
    evaluation: Evaluation | None


@with_config(STRICT)
class ColdColumns(TypedDict, total=False):
    """What a record says of the values of a column that got embeddings after training; it says more."""

    columns: Required[list[str]]
    values: Required[list[str]]


@with_config(STRICT)
class TrainedColdValues(TypedDict, total=False):
    columns: Required[dict[str, ColdColumns]]


@with_config(STRICT)
class TrainedSettings(TypedDict, total=False):
    """The settings of a run that an export reads, besides those of its backbone and its method."""

    model: Required[Name]
    method: Name | None
    user_info: str | None
    gpu: int


@with_config(STRICT)
class TrainedBackbone(ExportedBackbone, total=False):
    """An origin as `config.origins.Origin.record` gives it."""

    name: Name


@with_config(STRICT)
class TrainedSample(TypedDict):
    """Rows and their predictions, as `sample.sample_of` gives them."""

    columns: dict[str, Annotated[list[Any], Field(min_length=1)]]
    y_pred: Annotated[list[list[float]], Field(min_length=1)]


@with_config(STRICT)
class Trained(TypedDict, total=False):
    """The keys of a run's record that an export reads; it has more."""

    config: Required[TrainedSettings]
    feature_map: Required[ExportedFeatureMap]
    backbone: TrainedBackbone | None
    cold_values: TrainedColdValues | None
    added_columns: dict[str, ExportedColumn]
    sample: TrainedSample | None


def read_config(folder: Path) -> dict[str, Any]:
    """The content of config.json.

    Raises:
        UserError: the folder has none, it is of another format, or a part of it is missing or of a wrong type.
    """
    path = folder / CONFIG
    if not folder.exists():  # an export that was killed while it replaced another one left that one beside it
        remove_abandoned(folder.parent, again=True)
    if not path.is_file():
        raise UserError(f"{str(folder)!r} is no exported model: it has no {CONFIG}; {AGAIN}")
    config = _parsed(path)
    if not isinstance(config, dict) or "format" not in config:
        raise UserError(f"{str(path)!r} is damaged; {AGAIN}")
    if config["format"] != FORMAT:
        raise UserError(f"{str(path)!r} has format {config['format']!r}, this version reads format {FORMAT}; {AGAIN}")
    check_content(config, Exported, repr(str(path)), AGAIN)
    return config


def check_content(content: dict[str, Any], hint: type, where: str, way_out: str) -> None:
    """Check the content of a config.json or a record; `hint` is Exported or Trained.

    Raises:
        UserError: a part is missing or of a wrong type; `where` names the file, and `way_out` ends the message.
    """
    try:
        TypeAdapter(hint).validate_python(content)
    except ValidationError as error:
        raise UserError(f"{where} {wrong_part(error.errors()[0])}; {way_out}") from error
    cold = cold_values_of(content) if hint is Trained else content.get("cold_values") or {}
    _check_cold_values(cold, content["feature_map"]["features"], where, way_out)
    for name, spec in content["feature_map"]["features"].items():
        missing = [key for key in NEEDED.get(spec["type"], ()) if spec.get(key) is None]
        if missing:
            key = f"feature_map.features.{name}.{missing[0]}"
            raise UserError(f"{where} lacks {key!r}, which a column of type {spec['type']} has; {way_out}")


def cold_values_of(record: Mapping[str, Any]) -> dict[str, list[str]]:
    """Column -> its values that got embeddings after training, in the order of their ids, from a run's record."""
    columns = (record.get("cold_values") or {}).get("columns", {}).values()
    return {name: column["values"] for column in columns for name in column["columns"]}


def evaluation_of(settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """How a run measured its test rows, from the settings in its record; None where they are no such settings."""
    evaluation = {key: settings[key] for key in Evaluation.__annotations__ if key in settings}
    try:
        TypeAdapter(Evaluation).validate_python(evaluation)
    except ValidationError:
        return None
    return evaluation


def _check_cold_values(cold: Mapping[str, list[str]], features: Mapping[str, Any], where: str, way_out: str) -> None:
    for name, values in cold.items():
        spec = features.get(name, {})
        if "first_cold_id" not in spec or spec["first_cold_id"] + len(values) != spec.get("vocab_size"):
            raise UserError(f"{where} has {len(values)} cold_values of {name!r}, which are not its last ids; {way_out}")


def wrong_part(problem: Mapping[str, Any]) -> str:
    """A message for a problem that pydantic found."""
    key, value = ".".join(map(str, problem["loc"])), repr(problem["input"])
    if problem["type"] == "missing":
        return f"lacks {key!r}"
    shown = value if len(value) <= LONGEST else f"{value[:LONGEST]}..."
    return f"has {key!r}: {shown}; {problem['msg'][:1].lower()}{problem['msg'][1:]}"


def parse_json(text: str) -> Any:
    """What the text says; Python's own parser also takes keys that are there twice, and NaN.

    Raises:
        ValueError: it is no JSON.
        RecursionError: it is nested too deep.
    """
    return json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)


def _parsed(path: Path) -> Any:
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{str(path)!r} is damaged ({reason_of(error)}); {AGAIN}") from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has {next(name for name in names if names.count(name) > 1)!r} twice")
    return values


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"it has {constant}, which is no number")
