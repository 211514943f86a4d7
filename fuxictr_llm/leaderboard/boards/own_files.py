"""The files of the user's own that a run was made with: its backbone's, its method's, and the words of its fields."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuxictr_llm import registry
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import digest_of_file


@dataclass(frozen=True)
class OwnFiles:
    """Files that a row brings.

    Attributes:
        model: the model as it is found here.
        files: by their place in the row's config folder.
        named: what the config keys that name them are there.
    """

    model: str
    files: dict[str, Path] = field(default_factory=dict)
    named: dict[str, str] = field(default_factory=dict)


def own_files_of(record: Mapping[str, Any]) -> OwnFiles:
    """The files of a run, by its record.

    Raises:
        UserError: one is not here, or is another one than that of the run.
    """
    config, origin = record["config"], record.get("backbone") or {}
    found = OwnFiles(config["model"])
    if _is_of_file(config["model"]):
        found = OwnFiles(_model_here(config["model"], origin))
        _add(found, "model", registry.find_backbone(found.model))
    if _is_of_file(config.get("method") or ""):
        _add(found, "method", registry.find_method(config["method"]).model_cls)
    words = Path(config.get("field_config") or "")
    if words.suffix in (".yaml", ".yml") and words.is_file():
        found.files[words.name] = words
        found.named["field_config"] = words.name
    return found


def _is_of_file(name: str) -> bool:
    return name.rpartition(":")[0].endswith(".py")


def _model_here(name: str, origin: Mapping[str, Any]) -> str:
    """The model's file where the run found it, whatever the folder of this command."""
    file, _, class_name = name.rpartition(":")
    if not Path(file).is_file() and origin.get("file"):
        file = origin["file"]
    if Path(file).is_file() and origin.get("sha256") not in (None, digest_of_file(file)):
        raise UserError(
            f"{file!r} has changed since the run; a row brings the file that ran: put it back, or run again"
        )
    return f"{file}:{class_name}"


def _add(found: OwnFiles, key: str, cls: type) -> None:
    """Add the file of a class, and those beside it that it imports."""
    own = Path(sys.modules[cls.__module__].__file__ or "")
    others = dict(_beside(cls))
    for place, file in ({own.name: own} | others).items():
        if found.files.setdefault(place, file).resolve() != file.resolve():
            raise UserError(
                f"{str(found.files[place])!r} and {str(file)!r} have the same name; rename one, and run again"
            )
    found.named[key] = f"{own.name}:{cls.__qualname__}"


def _beside(cls: type) -> Iterator[tuple[str, Path]]:
    """The imported files of the package that the folder of a class's file is: place in it -> file."""
    package = cls.__module__.rpartition(".")[0]
    folder = Path(sys.modules[cls.__module__].__file__ or "").parent
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and name.startswith(f"{package}.") and Path(file).is_relative_to(folder):
            yield Path(file).relative_to(folder).as_posix(), Path(file)
