"""What a fitted FeatureProcessor knows besides its vocabularies, as JSON: `preprocessing.json` of a built data set.

FuxiCTR keeps it in a pickle alone, and `feature_vocab.json` writes numbers as texts. With both files a model can be
served from raw rows.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl

from fuxictr_llm.data.fills import TakesLists, is_list
from fuxictr_llm.data.id_columns import OOV, PAD
from fuxictr_llm.data.processors import NAMED, code_of, settings_of
from fuxictr_llm.host.columns import feature_columns
from fuxictr_llm.host.preprocess import FeatureProcessor, Normalizer, Tokenizer

FILE = "preprocessing.json"
SETTINGS = ("feature_cols", "label_col", "sep", "min_categr_count", "feature_processor")
# Kind of values in a vocabulary -> what makes one of the text in feature_vocab.json.
KINDS: dict[str, type] = {"text": str, "int": int, "float": float}
LISTS, TEXTS = "List", "String"
STORED: dict[str, Any] = {
    str(dtype): dtype
    for dtype in (
        *(pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64),
        *(pl.Float32, pl.Float64, pl.Boolean, pl.String),
    )
}


def describe_fitted(
    processor: FeatureProcessor, raw: Mapping[str, pl.DataType], params: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of preprocessing.json.

    Args:
        processor: after `fit`.
        raw: the schema of the raw train rows.
        params: the settings of the data set.

    Returns:
        `settings`: the declared columns and what else decides ids; `code`: digest of a processor class that is not
        FuxiCTR's; `stored`: raw column -> type; `columns`: of each column, how its values are looked up or scaled;
        `unservable`: why raw rows cannot be transformed with this alone, or null.
    """
    name = params.get("feature_processor")
    described: dict[str, Any] = {
        "settings": settings_that_decide(params),
        "code": code_of(name) if name else None,
        "stored": {column: _stored(dtype) for column, dtype in raw.items()},
        "columns": {},
        "unservable": None,
    }
    problems = [*_problems_of_class(processor, name, params)]
    owners: dict[int, str] = {}
    for column, spec in processor.feature_map.features.items():
        try:
            described["columns"][column] = _describe(processor, column, spec["type"], owners)
        except ValueError as error:
            problems.append(f"column {column!r}: {error}")
    return {**described, "unservable": problems[0] if problems else None}


def settings_that_decide(params: Mapping[str, Any]) -> dict[str, Any]:
    """The settings on which ids depend, without the paths of files."""
    columns = [{key: value for key, value in col.items() if key != "pretrained_emb"} for col in feature_columns(params)]
    return {**{key: params.get(key) for key in SETTINGS}, "feature_cols": columns}


def _stored(dtype: pl.DataType) -> str:
    """The type in which raw values are to come; one that is not in STORED cannot be asked for."""
    if is_list(dtype):
        return LISTS
    if dtype.is_decimal():
        return str(pl.Float64)
    return TEXTS if isinstance(dtype, pl.Categorical | pl.Enum) else str(dtype)


def _problems_of_class(processor: FeatureProcessor, name: str | None, params: Mapping[str, Any]) -> Iterable[str]:
    if type(processor).transform is not FeatureProcessor.transform:
        yield f"feature_processor {name!r} has a transform of its own, and nobody but itself knows what it makes"
    if name and name not in NAMED and settings_of(name, params):
        yield f"the constructor of feature_processor {name!r} takes settings of its own"


def _describe(processor: FeatureProcessor, column: str, kind: str, owners: dict[int, str]) -> dict[str, Any]:
    tokenizer = processor.processor_dict.get(f"{column}::tokenizer")
    normalizer = processor.processor_dict.get(f"{column}::normalizer")
    if kind == "numeric" and normalizer is not None:
        return {"normalizer": _describe_normalizer(normalizer)}
    if kind not in ("categorical", "sequence"):  # the ids of a meta column are only compared with each other
        return {}
    if type(tokenizer) is not Tokenizer:
        raise ValueError("it has no vocabulary of FuxiCTR's form")
    described = {"vocabulary": owners.setdefault(id(tokenizer.vocab), column), "values": _kind(tokenizer.vocab)}
    if kind == "sequence":
        described |= {"max_len": tokenizer.max_len, "padding": tokenizer.padding, "missing": tokenizer._na_value}
    return described


def _kind(vocabulary: Iterable[Any]) -> str:
    types = {type(value) for value in vocabulary if value not in (PAD, OOV)}
    for kind, python in KINDS.items():
        if types <= {python}:
            return kind
    names = " and ".join(sorted(of.__name__ for of in types))
    raise ValueError(f"its vocabulary has values of type {names}, which are one in feature_vocab.json")


def _describe_normalizer(normalizer: Any) -> dict[str, Any]:
    scaler: Any = getattr(normalizer.normalizer, "__self__", None) if type(normalizer) is Normalizer else None
    name = type(scaler).__name__
    if name == "StandardScaler":
        facts = {"mean": scaler.mean_[0], "std": scaler.scale_[0]}
    elif name == "MinMaxScaler":
        facts = {"min_value": scaler.data_min_[0], "max_value": scaler.data_max_[0]}
    else:
        raise ValueError("its normalizer is a function of one's own")
    return {"name": name, **{fact: float(value) for fact, value in facts.items()}}


class Fitted:
    """What a data set's processor knew after `fit`, without the processor.

    Args:
        content: as `describe_fitted` gives it.
        vocabularies: `column`, `value` (a text) and `id` of every value, also of FuxiCTR's reserved names.
        more: column -> text of a value -> id, of values that came later.

    Attributes:
        declared: name -> column of the data set's config.
        columns, stored: as in the content.

    Raises:
        ValueError: a vocabulary is not there or not whole.
    """

    def __init__(
        self,
        content: Mapping[str, Any],
        vocabularies: pl.DataFrame,
        more: Mapping[str, Mapping[str, int]] | None = None,
    ):
        self.content, self.columns, self.stored = content, content["columns"], content["stored"]
        self.settings: dict[str, Any] = content["settings"]
        self.declared = {col["name"]: col for col in feature_columns(self.settings)}
        self._vocabularies = {
            owner: dict(zip(part["value"].to_list(), part["id"].to_list(), strict=True))
            for (owner,), part in vocabularies.partition_by("column", as_dict=True).items()
        }
        for column, ids in (more or {}).items():
            self._vocabularies[self.columns[column]["vocabulary"]] |= ids
        for column, spec in self.columns.items():
            if "vocabulary" in spec:
                owner, python = spec["vocabulary"], KINDS[spec["values"]]
                known = self._vocabularies.get(owner, {})
                if not {PAD, OOV} <= known.keys():
                    raise ValueError(f"column {column!r} has no vocabulary")
                if python is not str and not any(isinstance(value, python) for value in known):
                    self._vocabularies[owner] = {
                        value if value in (PAD, OOV) else python(value): index for value, index in known.items()
                    }

    def vocabulary(self, column: str) -> Mapping[Any, int]:
        """Value -> id of a column that has ids."""
        return self._vocabularies[self.columns[column]["vocabulary"]]

    def processor(self, host: type[FeatureProcessor]) -> FeatureProcessor:
        """A processor that transforms as the fitted one did.

        Args:
            host: its class, as `find_processor` gives it.
        """
        cls = type(host.__name__, (TakesLists, host), {"__module__": host.__module__})
        processor: Any = cls(**self.settings, dataset_id="raw rows", data_root="")
        for name, spec in self.columns.items():
            processor.feature_map.features[name] = {"type": self.declared[name]["type"]}
            if "vocabulary" in spec:
                keys = {"max_len": spec.get("max_len", 0), "padding": spec.get("padding", "post")}
                tokenizer = Tokenizer(na_value=spec.get("missing", ""), **keys)
                tokenizer._splitter = self.declared[name].get("splitter", "^")
                tokenizer.vocab = self._vocabularies[spec["vocabulary"]]
                processor.processor_dict[f"{name}::tokenizer"] = tokenizer
            elif "normalizer" in spec:
                facts = {key: value for key, value in spec["normalizer"].items() if key != "name"}
                normalizer = Normalizer(spec["normalizer"]["name"])
                normalizer.fit_from_stats(**facts, count=1)
                processor.processor_dict[f"{name}::normalizer"] = normalizer
        return processor
