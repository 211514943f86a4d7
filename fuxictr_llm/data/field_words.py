"""The words of a data set: the train values of its fields, and what a field config says about them.

While FuxiCTR's FeatureProcessor fits, the values are written to `field_texts.json` in the built data set, one entry a
field (none for embedding, meta and label columns):

    {"<categorical or sequence>": {"distinct": N, "values": [...], "counts": [...]},
     "<numeric>": {"quantiles": [min, ..., max]}}

Values are written as in feature_vocab.json, in descending count: at most `MOST`, half of them the most frequent
ones, half spread evenly over the others. Fields that share an embedding have their own values. A field with missing
values also has `"filled": {"<value>": [missing, as such]}`: the rows of all splits in which the value stands for a
missing one, and those in which it was read; `counts` has only the latter.
"""

import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from fuxictr_llm.common.errors import UserError, unknown
from fuxictr_llm.common.files import read_json, write_json
from fuxictr_llm.common.formats import read_yaml
from fuxictr_llm.config.sources import packaged_configs
from fuxictr_llm.data.counting import CountsInStream, counts_as_fuxictr
from fuxictr_llm.data.fills import Counts, TakesLists, summed, text_of
from fuxictr_llm.data.processors import ScalesConstants
from fuxictr_llm.data.ranks import Column
from fuxictr_llm.data.watched import ShowsFit, watched
from fuxictr_llm.host.preprocess import FeatureProcessor

FILE = "field_texts.json"
NUMBERS = "numbers.parquet"  # there while quantiles are made
MOST = 2000
QUANTILES = 21
# Ids that FuxiCTR reserves; they are no values.
RESERVED = ("__PAD__", "__OOV__")
_subclasses: dict[type[FeatureProcessor], type[FeatureProcessor]] = {}
FIELD_CONFIG_KEYS = ("about", "fields", "values", "entities")


class CollectsFieldTexts(ShowsFit):
    """Mixed into a data set's FeatureProcessor: `fit` also writes field_texts.json.

    The counts are those that FuxiCTR hands to its fit functions, so that the raw file is not read again
    for them. A pickle or copy is of the processor's own class and needs nothing of this package.

    Attributes:
        filled: of each split, train first, the values that stand for missing ones; set before `fit`.
    """

    _host: type[FeatureProcessor]
    filled: Sequence[Mapping[str, Counts]] = ()

    def fit(self, train_ddf: pl.LazyFrame, *args: Any, **kwargs: Any) -> None:
        self._counts: dict[str, Mapping[Any, int]] = {}
        super().fit(train_ddf, *args, **kwargs)
        write_json(Path(self.data_dir) / FILE, self._field_texts(train_ddf))
        del self._counts

    def _also_asked(self, train_ddf: pl.LazyFrame) -> list[pl.LazyFrame]:
        """A file of the numbers of train, which need not fit in memory."""
        columns = [col for col in self.feature_cols if col.get("active", True) and col["type"] == "numeric"]
        numbers = [pl.col(col["name"]).cast(pl.Float64) for col in columns]
        if not numbers:
            return []
        return [train_ddf.select(numbers).sink_parquet(self._numbers_file, compression="lz4", mkdir=True, lazy=True)]

    @property
    def _numbers_file(self) -> Path:
        return Path(self.data_dir) / NUMBERS

    def fit_categorical_col(self, col: dict, col_series: Any = None, **kwargs: Any) -> None:
        self._counts[col["name"]] = _counts_of(col, col_series, **kwargs)
        super().fit_categorical_col(col, col_series, **kwargs)

    def fit_sequence_col(self, col: dict, stats_dict: Any = None, **kwargs: Any) -> None:
        self._counts[col["name"]] = _counts_of(col, stats_dict, **kwargs)
        super().fit_sequence_col(col, stats_dict, **kwargs)

    def fit_meta_col(self, col: dict, stats_dict: Any = None) -> None:
        if stats_dict is not None and col.get("remap", True):  # or FuxiCTR raises an IndexError
            counts = stats_dict.get("value_counts", stats_dict)
            if not any(value not in (None, "") for value in counts):
                raise UserError(f"column {col['name']!r} has no value; set active: false for it")
        super().fit_meta_col(col, stats_dict)

    def save_vocab(self, vocab_file: str) -> None:
        # Values that only a file of vectors has are numpy's, and JSON takes no integers of numpy.
        for name, tokenizer in self.processor_dict.items():
            if name.endswith("::tokenizer"):
                for key in [key for key in tokenizer.vocab if isinstance(key, np.generic)]:
                    tokenizer.vocab[key.item()] = tokenizer.vocab.pop(key)
        super().save_vocab(vocab_file)

    def save_pickle(self, pickle_file: str) -> None:
        # FuxiCTR does not close the file: on a full disk it would be cut without a word.
        with Path(pickle_file).open("wb") as file:
            pickle.dump(self, file)

    def _field_texts(self, train_ddf: pl.LazyFrame) -> dict[str, dict[str, Any]]:
        features, in_train = self.feature_map.features, self.filled[0] if self.filled else {}
        numbers = [name for name, spec in features.items() if spec["type"] == "numeric"]
        if numbers and not self._numbers_file.exists():  # a processor that counts its own way
            with watched(train_ddf, "quantiles of train", self.rows.get("train", 0)) as rows:
                pl.collect_all(self._also_asked(rows), engine="streaming")
        quantiles = _quantiles(self._numbers_file, numbers, in_train)
        self._numbers_file.unlink(missing_ok=True)
        texts: dict[str, dict[str, Any]] = {}
        for name in features:
            if name in quantiles:
                texts[name] = {"quantiles": quantiles[name]}
            elif name in self._counts:
                tokenizer = self.processor_dict[f"{name}::tokenizer"]
                none = {tokenizer._na_value, "", *RESERVED}
                counts = self._counts[name].items()
                known = [(value, n) for value, n in counts if value in tokenizer.vocab and value not in none]
                texts[name] = _most(_as_such(known, in_train.get(name, {})))
        for name, values in summed(self.filled).items():
            if name in texts:
                texts[name]["filled"] = values
        return texts

    def __reduce__(self) -> tuple:
        left_out = ("_counts", "filled", *ShowsFit.NOT_PICKLED, *CountsInStream.NOT_PICKLED)
        state = {key: value for key, value in vars(self).items() if key not in left_out}
        return self._host.__new__, (self._host,), state


def collecting(host: type[FeatureProcessor]) -> type[FeatureProcessor]:
    """The subclass of a FeatureProcessor that also takes lists, scales constants and writes field_texts.json."""
    if host not in _subclasses:
        own = (CountsInStream,) if counts_as_fuxictr(host) else ()
        bases = (CollectsFieldTexts, TakesLists, ScalesConstants, *own, host)
        _subclasses[host] = type(host.__name__, bases, {"_host": host, "__module__": host.__module__})
    return _subclasses[host]


def _counts_of(col: dict, stats: Any, min_categr_count: int = 1, **_: Any) -> Mapping[Any, int]:
    """The counts among FuxiCTR's statistics of a column, for which it raises an IndexError where none is enough."""
    if stats is None:
        raise UserError(f"column {col['name']!r}: FuxiCTR 2.3 cannot build remap: false here; leave it out")
    counts, least, missing = (
        stats["value_counts"],
        col.get("min_categr_count", min_categr_count),
        col.get("fill_na", ""),
    )
    if not any(count >= least and value != missing for value, count in counts.items()):
        raise UserError(
            f"column {col['name']!r} has no value that occurs min_categr_count={least} times in the train split; "
            "set active: false for it, or a lower min_categr_count"
        )
    return counts


def _most(counted: Any) -> dict[str, Any]:
    ranked = sorted(counted, key=lambda pair: (-pair[1], pair[0]))
    if len(ranked) <= MOST:
        kept = ranked
    else:
        rest = np.linspace(MOST // 2, len(ranked) - 1, MOST // 2).round().astype(int)
        kept = [*ranked[: MOST // 2], *(ranked[index] for index in rest)]
    values = [text_of(value) for value, _ in kept]
    return {"distinct": len(ranked), "values": values, "counts": [count for _, count in kept]}


def _as_such(counted: Iterable[tuple[Any, int]], filled: Counts) -> Iterator[tuple[Any, int]]:
    """The values with the rows in which they do not stand for a missing one, where there are some."""
    for value, count in counted:
        as_such = count - filled.get(text_of(value), [0])[0]
        if as_such > 0:
            yield value, as_such


def _quantiles(numbers: Path, names: Iterable[str], filled: Mapping[str, Counts]) -> dict[str, list[float]]:
    """Distinct values at evenly spaced ranks of each column of a file of numbers, missing ones left out."""
    quantiles: dict[str, list[float]] = {}
    for name in names:
        column, missing = Column(numbers, name), {float(value): n for value, (n, _) in filled.get(name, {}).items()}
        missing = {value: n for value, n in missing.items() if np.isfinite(value)}
        rows = column.count() - sum(missing.values())
        ranks = np.linspace(0, max(rows - 1, 0), QUANTILES).round().astype(int)
        for value in sorted(missing):
            ranks[ranks >= column.count(below=value)] += missing[value]
        quantiles[name] = list(dict.fromkeys(column.at_ranks(ranks))) if rows else []
    return quantiles


def values_for_missing(data_dir: Path, name: str) -> Counts:
    """The values of a field that stand for missing ones: value -> [rows where it does, rows where it was read].

    Of a data set that FuxiCTR built itself nothing is known.
    """
    return (read_json(data_dir / FILE) or {}).get(name, {}).get("filled", {})


def read_field_config(name: str | None) -> Mapping[str, Any]:
    """The entry of that name in the packaged field_config/, or the mapping in a YAML file.

    Names, values and words are texts, as they are written there: the value `NO` is no truth value, `01` no number.

    Raises:
        UserError: there is none, or it has other keys than `about`, `fields`, `values`, `entities`, or wrong ones.
    """
    if not name:
        return {}
    if Path(name).suffix in (".yaml", ".yml"):
        words = read_yaml(name, as_text=True)
    else:
        entries: dict[str, Any] = {}
        for path in sorted((packaged_configs() / "field_config").glob("*.yaml")):
            entries |= read_yaml(path, as_text=True)
        if name not in entries:
            raise unknown("field config", name, [*entries, "a .yaml file"])
        words = entries[name]
    values = words.get("values") or {}
    sections = {"fields": words.get("fields"), **values} if isinstance(values, dict) else {"values": values}
    if odd := [section for section, texts in sections.items() if not _are_words(texts or {})]:
        problem = f"'fields' maps fields to words, 'values' fields to value: words (look at {odd[0]!r})"
        raise UserError(f"field config {name!r}: {problem}")
    if not isinstance(words.get("about") or "", str):
        raise UserError(f"field config {name!r}: 'about' must be words (got {words['about']!r})")
    _check_entities(words.get("entities") or {}, name)
    wrong = [key for key in words if key not in FIELD_CONFIG_KEYS]
    if wrong:
        raise UserError(
            f"field config {name!r} has the unknown key {wrong[0]!r}; known: {', '.join(FIELD_CONFIG_KEYS)}"
        )
    return words


def _are_words(texts: Any) -> bool:
    return isinstance(texts, dict) and all(text is None or isinstance(text, str) for text in texts.values())


def _check_entities(entities: Any, name: str) -> None:
    def fits(keys: Any) -> bool:
        if not isinstance(keys, dict) or not keys.keys() <= {"id", "text"}:
            return False
        text = keys.get("text") or []
        return (
            isinstance(keys.get("id") or "", str)
            and isinstance(text, list)
            and all(type(column) is str for column in text)
        )

    if not isinstance(entities, dict) or not all(map(fits, entities.values())):
        raise UserError(f"field config {name!r}: 'entities' maps names to {{id: column, text: [columns]}}")
