"""The preprocessing in an exported folder, with which raw rows become ids: settings and vocabularies.

`preprocessing.json` and `vocabularies.parquet` are made of what the build of the data set left beside it. Where that is
not there at the time of the export, or is of other data, the export answers ids alone, and its config.json says why.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Required

import polars as pl
from pydantic import Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from fuxictr_llm.common.checks import STRICT
from fuxictr_llm.common.errors import UserError, reason_of
from fuxictr_llm.common.files import digest_of_file, read_json, write_json
from fuxictr_llm.common.typed import prepare_command
from fuxictr_llm.config.keys import Column, Label
from fuxictr_llm.serving.config import AGAIN, read_config, wrong_part

if TYPE_CHECKING:
    from fuxictr_llm.serving.raw import RawRows

PREPROCESSING, VOCABULARIES = "preprocessing.json", "vocabularies.parquet"
SCHEMA = {"column": pl.String, "value": pl.String, "id": pl.Int64}


@with_config(STRICT)
class DeclaredColumns(TypedDict, total=False):
    """The settings of a data set that decide ids."""

    feature_cols: Required[list[Column]]
    label_col: Required[Label | list[Label]]
    sep: str | None
    min_categr_count: int | None
    feature_processor: str | None


@with_config(STRICT)
class FittedNormalizer(TypedDict, total=False):
    """A normalizer, and the numbers of train from which it is made."""

    name: Required[Literal["StandardScaler", "MinMaxScaler"]]
    mean: float
    std: float
    min_value: float
    max_value: float


@with_config(STRICT)
class FittedColumn(TypedDict, total=False):
    """How the values of a column become ids, or are scaled."""

    vocabulary: str  # the column under whose name it is in vocabularies.parquet
    values: Literal["text", "int", "float"]
    max_len: Annotated[int, Field(ge=0, le=2**17)]
    padding: Literal["pre", "post"]
    missing: str | int | float | None
    normalizer: FittedNormalizer


@with_config(STRICT)
class ExportedPreprocessing(TypedDict, total=False):
    """The keys of preprocessing.json that serving reads; it has more."""

    settings: Required[DeclaredColumns]
    code: Required[str | None]
    stored: Required[dict[str, str]]
    columns: Required[dict[str, FittedColumn]]
    words: dict[str, Any]


def write_preprocessing(record: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Write the files of a run's data set into the folder of its export.

    Returns:
        What config.json says: `files`, name -> sha256; or `missing`, why there are none.
    """
    from fuxictr_llm.data.field_words import read_field_config

    settings, features = record["config"], record["feature_map"]["features"]
    try:
        data_dir, fitted = _built(record)
    except UserError as error:
        return {"missing": str(error)}
    words: Mapping[str, Any] = {}
    with suppress(UserError):  # a file of one's own may be gone, and no prediction needs it
        words = read_field_config(settings.get("field_config"))
    used = {name: spec for name, spec in fitted["columns"].items() if name in features}
    content = {key: fitted[key] for key in ("settings", "code", "stored")} | {"columns": used, "words": words}
    write_json(folder / PREPROCESSING, content)
    owners = dict.fromkeys(spec["vocabulary"] for spec in used.values() if "vocabulary" in spec)
    vocabularies = read_json(data_dir / "feature_vocab.json")
    tables = [
        pl.DataFrame({"column": owner, "value": [*ids], "id": [*ids.values()]}, schema=SCHEMA)
        for owner, ids in ((owner, vocabularies[owner]) for owner in owners)
    ]
    pl.concat([pl.DataFrame(schema=SCHEMA), *tables]).write_parquet(folder / VOCABULARIES)
    return {"files": {name: digest_of_file(folder / name) for name in (PREPROCESSING, VOCABULARIES)}}


def missing_of(folder: Path) -> str | None:
    """Why an export has no preprocessing; None where it has it."""
    return (read_config(folder).get("preprocessing") or {}).get("missing")


def _built(record: Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The folder of the built data set of a run, and the content of its preprocessing.json.

    Raises:
        UserError: it is not there, is of an earlier version, or is not the one that the run was trained on.
    """
    from fuxictr_llm.data.build import MANIFEST, built_columns
    from fuxictr_llm.data.fitted import FILE, settings_that_decide

    settings, data = record["config"], record.get("data") or {}
    if not {"data_root", "dataset_id", "feature_cols", "label_col"} <= settings.keys():
        raise UserError("the run's data set names no raw columns (it was built elsewhere); give the run raw files")
    data_dir = Path(settings["data_root"]) / settings["dataset_id"]
    fitted, manifest = read_json(data_dir / FILE), read_json(data_dir / MANIFEST)
    build = f"build it anew with '{prepare_command(record)}', then export again"
    where = f"built data set {str(data_dir)!r}"
    if not isinstance(fitted, dict) or not manifest or not manifest.get("made_from"):
        raise UserError(f"{where} is not there, or is of an earlier version; in the folder of the run, {build}")
    raw = manifest["made_from"].get("raw") or {}
    if not data.get("sha256") or any(raw.get(split) != digests for split, digests in data["sha256"].items()):
        raise UserError(f"{where} is of other raw files than the run was trained on; {build}")
    if fitted["settings"] != json.loads(json.dumps(settings_that_decide(settings))):
        raise UserError(f"{where} is of other settings of the columns than the run's; {build}")
    if fitted["unservable"]:
        raise UserError(f"raw rows of {where} cannot be transformed: {fitted['unservable']}")
    built = built_columns(data_dir)
    for name, spec in record["feature_map"]["features"].items():
        size = spec.get("first_cold_id", spec.get("vocab_size"))
        if built.get(name, {}).get("vocab_size") != size:
            raise UserError(f"{where} has another vocabulary of {name!r} than the run's; {build}")
    return data_dir, fitted


def raw_rows(
    folder: Path,
    config: Mapping[str, Any],
    fields: Sequence[str],
    cold_ids: Mapping[str, Mapping[str, int]],
    feature_processor: type | None = None,
) -> "RawRows":
    """What turns raw rows into ids for the model of an export.

    Args:
        folder: of the export.
        config: the content of its config.json.
        fields: the columns that the model reads.
        cold_ids: column -> value that got an embedding after training -> id.
        feature_processor: the data set's class, where it is not FuxiCTR's.

    Raises:
        UserError: the export has no preprocessing, a file of it is missing or damaged, a part is of a wrong type, or
            the class is missing or another one than in training.
    """
    from fuxictr_llm.data.fitted import Fitted
    from fuxictr_llm.serving.raw import RawRows

    noted = config.get("preprocessing")
    if noted is None:
        raise UserError(
            f"{str(folder)!r} was exported by an earlier version, without preprocessing: it answers ids alone; {AGAIN}"
        )
    if "files" not in noted:
        raise UserError(f"{str(folder)!r} was exported without preprocessing: {noted.get('missing')}")
    check_files(folder, config)
    path = folder / PREPROCESSING
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        TypeAdapter(ExportedPreprocessing).validate_python(content)
        host = _processor(content, feature_processor, folder)
        fitted = Fitted(content, pl.read_parquet(folder / VOCABULARIES), cold_ids)
        return RawRows(fitted, fields, host)
    except UserError:
        raise
    except ValidationError as error:
        raise UserError(f"{str(path)!r} {wrong_part(error.errors()[0])}; {AGAIN}") from error
    except Exception as error:  # a stranger's files can be wrong in any way
        raise UserError(f"the preprocessing in {str(folder)!r} is damaged ({reason_of(error)}); {AGAIN}") from error


def _processor(content: Mapping[str, Any], given: type | None, folder: Path) -> type[Any]:
    """The class of the processor; what an export names is not imported, except FuxiCTR's own."""
    from fuxictr_llm.data.processors import NAMED, check_functions, code_of_class, find_processor

    settings, name = content["settings"], content["settings"].get("feature_processor")
    if not name or name in NAMED:
        return find_processor(settings)
    wanted = f"{str(folder)!r} needs feature_processor {name!r} for raw rows (sha256 of its code: {content['code']})"
    if given is None:
        raise UserError(f"{wanted}; give the class: load_model(DIR, feature_processor=...), or --processor")
    if code_of_class(given) != content["code"]:
        raise UserError(f"{wanted}; the class that was given has other code: {code_of_class(given)}")
    check_functions(given, settings)
    return given


def check_files(folder: Path, config: Mapping[str, Any]) -> None:
    """Check that the files of an export's preprocessing, where it has them, are those that were exported.

    Raises:
        UserError: one is missing or another.
    """
    noted = (config.get("preprocessing") or {}).get("files") or {}
    for name in (PREPROCESSING, VOCABULARIES) if noted else ():
        if not (folder / name).is_file():
            raise UserError(f"{str(folder / name)!r} is missing; {AGAIN}")
        if digest_of_file(folder / name) != noted.get(name):
            raise UserError(f"{str(folder / name)!r} is not the file that was exported (its sha256 differs); {AGAIN}")
