"""Raw files that are published elsewhere: where to get them, and whether the local ones are the same.

`download:` in a data-set config is the page, `md5:` maps the files' names to their digests (null: none is known).
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from fuxictr_llm.common.errors import UserError, reason_of
from fuxictr_llm.common.files import digest_of_file, explain_write_errors, replacing, write_json
from fuxictr_llm.data import SPLITS
from fuxictr_llm.host.columns import feature_columns

AFFECTS_RESULTS = False  # see common/code_digest.py


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
        return pl.scan_csv(path).select(pl.len()).collect().item()
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
