"""FuxiCTR's descriptions of columns: their names, feature maps, and groups of fields written as tuples.

FuxiCTR keeps embeddings by column name, so that some names cannot be used; it wants groups of fields that are read side
by side as tuples, where YAML and JSON have lists.
"""

import contextlib
import inspect
import json
import re
import tempfile
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from fuxictr.features import FeatureMap
from torch import nn

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.host.evaluated import check_columns

# Names of the columns that methods add to a batch.
ADDED = re.compile(r"llm_vector(_.+)?|llm_vectors_\d+|llm_text_\d+")


def check_declared(params: Mapping[str, Any]) -> None:
    """Check the active columns and the labels of a data set's config.

    Raises:
        UserError: a name cannot be used, or is declared twice.
    """
    columns = [col for col in feature_columns(params) if col.get("active", True)]
    labels = [col["name"] for col in label_columns(params)]
    names = [*labels, *(col["name"] for col in columns)]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        what = "a label and a feature" if twice[0] in labels else "a column"
        raise UserError(
            f"{twice[0]!r} is {what} more than once in feature_cols and label_col; leave one, or set active: false"
        )
    for name in names:
        # polars would take a name that reads as a pattern for other columns.
        if not name.strip() or pl.col(name).meta.has_multiple_outputs():
            raise _wrong(name, "polars reads it as a pattern" if name.strip() else "it is empty", copied=False)
    used = params.get("use_features") or [col["name"] for col in columns]
    check_embedded([col["name"] for col in columns if col["type"] != "meta" and col["name"] in used], params)


def check_embedded(names: Iterable[str], params: Mapping[str, Any]) -> None:
    """Check the names of the columns that a model reads.

    Raises:
        UserError: FuxiCTR cannot keep an embedding under a name, or a method adds a column of that name.
    """
    for name in names:
        try:
            # Where FuxiCTR keeps its embeddings: it has attributes of its own, and paths with dots.
            nn.ModuleDict({name: nn.Identity()})
        except (KeyError, TypeError) as error:
            raise _wrong(name, f"embeddings are kept by name, and {error.args[0]}", copied=bool(name)) from error
        if params.get("method") and ADDED.fullmatch(name):
            raise _wrong(name, "a method adds a column of that name")


def _wrong(name: str, why: str, copied: bool = True) -> UserError:
    other = re.sub(r"\W", "_", name) + "_"
    copy = f", or declare {{name: {other}, preprocess: copy_from({name}), ...}} in its place" if copied else ""
    return UserError(f"a column cannot be called {name!r}: {why}; rename it in the raw files{copy}")


def describe_feature_map(feature_map: FeatureMap) -> dict[str, Any]:
    """What a model's constructor reads of a feature map, as values that JSON can hold."""
    return {
        "dataset_id": feature_map.dataset_id,
        "embedding_dim": feature_map.default_emb_dim,
        "labels": list(feature_map.labels),
        "features": {name: dict(spec) for name, spec in feature_map.features.items()},
    }


def make_feature_map(described: Mapping[str, Any], where: str) -> FeatureMap:
    """The feature map that `describe_feature_map` described; `where` names the description in errors.

    Raises:
        UserError: a column has an encoder that FuxiCTR must not evaluate.
    """
    check_columns(described["features"], where)
    feature_map = FeatureMap(described["dataset_id"], data_dir="")
    feature_map.features = OrderedDict((name, dict(spec)) for name, spec in described["features"].items())
    feature_map.labels = list(described["labels"])
    feature_map.default_emb_dim = described["embedding_dim"]
    feature_map.num_fields = feature_map.get_num_fields()
    feature_map.set_column_index()
    return feature_map


def with_features(feature_map: FeatureMap, features: Mapping[str, Mapping[str, Any]]) -> FeatureMap:
    """A copy of the feature map with these columns in place of its own."""
    copy = FeatureMap(feature_map.dataset_id, feature_map.data_dir)
    copy.features.update({name: dict(spec) for name, spec in features.items()})
    copy.labels, copy.group_id = feature_map.labels, feature_map.group_id
    copy.default_emb_dim = feature_map.default_emb_dim
    copy.total_features = feature_map.total_features
    copy.num_fields = copy.get_num_fields()
    copy.set_column_index()
    return copy


def with_more_features(
    feature_map: FeatureMap, added: Mapping[str, Mapping[str, Any]], asked_by: str = "a method"
) -> FeatureMap:
    """A copy of the feature map with more columns behind its own.

    Raises:
        UserError: a column of that name belongs to it already.
    """
    if taken := [name for name in added if name in feature_map.features]:
        raise UserError(
            f"{asked_by} adds the column {taken[0]!r}, and data set {feature_map.dataset_id!r} has one of that name; "
            "rename it there"
        )
    return with_features(feature_map, {**feature_map.features, **added})


@contextlib.contextmanager
def without_pretrained_files(feature_map: FeatureMap) -> Iterator[None]:
    """In the block, models are built without the files of pretrained embeddings: their weights are loaded later.

    FuxiCTR's constructors read such a file and feature_vocab.json; here they find empty ones.
    """
    specs = {name: spec for name, spec in feature_map.features.items() if "pretrained_emb" in spec}
    if not specs:
        yield
        return
    before = {name: spec["pretrained_emb"] for name, spec in specs.items()}, feature_map.data_dir
    with tempfile.TemporaryDirectory() as folder:
        # FuxiCTR looks at the second key of the vocabulary, whichever it is.
        vocabulary: dict[str, dict[str, int]] = {name: {} for name in ("__first__", "__second__", *specs)}
        (Path(folder) / "feature_vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        for spec in specs.values():
            # Its width: FuxiCTR takes the embedding's where none is given.
            width = spec.get("pretrain_dim") or spec.get("embedding_dim") or feature_map.default_emb_dim
            spec["pretrained_emb"] = str(Path(folder) / f"{width}.npz")
            np.savez(spec["pretrained_emb"], key=np.array([], dtype=str), value=np.zeros((0, width)))
        feature_map.data_dir = folder
        try:
            yield
        finally:
            for name, spec in specs.items():
                spec["pretrained_emb"] = before[0][name]
            feature_map.data_dir = before[1]


def as_lists(params: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with lists in place of tuples.

        din_target_field: [!!python/tuple [item_id, cate_id]]  # FuxiCTR's configs
        din_target_field: [[item_id, cate_id]]                 # the same

    JSON has no tuples, and a run's identity must not depend on which of the two was written. A value that is a tuple of
    texts is one group of fields, `[[a, b]]`.

    Raises:
        UserError: a value holds itself, or half of a character, as a file name in another encoding than UTF-8 may.
    """
    try:
        return _all_listed(params)
    except RecursionError as error:
        raise UserError("a value of the config holds itself; a YAML anchor must not stand inside of itself") from error
    except UnicodeEncodeError as error:
        raise UserError(f"the config holds {error.object[:80]!r}, which cannot be written as text (UTF-8)") from error


def _all_listed(params: Mapping[str, Any]) -> dict[str, Any]:
    alone = {key: [value] for key, value in params.items() if isinstance(value, tuple) and _is_group(value)}
    return _listed({**params, **alone})


def as_tuples(params: Mapping[str, Any], cls: type) -> dict[str, Any]:
    """Settings as a model's constructor needs them: tuples where its defaults or the names of its keys ask for them.

    FuxiCTR's models look at the type: in `[[a, b]]` they take the inner list for the name of a field.
    """
    defaults = _defaults(cls)
    return {key: _tupled(key, value, defaults[key]) if key in defaults else value for key, value in params.items()}


def _tupled(key: str, value: Any, default: Any) -> Any:
    if not isinstance(value, list):
        return value
    if isinstance(default, tuple):
        if len(value) == 1 and isinstance(value[0], list):
            return tuple(value[0])
        if not any(isinstance(each, list) for each in value):
            return tuple(value)
    inner = {type(each) for each in default} if isinstance(default, list) else set()
    if tuple in inner or (list not in inner and ("field" in key or isinstance(default, tuple))):
        return [tuple(each) if isinstance(each, list) and _is_group(each) else each for each in value]
    return value


def _is_group(value: list | tuple) -> bool:
    return len(value) > 0 and all(isinstance(each, str) for each in value)


def _listed(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_listed(each) for each in value]
    if isinstance(value, str) and not value.isascii():
        value.encode("utf-8")
    if not isinstance(value, dict):
        return value
    # A digest sorts keys, and a record has them as texts.
    sortable = all(isinstance(key, int | float) for key in value)
    return {key if sortable else _listed(str(key)): _listed(each) for key, each in value.items()}


def _defaults(cls: type) -> dict[str, Any]:
    """The default values of the constructors of a model's class and its bases."""
    defaults: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if "__init__" in vars(base) and base.__module__.split(".")[0] not in ("torch", "builtins"):
            parameters = inspect.signature(vars(base)["__init__"]).parameters
            defaults |= {name: parameter.default for name, parameter in parameters.items()}
    return defaults


def feature_columns(params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The declared feature columns, one dict for each column."""
    columns = []
    for col in params["feature_cols"]:
        names = col["name"] if isinstance(col["name"], list) else [col["name"]]
        columns += [{**col, "name": name} for name in names]
    return columns


def label_columns(params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The declared labels."""
    return params["label_col"] if isinstance(params["label_col"], list) else [params["label_col"]]
