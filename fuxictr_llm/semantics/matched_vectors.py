"""How many of a column's values a file of given vectors (`pretrained_emb`) has one for."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fuxictr_llm.data.raw import feature_columns
from fuxictr_llm.data.vector_files import check_width, keys_as_text, read_vectors
from fuxictr_llm.errors import UserError
from fuxictr_llm.semantics.vocabulary import vocabulary_of

NOTE = "given_vectors"


def note_matches(run: Any, name: str) -> None:
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
    found = len(values) - len(without)
    if not found:
        raise UserError(
            f"{where}: none of its {len(known):,} keys ({_some(keys)}) is one of the {len(values):,} train values "
            f"({_some(values)}){_difference(known, without)}"
        )
    run.notes.setdefault(NOTE, {})[name] = {
        "file": given,
        "keys": len(known),
        "values": len(values),
        "with_vector": found,
    }
    message = "%d of %d train values of %r have a vector in %s"
    if 2 * found >= len(values):
        logging.info(message, found, len(values), name, given)
    else:
        foreign = sorted(known - {*values})
        logging.warning(
            message + " (without one: %s%s)%s",
            *(found, len(values), name, given, _some(without)),
            f"; keys of no train value: {_some(foreign)}" if foreign else "",
            _difference({*foreign}, without),
        )


def _given_file(run: Any, name: str, path: Path) -> str:
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
