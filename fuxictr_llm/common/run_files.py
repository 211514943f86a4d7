"""The files of a run, and the run that a command names; torch is not needed for it."""

import re
from pathlib import Path

from fuxictr_llm.common.errors import UserError, unknown
from fuxictr_llm.common.typed import command_for

AFFECTS_RESULTS = False  # see common/code_digest.py
RECORD = ".run.json"  # the end of the name of a run's record
TENSORBOARD = "tensorboard"  # in the folder of a run: TensorBoard's events
CHANGED_SETTINGS = re.compile(r"_[0-9a-f]{8}$")  # the end of a model_id whose run had --set or --seed


def run_files(folder: Path, model_id: str) -> Path:
    """The path of a run's files without their endings: a run has a folder of its own.

    Args:
        folder: of the runs on a data set, `<model_root>/<dataset_id>`.
    """
    return folder / model_id / model_id


def files_of(record: Path) -> Path:
    """The path of a run's files without their endings, by its record."""
    return record.with_name(record.name.removesuffix(RECORD))


def records_in(folder: Path) -> list[Path]:
    """The records of the runs on a data set, also of those that earlier versions left without folders of their own."""
    return sorted([*folder.glob(f"*{RECORD}"), *folder.glob(f"*/*{RECORD}")])


def name_of_run(record: Path) -> str:
    """What names the run of a record, in commands and to people: its folder, where it has one of its own."""
    files = files_of(record)
    return str(files.parent if files.parent.name == files.name else files)


def record_of_run(run: Path | str) -> Path | None:
    """The record of a run that is named by its folder, its record, its weights, or its files without their endings."""
    path = Path(run)
    name = _model_id_of(path)
    there = (Path(f"{files}{RECORD}") for files in (path / name, path.parent / name))
    return next((record for record in there if record.is_file()), None)


def find_run(run: Path | str) -> Path:
    """The .run.json of a run, named as for `export_run`.

    Raises:
        UserError: there is none, or several.
    """
    try:
        return record_of_run(run) or _only_run_in(Path(run))
    except OSError as error:  # a name that is too long, a folder of another user's
        raise UserError(f"cannot look for the run {str(run)!r}: {error.strerror}") from error


def _only_run_in(path: Path) -> Path:
    """The record of the only run in a folder."""
    if path.is_dir():
        records = records_in(path)
        if len(records) == 1:
            return records[0]
        names = ", ".join(map(name_of_run, records))
        form = "<model_root>/<dataset_id>/<model_id>, as its summary prints it"
        raise UserError(f"{str(path)!r} holds {len(records)} runs; name one: {names or form}")
    there = [name_of_run(record) for record in records_in(path.parent)]
    raise UserError(f"{unknown('run', str(path), there)}; {_training_of(_model_id_of(path))} trains it")


def _model_id_of(path: Path) -> str:
    """The model_id in a path that may name a run."""
    return path.name.removesuffix(RECORD).removesuffix(".model")


def _training_of(model_id: str) -> str:
    """The command that trains a run of this name."""
    expid = CHANGED_SETTINGS.sub("", model_id)
    return f"'{command_for(expid, seed=False)}{' --set ...' if expid != model_id else ''}'"
