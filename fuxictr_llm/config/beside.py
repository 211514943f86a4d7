"""The files that a config names: those beside it go before those of the folder in which the command runs."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DATA = ("train_data", "valid_data", "test_data", "raw_data", "user_info", "item_info")  # files and folders
CLASSES = ("model", "method", "feature_processor")  # file.py:Class
WORDS = "field_config"  # a YAML file, or the name of a packaged entry


def found_beside(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The settings of a config, with the path from here of each file and folder that lies beside it.

    Args:
        folder: of the config.
    """
    return {key: _found(key, value, folder) if isinstance(value, str) else value for key, value in settings.items()}


def _found(key: str, value: str, folder: Path) -> str:
    file, colon, name = value.rpartition(":") if key in CLASSES else (value, "", "")
    is_path = key in DATA or (key in CLASSES and file.endswith(".py"))
    is_path |= key == WORDS and file.endswith((".yaml", ".yml"))
    if not is_path or not file or not (folder / file).exists():
        return value
    return os.path.normpath(folder / file) + colon + name
