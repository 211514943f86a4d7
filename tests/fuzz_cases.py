"""Small data sets with their configs, drawn at random: what users' files hold, good and bad."""

import string
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from hypothesis import strategies as st

ROWS = {"train": 48, "valid": 16, "test": 16}
PLAIN_NAMES = ["color", "user_id", "Größe", "price 2", "c-1", "C1", "sum(x)", "класс", "x" * 40]
# What torch's ModuleDict, polars, YAML or a file name could trip over.
HARD_NAMES = ["type", "items", "values", "forward", "a.b", "keys", "pop", "null", "1", "__PAD__", "label", "dataset_id"]
MISSPELT = ["spliter", "maxlen", "na_value", "normaliser", "min_categ_count", "shared_embedding", "actve"]
BACKBONES = ["DeepFM", "DNN", "FM", "LR", "DCNv2", "FwFM", "AutoInt", "MaskNet"]
# What may be wrong with the files of valid and test alone.
DAMAGES = {
    "a column is missing": lambda table: table.drop(columns=table.columns[0]),
    "other order, one column more": lambda table: table.assign(more=1)[["more", *table.columns[::-1]]],
    "no rows": lambda table: table.head(0),
    "one row": lambda table: table.head(1),
    "one class": lambda table: table.assign(click=1),
    "a label of 2": lambda table: table.assign(click=2),
    "a label is missing": lambda table: table.assign(click=table["click"].astype("Int64").mask(table.index == 3)),
    "text in the first column": lambda table: table.assign(**{table.columns[0]: "many"}),
}
HARMLESS = ("other order, one column more",)
CHARACTERS = string.ascii_letters + string.digits + " ,;|^\"'\\/#%{}[]&*:-_.äß中🎬"


@dataclass(repr=False)
class Column:
    """A column: its entry in `feature_cols`, and its values by split as Python has them (None: missing)."""

    spec: dict[str, Any]
    values: dict[str, list[Any]]

    @property
    def name(self) -> str:
        return self.spec["name"]

    def __repr__(self) -> str:
        distinct = {split: list(dict.fromkeys(map(repr, values))) for split, values in self.values.items()}
        return f"Column({self.spec}, distinct={distinct})"


@dataclass
class Case:
    """A data set and what is run on it. `hazards` are the reasons for which it may be refused, in words."""

    columns: list[Column]
    data_format: str
    expid: str
    words: dict[str, Any]
    damage: str | None = None
    hazards: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> Path:
        """Write raw files and a config directory into the folder; the directory."""
        raw, configs = folder / "raw", folder / "configs"
        (configs / "method_config").mkdir(parents=True)
        raw.mkdir()
        for split, rows in ROWS.items():
            table = {column.name: self._as_written(column, split) for column in self.columns}
            clicks = np.random.default_rng(len(split)).permutation(np.arange(rows) % 2)
            frame = pd.DataFrame({**table, "click": clicks})
            frame = DAMAGES[self.damage](frame) if self.damage and split != "train" else frame
            path = raw / f"{split}.{self.data_format}"
            frame.to_csv(path, index=False) if self.data_format == "csv" else frame.to_parquet(path, index=False)
        files = {f"{split}_data": str(raw / f"{split}.{self.data_format}") for split in ROWS}
        shop = {
            "data_root": str(folder / "data"),
            "data_format": self.data_format,
            "rebuild_dataset": True,
            **files,
            "field_config": str(folder / "words.yaml"),
            "feature_cols": [column.spec for column in self.columns],
            "label_col": {"name": "click", "dtype": "float"},
        }
        base = {"model_root": str(folder / "runs"), "num_threads": 1, "verbose": 0, "pictures": False}
        base |= {"batch_size": 16, "epochs": 1, "embedding_dim": 4}
        (folder / "words.yaml").write_text(
            yaml.safe_dump(self.words, allow_unicode=True, sort_keys=False), encoding="utf-8"
        )
        for name, entries in {"dataset_config": {"fuzz": shop}, "model_config": {"Base": base}}.items():
            (configs / f"{name}.yaml").write_text(
                yaml.safe_dump(entries, allow_unicode=True, sort_keys=False), encoding="utf-8"
            )
        return configs

    def _as_written(self, column: Column, split: str) -> Any:
        values = column.values[split]
        if self.data_format == "csv":
            splitter = column.spec.get("splitter", "^")
            values = [splitter.join(map(str, value)) if isinstance(value, list) else value for value in values]
            return pd.Series(values, dtype=object)
        dtype = {"int": "Int64", "float": "float64"}.get(column.spec["dtype"])
        numbers = dtype and not any(isinstance(value, str | list) for value in values)
        return pd.Series(values, dtype=dtype if numbers else object)

    def expected_vocabulary(self, column: Column) -> set[str]:
        """The values that get an id of their own, counted with pandas alone."""
        values = pd.Series(column.values["train"], dtype=object)
        if column.spec["dtype"] != "str":
            values = values.replace(" ", None)  # polars reads a cell of spaces as no number
        if column.spec["type"] == "sequence":
            values = values.explode()
        fill = column.spec.get("fill_na", {"str": "", "int": 0, "float": 0.0}[column.spec["dtype"]])
        # FuxiCTR drops what is missing from the vocabulary where it is text, and gives a filled number an id.
        without = column.spec.get("fill_na", "")
        counts = values.where(values.notna(), fill).value_counts()
        kept = counts[counts >= column.spec.get("min_categr_count", 1)].index
        return {str(value) for value in kept if value != without}


def _values(draw: st.DrawFn, pool: list[Any], missing: float, rows: int, seed: int) -> list[Any]:
    chosen = np.random.default_rng([seed, rows])
    picked = [pool[index] for index in chosen.integers(0, len(pool), rows)]
    return [None if chosen.random() < missing else value for value in picked]


def _texts(splitter: str | None = None) -> st.SearchStrategy[str]:
    characters = CHARACTERS.replace(splitter, "") if splitter else CHARACTERS
    return st.text(characters, min_size=1, max_size=12)


@st.composite
def columns(draw: st.DrawFn, name: str, earlier: list[Column], data_format: str, hazards: list[str]) -> Column:
    """One column of any type that FuxiCTR has, with values that suit it, and sometimes one that does not."""
    kind = draw(st.sampled_from(["categorical", "categorical", "numeric", "sequence", "embedding", "meta"]))
    dtype = draw(
        st.sampled_from(
            {"numeric": ["float", "int"], "sequence": ["str"], "embedding": ["float"]}.get(
                kind, ["str", "int", "float"]
            )
        )
    )
    spec: dict[str, Any] = {"name": name, "active": True, "dtype": dtype, "type": kind}
    numbers = {"int": st.integers(-(2**31), 2**31), "float": st.floats(-1e6, 1e6).map(lambda x: round(x, 3) + 0.0)}
    elements = numbers.get(dtype, _texts())
    if kind == "sequence":
        spec["splitter"] = draw(st.sampled_from("^|,;"))
        lists = st.lists(_texts(spec["splitter"]), min_size=0 if data_format == "parquet" else 1, max_size=5)
        elements = lists
        spec |= draw(st.fixed_dictionaries({}, optional={"max_len": st.integers(1, 4), "padding": st.just("pre")}))
        shared = [c.name for c in earlier if c.spec["type"] == "categorical" and c.spec["dtype"] == "str"]
        if shared and draw(st.booleans()):
            spec["share_embedding"] = draw(st.sampled_from(shared))
    if kind == "embedding":
        width = draw(st.integers(1, 4))
        spec["pretrain_dim"] = width
        elements = st.lists(st.floats(-2, 2, width=16), min_size=width, max_size=width)
        hazards.append("no vectors in csv, none for models with a linear layer")
    if kind == "meta":
        hazards.append("a meta column may have no value")
    if kind in ("categorical", "sequence") and draw(st.booleans()):
        spec["min_categr_count"] = draw(st.integers(1, 4))
        hazards.append("a vocabulary may be empty")
    if kind == "numeric":
        spec |= draw(st.sampled_from([{}, {}, {"normalizer": "StandardScaler"}, {"normalizer": "MinMaxScaler"}]))
        if "normalizer" in spec:
            hazards.append("a constant column cannot be scaled")
    elif dtype == "str" and kind == "categorical":
        spec |= draw(st.sampled_from([{}, {}, {"fill_na": ""}, {"fill_na": "none"}]))
    pool = draw(st.lists(elements, min_size=1, max_size=6))
    odd = {
        "numeric": [float("nan"), float("inf"), -float("inf"), "many", 1e39],
        "sequence": [[]],
        "embedding": [[], [1.0] * 9, [float("nan")]],
    }.get(kind, [" ", "NA"])
    if draw(st.integers(0, 7)) == 0 and (data_format == "csv" or kind in ("sequence", "embedding") or dtype == "str"):
        pool = [*pool, draw(st.sampled_from(odd))]
        hazards.append(f"an odd value in {name!r}")
    missing, seed = draw(st.sampled_from([0.0, 0.0, 0.2, 1.0])), draw(st.integers(0, 99))
    if missing == 1:
        hazards.append(f"no value in {name!r}")
    return Column(spec, {split: _values(draw, pool, missing, rows, seed) for split, rows in ROWS.items()})


@st.composite
def cases(draw: st.DrawFn, methods: tuple[str, ...] = ("",)) -> Case:
    """A data set, an expid, and sometimes something in the config that is wrong."""
    hazards: list[str] = []
    data_format = draw(st.sampled_from(["csv", "csv", "parquet"]))
    names = draw(st.lists(st.sampled_from(PLAIN_NAMES), min_size=2, max_size=4, unique=True))
    if draw(st.integers(0, 5)) == 0:
        names[-1] = draw(st.sampled_from(HARD_NAMES))
        hazards.append(f"the name {names[-1]!r}")
    made: list[Column] = []
    for name in names:
        made.append(draw(columns(name, made, data_format, hazards)))
    if draw(st.integers(0, 7)) == 0:
        made[-1].spec[draw(st.sampled_from(MISSPELT))] = 1
        hazards.append("misspelt")
    damage = draw(st.sampled_from([None] * 8 + [*DAMAGES]))
    if damage not in (None, *HARMLESS):
        hazards.append(damage)
    words: dict[str, Any] = {"about": "clicks", "fields": {name: f"word {index}" for index, name in enumerate(names)}}
    if draw(st.booleans()):
        keys = st.one_of(st.integers(-3, 3), st.booleans(), st.none(), st.dates(), st.floats(0, 1), _texts())
        words["values"] = {names[0]: draw(st.dictionaries(keys, _texts(), max_size=4))}
        hazards.append("words of values that there are not")
    backbone, method = draw(st.sampled_from(BACKBONES)), draw(st.sampled_from(methods))
    if backbone == "LR" and method:
        hazards.append("LR shows no embeddings")
    return Case(made, data_format, "_".join(filter(None, (backbone, method, "fuzz"))), words, damage, hazards)
