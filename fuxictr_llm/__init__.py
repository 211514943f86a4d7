"""Language models for click-through-rate prediction, as a plugin of FuxiCTR.

Importing this package is cheap: the names below are imported on first use.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Enhancement": "enhancement",
    "enhance": "enhancement",
    "register_backbone": "registry",
    "register_method": "registry",
    "load_experiment": "config.resolve",
    "run_experiment": "experiment.run",
    "export_run": "serving.export",
    "load_model": "serving.load",
    "UserError": "common.errors",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
