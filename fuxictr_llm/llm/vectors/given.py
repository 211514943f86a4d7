"""Vectors that the user gives: stores for the texts of rows (`text_vectors`), files for a column (`pretrained_emb`).

Stores are made elsewhere, on a machine with a GPU, say; they must be of the same texts and language model. Of a file
the run record says how many of the column's values it has a vector for.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.runs import Run
from fuxictr_llm.config.language_models import RowTextsConfig
from fuxictr_llm.host.columns import feature_columns
from fuxictr_llm.host.embeddings import check_width, keys_as_text, read_vectors
from fuxictr_llm.llm.model_files import digest_of_model
from fuxictr_llm.llm.texts.row_texts import UnitTexts
from fuxictr_llm.llm.texts.sentences import vocabulary_of
from fuxictr_llm.llm.vectors.store import MANIFEST, VectorStore

AFFECTS_VECTORS = False  # see common/code_digest.py

OTHER_TEXTS = "was made from other texts"
NOTE = "given_vectors"


def given_stores(
    folder: Path, config: RowTextsConfig, settings: Mapping[str, Any], units: Sequence[UnitTexts], tuned: bool = False
) -> list[VectorStore]:
    """The store of each unit in the folder: itself, or one of the folders in it.

    Args:
        settings: what besides the language model must be as it is there.
        tuned: whether the language model must have been tuned on clicks there; how is not compared.

    Raises:
        UserError: there is none for a unit; those there are of other texts, another language model or other settings,
            or damaged.
    """
    if not folder.is_dir():
        raise UserError(f"text_vectors {str(folder)!r} is no folder")
    candidates = sorted(path.parent for path in [*folder.glob(MANIFEST), *folder.glob(f"*/{MANIFEST}")])

    def problem_of(store: VectorStore, unit: UnitTexts) -> str | None:
        return _problem(store, unit, config, settings) or _problem_of_tuning(store, tuned)

    return [_store_of(unit, folder, candidates, problem_of) for unit in units]


def _store_of(
    unit: UnitTexts,
    folder: Path,
    candidates: Sequence[Path],
    problem_of: Callable[[VectorStore, UnitTexts], str | None],
) -> VectorStore:
    problems, broken = [], []
    for candidate in candidates:
        try:
            store = VectorStore(candidate)
        except UserError as error:  # it may be of something else
            broken.append(error)
            continue
        problem = problem_of(store, unit)
        if problem is None:
            if damaged := store.damaged():
                raise UserError(f"text_vectors: {str(candidate / damaged[0])!r} is damaged; copy it again")
            return store
        if store.manifest.get("unit") == unit.name:
            problems.append((OTHER_TEXTS not in problem, f"text_vectors: {str(candidate)!r} {problem}"))
    if problems:
        raise UserError(max(problems)[1])  # in a folder with the vectors of many runs, the nearest to a match
    if broken:
        raise broken[0]
    raise UserError(f"text_vectors {str(folder)!r} has no vectors of the texts of unit {unit.name!r}")


def _problem(store: VectorStore, unit: UnitTexts, config: RowTextsConfig, settings: Mapping[str, Any]) -> str | None:
    """Why a store is none of the unit's texts, or None."""
    made_from = store.manifest.get("made_from") or {}
    if made_from.get("texts_sha256") != unit.sha256 or made_from.get("head"):
        return (
            f"{OTHER_TEXTS} (unit {store.manifest.get('unit')!r} of data set "
            f"{store.manifest.get('data_set')!r}, {store.rows} texts) than the {len(unit)} of unit {unit.name!r} here"
        )
    theirs = made_from.get("language_model", {})
    here = Path(config.language_model).expanduser()
    same = (
        theirs.get("sha256") == digest_of_model(here) if here.is_dir() else theirs.get("name") == config.language_model
    )
    if not same:
        return f"is of language model {theirs.get('name')!r}, not {config.language_model!r}"
    for key, value in settings.items():
        free = key == "llm_dtype" and config.llm_dtype == "auto"
        if made_from.get(key) != value and not free:
            return f"was made with {key} {made_from.get(key)!r}, not {value!r}"
    return None


def _problem_of_tuning(store: VectorStore, tuned: bool) -> str | None:
    if ("adapter_sha256" in store.manifest["made_from"]) == tuned:
        return None
    there, here = ("an untuned", "lora") if tuned else ("a tuned", "frozen")
    return f"is of {there} language model, and tuning is {here}"


def note_matches(run: Run, name: str) -> None:
    """Log, and note in the run record, how many train values of a column have a vector in its file.

    Args:
        run: the experiment under way.
        name: a column with `pretrained_emb`.

    Raises:
        UserError: the file cannot be used, or none of its keys is a value of the column.
    """
    spec = run.feature_map.features[name]
    path = Path(run.feature_map.data_dir, spec["pretrained_emb"])  # where FuxiCTR looks
    given = _given_file(run, name, path)
    if run.notes.get(NOTE, {}).get(name, {}).get("file") == given:
        return
    if not path.is_file() and Path(spec["pretrained_emb"]).is_file():
        raise UserError(
            f"pretrained_emb {spec['pretrained_emb']!r} of column {name!r}: in feature_specs FuxiCTR looks for it in "
            f"{str(run.data_dir)!r}; give {str(Path(spec['pretrained_emb']).absolute())!r}"
        )
    where = f"pretrained_emb {given!r} of column {name!r}"
    keys, vectors = read_vectors(path, name)
    check_width(where, vectors, spec, run.params.get("embedding_dim"))
    keys = keys_as_text(keys, where).tolist()
    known, values = set(keys), vocabulary_of(run, name)[0]
    if len(known) < len(keys):
        twice = Counter(keys).most_common(1)[0][0]
        logging.warning("%s has a key more than once (%r, say): its last vector counts", where, twice)
    without = [value for value in values if value not in known]
    with_vector = len(values) - len(without)
    if not with_vector:
        raise UserError(
            f"{where}: none of its {len(known):,} keys ({_some(keys)}) is one of the {len(values):,} train values "
            f"({_some(values)}){_difference(known, without)}"
        )
    run.notes.setdefault(NOTE, {})[name] = {
        "file": given,
        "keys": len(known),
        "values": len(values),
        "with_vector": with_vector,
    }
    message = "%d of %d train values of %r have a vector in %s"
    if 2 * with_vector >= len(values):
        logging.info(message, with_vector, len(values), name, given)
    else:
        foreign = sorted(known - {*values})
        logging.warning(
            message + " (without one: %s%s)%s",
            *(with_vector, len(values), name, given, _some(without)),
            f"; keys of no train value: {_some(foreign)}" if foreign else "",
            _difference({*foreign}, without),
        )


def _given_file(run: Run, name: str, path: Path) -> str:
    """The file as a config names it: FuxiCTR copies it into the built data set."""
    columns = feature_columns({"feature_cols": run.params.get("feature_cols") or []})
    declared = {col["name"]: col.get("pretrained_emb") for col in columns}.get(name)
    return declared if declared and path.stem == f"pretrained_{name}" else str(path)


def _some(texts: Any) -> str:
    return ", ".join(map(repr, texts[:3])) + (", ..." if len(texts) > 3 else "")


def _difference(keys: set[str], values: list[str]) -> str:
    """What keys and values differ by, where it is the same for some of them."""
    for what, written in WRITTEN.items():
        if not {*map(written, keys)}.isdisjoint(map(written, values)):
            return f": they differ by {what}"
    return "; save the keys as they stand in the raw files"


def _number(text: str) -> str:
    """`001`, `1.0` and `1` are one number; what is none stays as it is."""
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() else str(number)


WRITTEN: Mapping[str, Callable[[str], str]] = {
    "spaces around them; save the keys as they stand in the raw files": str.strip,
    "upper and lower case; save the keys as they stand in the raw files": str.casefold,
    "how numbers are written; save keys of whole numbers as integers (keys.astype(int))": _number,
}
