"""The form that a run record and a note on a failure must have, to count in a leaderboard's folder; digests of data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NotRequired, Required

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import digest_of, digest_of_file
from fuxictr_llm.common.runs import versions
from fuxictr_llm.config.keys import Count
from fuxictr_llm.config.resolve import NOT_IN_IDENTITY
from fuxictr_llm.data import SPLITS
from fuxictr_llm.data.loader import describe_data
from fuxictr_llm.data.raw import raw_files

PACKAGE = "fuxictr-llm"

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Stage(TypedDict, total=False):
    seconds: Required[Seconds]
    made_in: Seconds | None
    rows: Count


class Metrics(TypedDict):
    valid: Annotated[dict[str, float], Field(min_length=1)]
    test: dict[str, float]


class Slice(TypedDict):
    train_rows: Annotated[list[Count], Field(min_length=2, max_length=2)] | None
    rows: Count
    AUC: Annotated[float, Field(ge=0, le=1)] | None


class Slices(TypedDict):
    by: str
    slices: dict[str, Slice]


class Parameters(TypedDict):
    backbone: Count
    method: Count


class Data(TypedDict, total=False):
    sha256: Required[dict[str, list[str]]]
    rows: dict[str, Count | None] | None


class Record(TypedDict):
    """What is read of a run record."""

    metrics: Metrics
    slices: NotRequired[Slices | None]
    config: dict[str, Any]
    config_sha256: str
    data: Data
    stages: dict[str, Stage]
    parameters: Parameters
    versions: dict[str, str]
    seed: Count
    labels: list[str]


class Failed(TypedDict):
    """What is read of a note on a failure."""

    key: str
    reason: str
    data: dict[str, Any] | None
    sources: dict[str, Any]
    version: str | None


RECORD_FORM, FAILURE_FORM = TypeAdapter(Record), TypeAdapter(Failed)


def record_problem(record: Any) -> str:
    """Why a run record does not count; empty where it does."""
    if not _has_form(RECORD_FORM, record):
        return "is damaged"
    settings = {key: value for key, value in record["config"].items() if key not in NOT_IN_IDENTITY}
    if digest_of(settings) != record["config_sha256"] or "train" not in record["stages"]:
        return "is damaged"
    return _other_version(record["versions"].get(PACKAGE))


def failure_problem(failure: Any) -> str:
    """Why a note on a failure does not count; empty where it does."""
    return _other_version(failure["version"]) if _has_form(FAILURE_FORM, failure) else "is damaged"


def _has_form(form: TypeAdapter, content: Any) -> bool:
    try:
        form.validate_python(content, strict=True)
    except ValidationError:
        return False
    return True


def _other_version(version: str | None) -> str:
    ours = versions().get(PACKAGE)
    return "" if version == ours else f"is of {PACKAGE} {version}, and this is {ours}"


def data_digests(params: Mapping[str, Any]) -> dict[str, Any] | None:
    """Digests of the data set's files as they are now, in the form of a run record (`describe_data`).

    None: some are missing.
    """
    data_dir = Path(params["data_root"]) / params["dataset_id"]
    is_raw = params["data_format"] == "csv" or (params["data_format"] == "parquet" and params.get("rebuild_dataset"))
    raw = {split: params[f"{split}_data"] for split in SPLITS if params.get(f"{split}_data")}
    try:
        if not is_raw:
            return describe_data(params, data_dir)["sha256"]
        if (data_dir / "feature_map.json").exists() and not (data_dir / "build.json").exists():  # FuxiCTR built it
            built = {f"{split}_data": str(data_dir / f"{split}.parquet") for split in raw}
            return describe_data({"dataset_id": params["dataset_id"], **built}, data_dir)["sha256"]
        files = {split: raw_files(path, params["data_format"]) for split, path in raw.items()}
        return {split: [digest_of_file(path) for path in paths] for split, paths in files.items()}
    except (OSError, UserError):
        return None
