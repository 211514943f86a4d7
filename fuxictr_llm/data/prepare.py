"""`prepare:` of a data-set config: makes the csv files that the config names, where they are not there yet."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fuxictr_llm.data import movielens
from fuxictr_llm.errors import UserError, unknown
from fuxictr_llm.files import digest_of_file, explain_write_errors, read_json, replacing, write_json

# name -> function(split, raw_data) -> {"train" | "valid" | "test": DataFrame}
PREPARERS = {"movielens100k": movielens.prepare}
VERSION = 1


def prepare_raw_data(params: Mapping[str, Any]) -> None:
    """Make `train_data`, `valid_data` and `test_data` if the data set has a `prepare:` key.

    A file that was changed by hand afterwards is kept, with a warning; half a folder is made anew.

    Raises:
        UserError: unknown name, no network, or the folder cannot be written.
    """
    name = params.get("prepare")
    if not name:
        return
    if name not in PREPARERS:
        raise unknown("data set", name, PREPARERS, where="config key 'prepare'")
    targets = {part: params.get(f"{part}_data") for part in ("train", "valid", "test")}
    for part, target in targets.items():
        if not target or not str(target).endswith(".csv"):
            raise UserError(f"{part}_data must name a .csv file for 'prepare: {name}' to write (got {target!r})")
    paths = {part: Path(target) for part, target in targets.items()}
    split, raw_data = params.get("prepare_split", "random"), params.get("raw_data")
    originals = sorted(path for path in Path(raw_data).glob("*") if path.is_file()) if raw_data else []
    digests = {path.name: digest_of_file(path) for path in originals}
    made_from = {"name": name, "split": split, "raw_data": raw_data and digests, "version": VERSION}
    manifest_file = paths["train"].parent / "prepared.json"
    manifest = read_json(manifest_file)
    if manifest and manifest.get("made_from") == made_from and all(path.is_file() for path in paths.values()):
        for part, path in paths.items():
            if digest_of_file(path) != manifest["sha256"][part]:
                logging.warning("%s was changed since it was prepared; it is used as it is", path)
        return
    logging.info("Preparing %s in %s", name, manifest_file.parent)
    tables = PREPARERS[name](split, raw_data)
    with explain_write_errors(manifest_file.parent, "name other files as train_data, valid_data and test_data"):
        manifest_file.unlink(missing_ok=True)  # until all files are there, the folder counts as half done
        for part, path in paths.items():
            with replacing(path) as temporary:
                tables[part].to_csv(temporary, index=False)
        digests = {part: digest_of_file(path) for part, path in paths.items()}
        rows = {part: len(table) for part, table in tables.items()}
        write_json(manifest_file, {"made_from": made_from, "rows": rows, "sha256": digests})
