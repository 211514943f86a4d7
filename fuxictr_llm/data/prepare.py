"""`prepare:` of a data-set config: makes the csv files that the config names, where they are not there yet."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fuxictr_llm.data import SPLITS, movielens
from fuxictr_llm.errors import UserError, unknown
from fuxictr_llm.files import digest_of_file, explain_write_errors, read_json, replacing, write_json

# name -> function(prepare_split, raw_data) -> {"train" | "valid" | "test": DataFrame}, and its original files
PREPARERS = {"movielens100k": (movielens.prepare, movielens.ORIGINALS)}
VERSION = 1


def prepare_raw_data(params: Mapping[str, Any]) -> None:
    """Make `train_data`, `valid_data` and `test_data` if the data set has a `prepare:` key.

    A file that was changed by hand afterwards is used as it is, with a warning; half a folder is made anew.

    Raises:
        UserError: unknown name, no network, the folder cannot be written, or a file of the user's is in the way.
    """
    name = params.get("prepare")
    if not name:
        return
    if name not in PREPARERS:
        raise unknown("data set", name, PREPARERS, where="config key 'prepare'")
    paths = _targets(params)
    prepare, originals = PREPARERS[name]
    split, raw_data = params.get("prepare_split", "random"), params.get("raw_data")
    digests = {
        file: digest_of_file(Path(raw_data, file)) for file in originals if raw_data and Path(raw_data, file).is_file()
    }
    made_from = {"name": name, "split": split, "raw_data": raw_data and digests, "version": VERSION}
    manifest_file = paths["train"].parent / "prepared.json"
    manifest = read_json(manifest_file)
    if manifest and manifest.get("made_from") == made_from and all(path.is_file() for path in paths.values()):
        for path in _changed(paths, manifest):
            logging.warning("%s was changed since it was prepared; it is used as it is", path)
        return
    in_the_way = _changed(paths, manifest or {})
    if in_the_way and not (manifest and manifest.get("made_from") is None):
        raise UserError(
            f"'prepare: {name}' would overwrite {str(in_the_way[0])!r}, which it did not write; "
            "move it away, or set prepare: null to use it as it is"
        )
    logging.info("Preparing %s in %s", name, manifest_file.parent)
    tables = prepare(split, raw_data)
    with explain_write_errors(manifest_file.parent, "name other files as train_data, valid_data and test_data"):
        write_json(manifest_file, {"made_from": None})  # until all files are there, the folder counts as half done
        for part, path in paths.items():
            with replacing(path) as temporary:
                tables[part].to_csv(temporary, index=False)
        sha256 = {part: digest_of_file(path) for part, path in paths.items()}
        rows = {part: len(table) for part, table in tables.items()}
        write_json(manifest_file, {"made_from": made_from, "rows": rows, "sha256": sha256})


def _targets(params: Mapping[str, Any]) -> dict[str, Path]:
    targets = {part: params.get(f"{part}_data") for part in SPLITS}
    for part, target in targets.items():
        if not target or not str(target).endswith(".csv"):
            raise UserError(f"{part}_data must name a .csv file for 'prepare' to write (got {target!r})")
    return {part: Path(target) for part, target in targets.items()}


def _changed(paths: Mapping[str, Path], manifest: Mapping[str, Any]) -> list[Path]:
    """The files that are there and are not what the manifest says was written."""
    digests = manifest.get("sha256", {})
    return [path for part, path in paths.items() if path.is_file() and digest_of_file(path) != digests.get(part)]
