"""What decides about a run besides its settings and its data: code, ours and anyone's, words, vectors in files."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fuxictr_llm import llm, registry
from fuxictr_llm.common.code_digest import digest_of_code, modules_of, sources_below
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import digest_of, digest_of_file, digest_of_folder
from fuxictr_llm.config.language_models import ValueVectorsConfig, asks_for_vectors
from fuxictr_llm.data.field_words import read_field_config
from fuxictr_llm.llm.model_files import digest_of_model
from fuxictr_llm.registry import method_modules
from fuxictr_llm.serving.export import RECORD

AFFECTS_RESULTS = False  # see common/code_digest.py

DigestOfFolder = Callable[[Path], str]
# Keys that may name a folder. Under others, a folder that is called like a value (`llm`) is so by chance.
FOLDERS: dict[str, DigestOfFolder] = {
    "language_model": digest_of_model,
    "text_vectors": digest_of_folder,
    "teacher": digest_of_folder,
}


def source_digests(params: Mapping[str, Any]) -> dict[str, Any]:
    """Digests of what a run with these settings goes by, as it is now on the disk.

    `code` is `code_digests`. `files` are those of config keys: files, trained runs, and the folders of FOLDERS, by the name
    that is given.
    """
    method = registry.find_method(params["method"]) if params.get("method") else None
    found: dict[str, Any] = {"code": code_digests(params)}
    if method or asks_for_vectors(params):
        with contextlib.suppress(UserError):  # what reads it says what is wrong
            found["words"] = digest_of(read_field_config(params.get("field_config")))
    files = {name: digest for name, of_folder in _named(params, method) if (digest := _digest(name, of_folder))}
    return {**found, "files": files} if files else found


def code_digests(params: Mapping[str, Any]) -> dict[str, str]:
    """Digests of what computes: `backbone`, with all that a plain run does, and `method`, where there is one."""
    # A plain run calls nothing of it, though the modules that could are imported.
    idle = () if any(column.get("pretrained_emb") for column in _columns(params)) else (llm.__name__,)
    backbone = sources_below(modules_of(registry.find_backbone(params["model"])))
    found = {"backbone": digest_of(backbone | sources_below([f"{__package__}.run"], without=idle))}
    if params.get("method"):
        found["method"] = digest_of_code(method_modules(params["method"]))
    return found


def _columns(params: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [column for key in ("feature_cols", "feature_specs") for column in params.get(key) or ()]


def _named(
    params: Mapping[str, Any], method: registry.RegisteredMethod | None
) -> Iterator[tuple[str, DigestOfFolder | None]]:
    """The texts among the values, which may name something on the disk, and how, if at all, a folder is digested."""
    fields = dict(ValueVectorsConfig.__dataclass_fields__) if asks_for_vectors(params) else {}
    fields |= method.config_cls.__dataclass_fields__ if method else {}
    for key, field in fields.items():
        value = params.get(key, field.default)
        of_folder = FOLDERS.get(key) if value != field.default else None  # a default is a word: `teacher: gain`
        yield from ((text, of_folder) for text in _texts(value))
    for text in _texts([column.get("pretrained_emb") for column in _columns(params)]):
        yield text, None
    for text in _texts([spec.get("pretrained_emb") for spec in params.get("feature_specs") or ()]):
        yield str(Path(params["data_root"], params["dataset_id"], text)), None  # where FuxiCTR looks


def _texts(value: Any) -> Iterator[str]:
    """Also those in a list or a mapping, as in `value_texts`."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(part)


def _digest(name: str, of_folder: DigestOfFolder | None) -> str | None:
    """Of what a value names; None: of nothing that is there."""
    # A text may be too long for a name, `~` be of nobody, a file unreadable: what reads it says what is wrong.
    with contextlib.suppress(OSError, RuntimeError):
        run = name.removesuffix(RECORD).removesuffix(".model")  # as `export_run` takes it
        if Path(f"{run}{RECORD}").is_file():
            parts = [path for path in (Path(f"{run}{RECORD}"), Path(f"{run}.model")) if path.is_file()]
            return digest_of({path.name: digest_of_file(path) for path in parts})
        if Path(name).is_file():
            return digest_of_file(name)
        folder = Path(name).expanduser()
        if of_folder and folder.is_dir():
            return of_folder(folder)
    return None
