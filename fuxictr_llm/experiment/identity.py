"""Digests of what a run's result depends on besides its settings and its data: code, words of fields, files in keys."""

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
# Keys that may name a folder. That a folder is called like the value of another key (`llm`) is chance.
FOLDERS: dict[str, DigestOfFolder] = {
    "language_model": digest_of_model,
    "text_vectors": digest_of_folder,
    "teacher": digest_of_folder,
}


def source_digests(params: Mapping[str, Any]) -> dict[str, Any]:
    """Digests of what a run with these settings depends on, as it is on the disk now.

    `code` is `code_digests`; `words` is of the words of fields, where a language model sees them; `files` are of the
    files, trained runs and folders (of FOLDERS) that config keys name, by that name.
    """
    method = registry.find_method(params["method"]) if params.get("method") else None
    digests: dict[str, Any] = {"code": code_digests(params)}
    if method or asks_for_vectors(params):
        with contextlib.suppress(UserError):  # the run itself reads the words, and says what is wrong with them
            digests["words"] = digest_of(read_field_config(params.get("field_config")))
    files = {name: digest for name, of_folder in _named(params, method) if (digest := _digest(name, of_folder))}
    return {**digests, "files": files} if files else digests


def code_digests(params: Mapping[str, Any]) -> dict[str, str]:
    """Digests of code: `backbone`, with all that a plain run uses, and `method`, where there is one."""
    # A run without vectors of columns imports these modules, but calls nothing of them.
    idle = () if any(column.get("pretrained_emb") for column in _columns(params)) else (llm.__name__,)
    backbone = sources_below(modules_of(registry.find_backbone(params["model"])))
    digests = {"backbone": digest_of(backbone | sources_below([f"{__package__}.run"], without=idle))}
    if params.get("method"):
        digests["method"] = digest_of_code(method_modules(params["method"]))
    return digests


def _columns(params: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [column for key in ("feature_cols", "feature_specs") for column in params.get(key) or ()]


def _named(
    params: Mapping[str, Any], method: registry.RegisteredMethod | None
) -> Iterator[tuple[str, DigestOfFolder | None]]:
    """The texts among the values, which may name something on the disk; and how a folder of that name is digested.

    None: a folder of that name does not count.
    """
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
    """Digest of the file, trained run or folder that a value names; None where there is none."""
    # A text may be too long for a name, `~` may name no user, a file may be unreadable: the run itself says so.
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
