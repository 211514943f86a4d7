"""Field vectors of a data set, from the store or from a language model: catalog -> prompts -> SSFT -> encoding."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fuxictr_llm.files import digest_of, digest_of_file
from fuxictr_llm.semantics import store
from fuxictr_llm.semantics.catalog import FieldCatalog, load_catalog
from fuxictr_llm.semantics.config import FieldVectorsConfig
from fuxictr_llm.semantics.model_folder import digest_of_model, find_language_model
from fuxictr_llm.semantics.prompts import Prompt, common_prefix, sample_prompts
from fuxictr_llm.semantics.vector_file import read_field_vectors, write_field_vectors

FILE = "field_vectors.safetensors"
KIND = "field_vectors"
# Raise it when the same settings would give other vectors.
VERSION = 1


def prepare_field_vectors(config: FieldVectorsConfig, run: Any) -> Path:
    """The file with a vector per field of the run's data set.

    Args:
        config: `field_vectors: llm` computes it (or finds it in the store); else it names a file.
        run: the experiment under way; its stages and notes are added to.

    Raises:
        UserError: a given file does not fit, or the language model cannot be had.
    """
    catalog = load_catalog(run.feature_map, run.data_dir, run.params.get("field_config"))
    if config.field_vectors != "llm":
        read_field_vectors(config.field_vectors, catalog.names)
        path = Path(config.field_vectors)
        run.notes["field_vectors"] = {"source": "given", "sha256": digest_of_file(path)}
        return path
    with run.stages("language model"):
        folder = find_language_model(config.language_model)
        digest = digest_of_model(folder)
    prompts = sample_prompts(catalog, config.ssft_values_per_field, config.ssft_held_out, config.ssft_seed)
    made_from = _made_from(config, digest, catalog, prompts)
    found = store.find(KIND, made_from, FILE)
    if found:
        logging.info("Field vectors of %s are cached: %s", config.language_model, found[0])
        for stage in ("tune", "encode"):
            with run.stages(stage, cached=True):
                pass
    else:
        found = _compute(config, run, folder, catalog, prompts, made_from)
    path, manifest = found
    run.notes["field_vectors"] = {
        "source": "llm",
        "path": str(path),
        "sha256": manifest["sha256"],
        "texts": "field descriptions and values of the train split",
        **{key: value for key, value in manifest.items() if key not in ("made_from", "sha256")},
    }
    return path


def _made_from(
    config: FieldVectorsConfig, model_digest: str, catalog: FieldCatalog, prompts: tuple[list[Prompt], list[Prompt]]
) -> dict[str, Any]:
    settings = {key: value for key, value in asdict(config).items() if key.startswith(("llm_", "ssft_", "lora_"))}
    return {
        "language_model": {"name": config.language_model, "sha256": model_digest},
        "settings": settings,
        "fields": {field.name: field.text for field in catalog.fields},
        "prompt": common_prefix(catalog),
        "prompts_sha256": digest_of([[[prompt.value, prompt.field] for prompt in part] for part in prompts]),
        "version": VERSION,
    }


def _compute(
    config: FieldVectorsConfig,
    run: Any,
    folder: Path,
    catalog: FieldCatalog,
    prompts: tuple[list[Prompt], list[Prompt]],
    made_from: dict[str, Any],
) -> tuple[Path, dict[str, Any]]:
    # Heavy libraries are imported only where something has to be asked of a language model.
    from fuxictr_llm.semantics.language_model import load_language_model
    from fuxictr_llm.semantics.ssft import tune

    with run.stages("load language model"):
        model = load_language_model(folder, config.llm_dtype, config.llm_pooling, run.params["gpu"])
    facts = {"pooling": model.pooling}
    if config.ssft_epochs:
        with run.stages("tune") as stage:
            facts["ssft"] = tune(model, catalog, *prompts, config)
            stage["rows"] = facts["ssft"]["prompts"] * config.ssft_epochs
    with run.stages("encode", rows=len(catalog.fields)):
        vectors = model.encode(field.text for field in catalog.fields)
    return store.save(KIND, made_from, FILE, lambda path: write_field_vectors(path, vectors, catalog.names), facts)
