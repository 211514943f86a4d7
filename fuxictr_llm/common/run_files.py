"""The files of a run, and the run that a command names; torch is not needed for it."""

import re
from pathlib import Path

from fuxictr_llm.common.errors import UserError, unknown
from fuxictr_llm.common.typed import command_for

AFFECTS_RESULTS = False  # see common/code_digest.py
RECORD = ".run.json"  # the end of the name of a run's record
CHANGED_SETTINGS = re.compile(r"_[0-9a-f]{8}$")  # the end of a model_id whose run had --set or --seed


def find_run(run: Path | str) -> Path:
    """The .run.json of a run, named as for `export_run`.

    Raises:
        UserError: there is none, or several.
    """
    path = Path(run)
    name = path.name.removesuffix(RECORD).removesuffix(".model")
    record = path.with_name(name + RECORD)
    if name and record.is_file():
        return record
    if path.is_dir():
        records = sorted(path.glob("*" + RECORD))
        if len(records) == 1:
            return records[0]
        names = ", ".join(str(record).removesuffix(RECORD) for record in records)
        form = "<model_root>/<dataset_id>/<model_id>, as its summary prints it"
        raise UserError(f"{str(path)!r} holds {len(records)} runs; name one: {names or form}")
    there = [str(record).removesuffix(RECORD) for record in path.parent.glob("*" + RECORD)]
    raise UserError(f"{unknown('run', str(run), there)}; {_training_of(name)} trains it")


def _training_of(model_id: str) -> str:
    """The command that trains a run of this name."""
    expid = CHANGED_SETTINGS.sub("", model_id)
    return f"'{command_for(expid, seed=False)}{' --set ...' if expid != model_id else ''}'"
