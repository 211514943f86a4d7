"""Field vectors of a data set, from the store or from a language model: catalog -> prompts -> SSFT -> encoding."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from torch import Tensor

from fuxictr_llm.common import cache as store
from fuxictr_llm.common.errors import unknown
from fuxictr_llm.common.files import digest_of, digest_of_file, merged
from fuxictr_llm.common.processes import from_main, of_processes
from fuxictr_llm.common.runs import Run
from fuxictr_llm.llm.catalog import FieldCatalog, load_catalog
from fuxictr_llm.llm.model_files import digest_of_model, find_language_model
from fuxictr_llm.llm.threads import of_threads
from fuxictr_llm.llm.vectors import store as controls

from . import vector_file
from .config import FieldVectorsConfig
from .prompts import Prompt, common_prefix, sample_prompts
from .vector_file import SUFFIXES, read_field_vectors, write_field_vectors

if TYPE_CHECKING:
    from fuxictr_llm.llm.language_model import LanguageModel

TUNED_ON = "field descriptions and values of the train split"
TEXTS = {"llm": TUNED_ON, "llm_untuned": "field descriptions", "identity": "none"}
TEXTS |= dict.fromkeys(controls.OF_VECTORS, TUNED_ON)
FILE = "field_vectors.safetensors"
KIND = "field_vectors"
SOURCES = tuple(TEXTS)
# Raise it when the same settings would give other vectors.
VERSION = 3


def prepare_field_vectors(config: FieldVectorsConfig, run: Run) -> Path:
    """The file with a vector per field of the run's data set, from the source that `field_vectors` names.

    Args:
        config: how the vectors are made.
        run: the experiment under way; its stages and notes are added to.

    Raises:
        UserError: a given file does not fit, or the language model cannot be had.
    """
    catalog = load_catalog(run.feature_map, run.data_dir, run.params.get("field_config"))
    config, source = config.filled(), config.field_vectors
    config = replace(config, llm_dtype=cast(Literal["bfloat16", "float32"], config.dtype_on(run.params["gpu"])))
    if source not in SOURCES:
        if Path(source).suffix not in SUFFIXES and not Path(source).exists():
            raise unknown("source", source, [*SOURCES, *(f"a {suffix} file" for suffix in SUFFIXES)], "'field_vectors'")
        read_field_vectors(source, catalog.names)
        run.notes["field_vectors"] = {"source": "given", "path": source, "sha256": digest_of_file(source)}
        return Path(source)
    if source == "llm_untuned":
        config = replace(config, ssft_epochs=0)
    if source == "identity":
        names = catalog.names
        entry = _stored_control(source, {"fields": names}, catalog, lambda: controls.identity(len(names)))
    else:
        entry = _of_language_model(config, run, catalog)
    if source in controls.OF_VECTORS:
        path, manifest = entry
        make = {"random": controls.random_like, "shuffled": controls.shuffled}[source]
        made_from = {"of_sha256": manifest["sha256"], "seed": config.control_seed}
        entry = _stored_control(
            source, made_from, catalog, lambda: make(read_field_vectors(path, catalog.names), config.control_seed)
        )
    path, manifest = entry
    run.notes["field_vectors"] = {
        "source": source,
        "path": str(path),
        "sha256": manifest["sha256"],
        "texts": TEXTS[source],
        **{key: value for key, value in manifest.items() if key not in ("made_from", "sha256")},
    }
    return path


def _stored_control(
    source: str, of: dict[str, Any], catalog: FieldCatalog, make: Callable[[], Tensor]
) -> tuple[Path, dict[str, Any]]:
    code = store.code_of(controls.__name__, vector_file.__name__)
    made_from = merged(of, {"control": source, "code": code, "version": VERSION})

    def save() -> tuple[Path, dict[str, Any]]:
        return store.save(
            KIND, made_from, FILE, lambda path: write_field_vectors(path, make(), catalog.names), facts={}
        )

    return store.find_or_make(KIND, made_from, FILE, save)


def _of_language_model(config: FieldVectorsConfig, run: Run, catalog: FieldCatalog) -> tuple[Path, dict[str, Any]]:
    """File and manifest of the language model's own vectors, from the store where they are there."""
    with run.stages("language model"):
        folder = find_language_model(config.language_model)
        digest = digest_of_model(folder)
    if len(catalog.fields) == 1 and config.ssft_epochs:
        logging.warning("One field alone cannot be told from others: the language model is left untuned")
        config = replace(config, ssft_epochs=0)
    prompts = sample_prompts(catalog, cast(int, config.ssft_values_per_field), config.ssft_held_out, config.ssft_seed)
    made_from = _made_from(config, digest, catalog, prompts, run.params["gpu"])

    made_here = []

    def make() -> tuple[Path, dict[str, Any]]:
        made_here.append(True)
        return _compute(config, run, folder, catalog, prompts, made_from)

    entry = store.find_or_make(KIND, made_from, FILE, make, together=True)
    if made_here:
        return entry
    logging.info("Field vectors of %s are cached: %s", config.language_model, entry[0])
    tokens = entry[1].get("tokens_read") or {}
    for stage, seconds in (entry[1].get("seconds") or {"encode": None}).items():
        with run.stages(stage, cached=True, made_in=seconds, tokens_read=tokens.get(stage)):
            pass
    return entry


def _made_from(
    config: FieldVectorsConfig,
    model_digest: str,
    catalog: FieldCatalog,
    prompts: tuple[list[Prompt], list[Prompt]],
    gpu: int,
) -> dict[str, Any]:
    prefixes = ("llm_", "ssft_", "lora_") if config.ssft_epochs else ("llm_",)
    settings = {key: value for key, value in asdict(config).items() if key.startswith(prefixes)}
    tuned_on = [[[prompt.value, prompt.field] for prompt in part] for part in prompts] if config.ssft_epochs else None
    # Processes have dropout masks of their own.
    tuned_by = merged(of_processes(), of_threads(gpu)) if config.ssft_epochs else {}
    keys = {
        "language_model": {"name": config.language_model, "sha256": model_digest},
        "device": "gpu" if gpu >= 0 else "cpu",  # they round differently
        "settings": settings,
        "fields": {field.name: field.text for field in catalog.fields},
        "prompt": common_prefix(catalog),
        "prompts_sha256": digest_of(tuned_on),
        "code": store.code_of(__name__),
        "version": VERSION,
    }
    return merged(keys, tuned_by)


def _compute(
    config: FieldVectorsConfig,
    run: Run,
    folder: Path,
    catalog: FieldCatalog,
    prompts: tuple[list[Prompt], list[Prompt]],
    made_from: dict[str, Any],
) -> tuple[Path, dict[str, Any]]:
    # Heavy libraries are imported only where something has to be asked of a language model.
    from fuxictr_llm.llm.language_model import load_language_model

    from .ssft import tune

    with run.stages("load language model"):
        sha256 = made_from["language_model"]["sha256"]
        model = load_language_model(folder, config.llm_dtype, config.llm_pooling, run.params["gpu"], sha256)
    facts: dict[str, Any] = {"pooling": model.pooling}
    run.stages.done["load language model"]["tokens_read"] = 0
    checkpoints, untuned = store.entry_dir("ssft", made_from), None
    if config.ssft_epochs:
        untuned = _field_vectors(model, catalog, config)
        with run.stages("tune") as stage:
            facts["ssft"] = tune(model, catalog, *prompts, config, checkpoints)
            stage["rows"] = facts["ssft"]["prompts"] * facts["ssft"]["epochs"]
            stage["tokens_read"] = model.tokens_read
    before = run.stages.done.get("tune", {}).get("tokens_read", 0)
    with run.stages("encode", rows=len(catalog.fields)) as stage:
        vectors = _field_vectors(model, catalog, config)
        stage["tokens_read"] = model.tokens_read - before
    done = {
        name: run.stages.done[name] for name in ("load language model", "tune", "encode") if name in run.stages.done
    }
    facts |= {key: {name: stage[key] for name, stage in done.items()} for key in ("seconds", "tokens_read")}

    def save() -> tuple[Path, dict[str, Any]]:
        return store.save(
            KIND, made_from, FILE, lambda path: write_field_vectors(path, vectors, catalog.names, untuned), facts
        )

    entry = from_main(save)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return entry


def _field_vectors(model: "LanguageModel", catalog: FieldCatalog, config: FieldVectorsConfig) -> Tensor:
    vectors = model.encode(field.text for field in catalog.fields)
    return vectors - vectors.mean(dim=0) if config.llm_centre else vectors
