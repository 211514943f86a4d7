"""What decides about a run besides its settings, its data and our version: others' code, words, vectors in files."""

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fuxictr_llm import registry
from fuxictr_llm.errors import UserError
from fuxictr_llm.files import digest_of, digest_of_file
from fuxictr_llm.origins import identity_of, origin_of
from fuxictr_llm.semantics.catalog import read_field_config
from fuxictr_llm.semantics.value_config import asks_for_vectors


def sources_of(params: Mapping[str, Any]) -> dict[str, Any]:
    """Digests of the files, as they are now, that a run with these settings goes by; those of our own code left out."""
    method = registry.find_method(params["method"]) if params.get("method") else None
    found = identity_of(origin_of(registry.find_backbone(params["model"])).record())
    if method and method.model_cls.__module__.partition(".")[0] != __name__.partition(".")[0]:
        with contextlib.suppress(OSError, TypeError):  # a class made at a prompt has no file
            found["method"] = digest_of_file(inspect.getfile(method.model_cls))
    if method or asks_for_vectors(params):
        with contextlib.suppress(UserError):  # what reads it says what is wrong
            found["words"] = digest_of(read_field_config(params.get("field_config")))
    names = [params.get(key) for key in method.config_cls.__dataclass_fields__] if method else []
    files = {name: digest_of_file(name) for name in [*names, *_given_vectors(params)] if _is_file(name)}
    return {**found, "files": files} if files else found


def _given_vectors(params: Mapping[str, Any]) -> Iterator[Any]:
    for column in (*(params.get("feature_cols") or ()), *(params.get("feature_specs") or ())):
        yield column.get("pretrained_emb")


def _is_file(name: Any) -> bool:
    return isinstance(name, str) and Path(name).is_file()
