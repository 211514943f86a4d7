"""The csv files that a data-set config names: made by `prepare:`, or published elsewhere and checked.

`prepare:` makes them where they are not there yet. `download:` is the page that publishes them, `md5:` maps their names
to their digests (null: none is known).
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from fuxictr_llm.common.errors import UserError, reason_of, unknown
from fuxictr_llm.common.files import (
    digest_of_file,
    digests_of_files,
    explain_write_errors,
    read_json,
    remove_abandoned,
    replacing,
    write_json,
)
from fuxictr_llm.data import SPLITS
from fuxictr_llm.data.downloads import downloaded
from fuxictr_llm.data.raw import about_rows
from fuxictr_llm.data.sets import find_originals
from fuxictr_llm.data.sets.preparers import PREPARERS
from fuxictr_llm.data.watched import watched
from fuxictr_llm.host.columns import feature_columns

AFFECTS_RESULTS = False  # see common/code_digest.py

VERSION = 1


def prepare_raw_data(params: Mapping[str, Any]) -> dict[str, Any]:
    """Make `train_data`, `valid_data` and `test_data` if the data set has a `prepare:` key; else check what is there.

    A file that was changed by hand afterwards is used as it is, with a warning; half a folder is made anew.

    Returns:
        For the run record: what is to be known about the raw files.

    Raises:
        UserError: unknown name, no network or files to make them from (it says which, and where to get them), the
            folder cannot be written, or a file of the user's is in the way.
    """
    name = params.get("prepare")
    if not name:
        return check_published(params)
    if name not in PREPARERS:
        raise unknown("data set", name, PREPARERS, where="config key 'prepare'")
    paths = _targets(params)
    remove_abandoned(paths["train"].parent)
    made_from = _made_from(name, params)
    manifest_file = paths["train"].parent / "prepared.json"
    manifest = read_json(manifest_file)
    manifest, damaged = (manifest, False) if isinstance(manifest, dict) else ({}, manifest_file.is_file())
    if manifest and _is_made(manifest, made_from, paths, params):
        for path in _changed(paths, manifest):
            logging.warning("%s was changed since it was prepared; it is used as it is", path)
        return _not_published(name, manifest["made_from"])
    in_the_way = _changed(paths, manifest)
    if in_the_way and not damaged and not (manifest and manifest.get("made_from") is None):
        raise UserError(
            f"'prepare: {name}' would overwrite {str(in_the_way[0])!r}, which it did not write; "
            "move it away, or set prepare: null to use it as it is"
        )
    _write(params, paths, manifest_file, made_from, manifest.get("sha256", {}), damaged)
    return _not_published(name, made_from)


def _not_published(name: str, made_from: Mapping[str, Any]) -> dict[str, Any]:
    """For the run record: `not_published`, the originals that are others than the published ones."""
    published, digests = PREPARERS[name].published, made_from["raw_data"] or {}
    others = [file for file, digest in digests.items() if file in published and digest != published[file].sha256]
    if others:
        logging.warning("not the published file (another sha256), used as it is: %s", ", ".join(others))
    return {"not_published": others} if others else {}


def _made_from(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """What the files depend on, for a digest; there `prepare_split` is called `split`, as it always was."""
    preparer, raw_data = PREPARERS[name], params.get("raw_data")
    settings = {key.removeprefix("prepare_"): params.get(key, value) for key, value in preparer.keys.items()}
    files = find_originals(raw_data, preparer.originals) if raw_data else {}
    digests = dict(zip(files, digests_of_files(files.values()), strict=True))
    return {"name": name, **settings, "raw_data": raw_data and digests, "version": VERSION}


def _is_made(
    manifest: Mapping[str, Any], made_from: Mapping[str, Any], paths: Mapping[str, Path], params: Mapping[str, Any]
) -> bool:
    """Whether all files are there, and of this manifest; without `raw_data`, of the originals that were there then."""
    if not all(part in manifest.get("rows", {}) and path.is_file() for part, path in paths.items()):
        return False
    old = manifest.get("made_from")
    if old and not params.get("raw_data"):
        return {**old, "raw_data": None} == {**made_from, "raw_data": None}
    return old == made_from


def _write(
    params: Mapping[str, Any],
    paths: Mapping[str, Path],
    manifest_file: Path,
    made_from: Mapping[str, Any],
    before: Mapping[str, str],
    damaged: bool,
) -> None:
    """Write the files and their manifest.

    Args:
        before: digests of what was written before, also of splits that are not asked for now.
        damaged: whether the manifest is, so that nobody knows what was written: a file that is there stays.

    Raises:
        UserError: a file that has to stay is another than the one that is made.
    """
    name = params["prepare"]
    preparer = PREPARERS[name]
    files = {} if preparer.downloads else _originals(params)
    logging.info("Preparing %s in %s", name, manifest_file.parent)
    tables = preparer.tables(params, files)
    rows = {}
    with explain_write_errors(manifest_file.parent, "name other files as train_data, valid_data and test_data"):
        if not damaged:
            write_json(manifest_file, {"made_from": None})  # until all files are there, the folder counts as half done
        for part, path in paths.items():
            with replacing(path) as temporary:
                rows[part] = _write_csv(tables[part], temporary)
                if damaged and path.is_file() and digest_of_file(path) != digest_of_file(temporary):
                    raise UserError(
                        f"{str(manifest_file)!r} is damaged, and {str(path)!r} is not what 'prepare: {name}' makes; "
                        "move it away to have it made, or set prepare: null to use it as it is"
                    )
        sha256 = {**before, **dict(zip(paths, digests_of_files(paths.values()), strict=True))}
        write_json(manifest_file, {"made_from": made_from, "rows": rows, "sha256": sha256})


def _write_csv(tables: Iterable[pl.DataFrame], path: Path) -> int:
    rows = 0
    with path.open("wb") as file:
        for table in tables:
            # An empty text is written as nothing, which FuxiCTR reads as missing; polars would write it as "".
            table.with_columns(pl.col(pl.String).replace("", None)).write_csv(file, include_header=not rows)
            rows += len(table)
    return rows


def _originals(params: Mapping[str, Any]) -> dict[str, Path]:
    """The files that the data set is made from, in their order: those in `raw_data`, or downloaded.

    Raises:
        UserError: some are not there, or the split is another one than in the order of time.
    """
    preparer, raw_data = PREPARERS[params["prepare"]], params.get("raw_data")
    if "prepare_split" not in preparer.keys and params.get("prepare_split", "time") != "time":
        raise UserError(f"'prepare: {params['prepare']}' splits in the order of time; leave out prepare_split")
    if preparer.published and not raw_data:
        return {name: downloaded(file) for name, file in preparer.published.items()}
    files = find_originals(raw_data, preparer.originals) if raw_data else {}
    missing = [name for name in preparer.originals if name not in files]
    if missing and preparer.published:
        urls = " and ".join(preparer.published[name].url for name in missing)
        raise UserError(f"raw_data folder {str(raw_data)!r} lacks {', '.join(missing)}; download from {urls}")
    if missing:
        place = f"raw_data folder {str(raw_data)!r} lacks" if raw_data else "its original files are needed:"
        raise how_to_get(params, missing, f"{place} {', '.join(missing)} (or packed, .gz)")
    return {name: files[name] for name in preparer.originals}


def _targets(params: Mapping[str, Any]) -> dict[str, Path]:
    """The files of the splits that are asked for: a search trains without test data."""
    targets = {part: params.get(f"{part}_data") for part in SPLITS if part != "test" or params.get("test_data")}
    for part, target in targets.items():
        if not target or not str(target).endswith(".csv"):
            raise UserError(f"{part}_data must name a .csv file for 'prepare' to write (got {target!r})")
    return {part: Path(str(target)) for part, target in targets.items()}


def _changed(paths: Mapping[str, Path], manifest: Mapping[str, Any]) -> list[Path]:
    """The files that are there and are not what the manifest says was written."""
    digests = manifest.get("sha256", {})
    return [path for part, path in paths.items() if path.is_file() and digest_of_file(path) != digests.get(part)]


def published_files(params: Mapping[str, Any]) -> dict[str, Path]:
    """Where the data set reads each file that is published: csv files and pretrained vectors."""
    if params["data_format"] != "csv":
        return {}
    paths = [params.get(f"{split}_data") for split in SPLITS]
    paths += [col.get("pretrained_emb") for col in feature_columns(params)]
    by_name = {Path(path).name: Path(path) for path in paths if path}
    return {name: by_name[name] for name in params.get("md5") or {} if name in by_name}


def check_published(params: Mapping[str, Any]) -> dict[str, Any]:
    """For the run record: `not_published`, the names of the files that are others than the published ones.

    Raises:
        UserError: files are missing; it says where they are to be had.
    """
    files = check_published_there(params)
    others = [name for name, path in files.items() if not _is_published(name, path, params)]
    if params.get("md5"):
        splits = {Path(path).name for split in SPLITS if (path := params.get(f"{split}_data"))}
        others += sorted(splits - files.keys())
    if others:
        logging.warning("not the published file (another name or md5), used as it is: %s", ", ".join(others))
    return {"not_published": others} if others else {}


def check_published_there(params: Mapping[str, Any]) -> dict[str, Path]:
    """The published files.

    Raises:
        UserError: some are missing; it says where they are to be had.
    """
    files = published_files(params)
    missing = [name for name, path in files.items() if not path.is_file()]
    if missing:
        place = str(files[missing[0]].parent.absolute())
        raise how_to_get(params, missing, f"{place!r} lacks {', '.join(missing)}")
    return files


def take_published(params: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Check the files in a folder, and link them to where the data set reads them.

    `prepared.json` beside the links says what was checked.

    Returns:
        file, rows (None: it is no table) and md5 of each.

    Raises:
        UserError: a file is missing, is not the published one, or another one is in its way.
    """
    files = published_files(params)
    sources = {name: folder / name for name in files}
    missing = [name for name, path in sources.items() if not path.is_file()]
    if missing:
        raise how_to_get(params, missing, f"--raw {str(folder)!r} lacks {', '.join(missing)}")
    for name, source in sources.items():
        if not _is_published(name, source, params):
            raise UserError(
                f"{str(source)!r} has md5 {digest_of_file(source, 'md5')}, the published file {params['md5'][name]}; "
                f"download it again from {params.get('download')}, or put the files into {str(files[name].parent)!r} "
                "yourself to use them as they are"
            )
    checked = [
        {"file": name, "rows": _rows(path), "md5": digest_of_file(path, "md5")} for name, path in sources.items()
    ]
    for name, target in files.items():
        with explain_write_errors(target.parent, "name other places with --set train_data=FILE and the like"):
            _link(sources[name], target)
            write_json(target.parent / "prepared.json", {"download": params.get("download"), "files": checked})
    return checked


def how_to_get(params: Mapping[str, Any], names: Sequence[str], problem: str) -> UserError:
    """The error for files that are not there: what to download, from where, and what to do then."""
    dataset_id, md5, files = params["dataset_id"], params.get("md5") or {}, published_files(params)
    width = max(map(len, names)) if md5 else 0
    lines = [
        f"data set {dataset_id!r}: {problem}",
        f"  download from  {params.get('download') or '(no page is known)'}",
    ]
    lines += [f"    {name:{width}}" + (f"  md5 {md5[name]}" if md5.get(name) else "") for name in names]
    lines += [f"  then           python -m fuxictr_llm prepare {dataset_id} --raw DIR  (the folder they are in)"]
    if names[0] in files:
        lines += [f"  or             put them into {str(files[names[0]].parent.absolute())!r}"]
    return UserError("\n".join(lines))


def _is_published(name: str, path: Path, params: Mapping[str, Any]) -> bool:
    return params["md5"][name] in (None, digest_of_file(path, "md5"))


def _rows(path: Path) -> int | None:
    if path.suffix != ".csv":
        return None
    try:
        with watched(pl.scan_csv(path), f"counting rows of {path.name}", about_rows(path)) as rows:
            return rows.select(pl.len()).collect(engine="streaming").item()
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{str(path)!r} cannot be read as csv: {reason_of(error)}") from error


def _link(source: Path, target: Path) -> None:
    """A link at `target`; what lies there already is kept if it is the same file, and replaced if it is a link."""
    if target.exists() and target.resolve() == source.resolve():
        return
    if target.exists() and not target.is_symlink():
        if digest_of_file(target, "md5") == digest_of_file(source, "md5"):
            return
        raise UserError(f"{str(target)!r} is another file than {str(source)!r}; move it away")
    with replacing(target) as temporary:
        temporary.symlink_to(source.resolve())
