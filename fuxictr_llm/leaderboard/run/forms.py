"""The forms of a leaderboard's JSON files: what must be in a run record and in a note on a failure for it to count."""

from typing import Annotated, Any, NotRequired, Required

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from fuxictr_llm.common.files import digest_of
from fuxictr_llm.common.runs import versions
from fuxictr_llm.common.sealed import is_as_sealed
from fuxictr_llm.config.keys import Count
from fuxictr_llm.config.resolve import NOT_IN_IDENTITY

PACKAGE = "fuxictr-llm"
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Stage(TypedDict, total=False):
    seconds: Required[Seconds]
    made_in: Seconds | None
    rows: Count
    tokens_read: Count | None
    tokens_written: Count | None


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


class Served(TypedDict):
    parameters: Count
    milliseconds: Seconds
    batch_rows: Count
    threads: Count


class Data(TypedDict, total=False):
    sha256: Required[dict[str, list[str]]]
    rows: dict[str, Count | None] | None


class Config(TypedDict):
    """The settings of a run, of which there are more."""

    dataset_id: str


class Evaluated(TypedDict):
    metrics: dict[str, float]


class Record(TypedDict):
    """What is read of a run record."""

    metrics: Metrics
    slices: NotRequired[Slices | None]
    served: NotRequired[Served | None]
    evaluations: NotRequired[list[Evaluated]]
    config: Config
    config_sha256: str
    data: Data
    stages: dict[str, Stage]
    parameters: Parameters
    versions: dict[str, str]
    seed: Count
    labels: list[str]


class Note(TypedDict):
    """What is read of a note on a run without a record."""

    key: str
    data: dict[str, Any] | None
    sources: dict[str, Any]
    version: str | None


class Failed(Note):
    reason: str


class PrunedEarly(Note):
    curve: Annotated[list[float], Field(min_length=1)]


RECORD_FORM, FAILURE_FORM, PRUNED_FORM = TypeAdapter(Record), TypeAdapter(Failed), TypeAdapter(PrunedEarly)


def record_problem(record: Any) -> str:
    """Why a run record does not count; empty where it does."""
    if not has_form(RECORD_FORM, record):
        return "is damaged"
    settings = {key: value for key, value in record["config"].items() if key not in NOT_IN_IDENTITY}
    if digest_of(settings) != record["config_sha256"] or "train" not in record["stages"]:
        return "is damaged"
    changed = "" if is_as_sealed(record) else "is damaged (its record_sha256 is not that of its content)"
    return _other_version(record["versions"].get(PACKAGE)) or changed


def failure_problem(failure: Any) -> str:
    """Why a note on a failure does not count; empty where it does."""
    return _other_version(failure["version"]) if has_form(FAILURE_FORM, failure) else "is damaged"


def pruned_problem(note: Any) -> str:
    """Why a note on a trial that was pruned does not count; empty where it does."""
    return _other_version(note["version"]) if has_form(PRUNED_FORM, note) else "is damaged"


def has_form(form: TypeAdapter, content: Any) -> bool:
    """Whether the value of a JSON file has a form, with exactly its types."""
    try:
        form.validate_python(content, strict=True)
    except ValidationError:
        return False
    return True


def _other_version(version: str | None) -> str:
    ours = versions().get(PACKAGE)
    return "" if version == ours else f"is of {PACKAGE} {version}, and this is {ours}"
