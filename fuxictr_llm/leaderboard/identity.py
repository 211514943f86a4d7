"""What a run computes, and what of it others share: digests of its settings."""

from collections.abc import Mapping
from typing import Any

from fuxictr_llm import registry
from fuxictr_llm.config import NO_IDENTITY
from fuxictr_llm.files import digest_of
from fuxictr_llm.network_store import PLACES
from fuxictr_llm.semantics.value_config import asks_for_vectors

PLAIN = "plain"


def key_of(params: Mapping[str, Any]) -> str:
    """Digest of what a run with these settings computes; of files it says only that there are some.

    Their content is compared apart (`Results`), and a run without test data is another run.
    """
    kept = {key: value for key, value in params.items() if key not in NO_IDENTITY}
    return digest_of({key: bool(value) if key in PLACES else value for key, value in kept.items()})


def control_of(params: Mapping[str, Any]) -> str | None:
    """The placebo of its method that a run with these settings is; None: it is none.

    Raises:
        UserError: the method is unknown.
    """
    declared = declared_controls(params)
    return next((name for name, settings in declared.items() if settings and has_settings(params, settings)), None)


def declared_controls(params: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """The placebos of its method, `Enhancement.controls`: name -> config keys.

    Raises:
        UserError: the method is unknown.
    """
    return registry.find_method(params["method"]).model_cls.controls if params.get("method") else {}


def has_settings(params: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Whether all of the settings are so in a run's."""
    return all(params.get(key) == value for key, value in settings.items())


def language_model_work(params: Mapping[str, Any]) -> str | None:
    """A digest of data set, method, and those settings that a language model's work follows; controls share it."""
    if not params["method"]:
        return digest_of([params["dataset_id"], PLAIN]) if asks_for_vectors(params) else None
    method = registry.find_method(params["method"])
    placebos = {key for settings in method.model_cls.controls.values() for key in settings} | {"control_seed"}
    of_semantics = [cls for cls in method.config_cls.__mro__ if cls.__module__.startswith("fuxictr_llm.semantics")]
    keys = {key for cls in of_semantics for key in vars(cls).get("__annotations__", ())} - placebos
    if not of_semantics:
        return None
    return digest_of([params["dataset_id"], params["method"], {key: params.get(key) for key in sorted(keys)}])
