"""Vectors of texts that were made elsewhere, on a machine with a GPU, say: `text_vectors` of a config."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fuxictr_llm.errors import UserError
from fuxictr_llm.semantics.model_folder import digest_of_model
from fuxictr_llm.semantics.row_texts import UnitTexts
from fuxictr_llm.semantics.text_config import RowTextsConfig
from fuxictr_llm.semantics.vector_store import MANIFEST, VectorStore

OTHER_TEXTS = "was made from other texts"


def given_stores(
    folder: Path, config: RowTextsConfig, settings: Mapping[str, Any], units: Sequence[UnitTexts]
) -> list[VectorStore]:
    """The store of each unit in the folder: itself, or one of the folders in it.

    Args:
        settings: what besides the language model must be as it is there.

    Raises:
        UserError: there is none for a unit; those there are of other texts, another language model or other settings,
            or damaged.
    """
    if not folder.is_dir():
        raise UserError(f"text_vectors {str(folder)!r} is no folder")
    candidates = sorted(path.parent for path in [*folder.glob(MANIFEST), *folder.glob(f"*/{MANIFEST}")])
    return [_store_of(unit, folder, candidates, config, settings) for unit in units]


def _store_of(
    unit: UnitTexts, folder: Path, candidates: Sequence[Path], config: RowTextsConfig, settings: Mapping[str, Any]
) -> VectorStore:
    problems, broken = [], []
    for candidate in candidates:
        try:
            found = VectorStore(candidate)
        except UserError as error:  # it may be of something else
            broken.append(error)
            continue
        problem = _problem(found, unit, config, settings)
        if problem is None:
            if damaged := found.damaged():
                raise UserError(f"text_vectors: {str(candidate / damaged[0])!r} is damaged; copy it again")
            return found
        if found.manifest.get("unit") == unit.name:
            problems.append((OTHER_TEXTS not in problem, f"text_vectors: {str(candidate)!r} {problem}"))
    if problems:
        raise UserError(max(problems)[1])  # in a folder with the vectors of many runs, the nearest to a match
    if broken:
        raise broken[0]
    raise UserError(f"text_vectors {str(folder)!r} has no vectors of the texts of unit {unit.name!r}")


def _problem(found: VectorStore, unit: UnitTexts, config: RowTextsConfig, settings: Mapping[str, Any]) -> str | None:
    """Why a store is none of the unit's texts, or None."""
    made_from = found.manifest.get("made_from") or {}
    if made_from.get("texts_sha256") != unit.sha256 or made_from.get("head"):
        return (
            f"{OTHER_TEXTS} (unit {found.manifest.get('unit')!r} of data set "
            f"{found.manifest.get('data_set')!r}, {found.rows} texts) than the {len(unit)} of unit {unit.name!r} here"
        )
    theirs = made_from.get("language_model", {})
    here = Path(config.language_model).expanduser()
    same = (
        theirs.get("sha256") == digest_of_model(here) if here.is_dir() else theirs.get("name") == config.language_model
    )
    if not same:
        return f"is of language model {theirs.get('name')!r}, not {config.language_model!r}"
    tuned, asked = "adapter_sha256" in made_from, getattr(config, "tuning", "frozen") == "lora"
    if tuned != asked:
        told, way = ("tuned", "lora") if tuned else ("not tuned", "frozen")
        return f"is of a language model {told} on clicks; set tuning: {way}"
    for key, value in settings.items():
        free = key == "llm_dtype" and config.llm_dtype == "auto"
        if made_from.get(key) != value and not free:
            return f"was made with {key} {made_from.get(key)!r}, not {value!r}"
    return None
