"""Looks up the embeddings of all columns at once; FuxiCTR looks up one column after the other, and stacks them.

Shape symbols: `B` rows of a batch, `F` columns, `D` width.
"""

import contextlib
import operator
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from fuxictr.pytorch.layers import FeatureEmbeddingDict
from torch import Tensor, nn

AFFECTS_VECTORS = False  # see common/code_digest.py

ALONE_FROM = 2**26  # bytes: a table as large is not moved together with others, which would take its memory twice


class Column(NamedTuple):
    """What is looked up of a column: ids `[B]` in a table."""

    table: Tensor
    ids: Tensor


class Found(NamedTuple):
    """The embeddings of some columns: `whole` `[B, F, D]`, and each column's `[B, D]` in the same memory."""

    names: Sequence[str]
    whole: Tensor
    columns: Sequence[Tensor]


class Lookups(ABC):
    """Looks up columns at once, or leaves them to FuxiCTR's layers."""

    _is_used = False

    @property
    def at_once(self) -> bool:
        """Whether columns are looked up at once, now."""
        return self._is_used

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """In the block, columns are looked up at once."""
        self._is_used = True
        try:
            yield
        finally:
            self._is_used = False

    @abstractmethod
    def look_up(self, columns: Mapping[str, Column]) -> Iterable[Found]:
        """What is found of columns together; of columns that are in none of it, each is looked up by itself."""


def look_up_at_once(model: nn.Module, lookups: Lookups) -> None:
    """Make the layers of a FuxiCTR model look up their columns by `lookups`."""
    for layer in model.modules():
        if type(layer) is FeatureEmbeddingDict and "forward" not in vars(layer):
            vars(layer).update(forward=partial(_embed, layer, lookups), dict2tensor=partial(_to_tensor, layer))


class _Embeddings(OrderedDict[str, Tensor]):
    """Embeddings as FuxiCTR hands them on, those of some columns found at once."""

    def __init__(self, embeddings: Mapping[str, Tensor], found: Found):
        super().__init__(embeddings)
        self.found = found

    def are_whole(self, features: Iterable[str]) -> bool:
        """Whether they are all that was found, in the order of the features."""
        names = [name for name in features if name in self]
        return names == self.found.names and all(map(operator.is_, map(self.__getitem__, names), self.found.columns))


def _embed(
    layer: FeatureEmbeddingDict, lookups: Lookups, inputs: Mapping[str, Tensor], *args: Any, **kwargs: Any
) -> OrderedDict[str, Tensor]:
    """The layer's forward pass."""
    each = partial(type(layer).forward, layer)
    selects = any(args) or any(kwargs.values())  # columns by their sources or types
    if selects or not lookups.at_once:
        return each(inputs, *args, **kwargs)
    found = [*lookups.look_up(_columns_of(layer, inputs))]
    embeddings = {name: column for part in found for name, column in zip(part.names, part.columns, strict=True)}
    others = each({name: column for name, column in inputs.items() if name not in embeddings})
    embeddings |= others
    ordered = OrderedDict((name, embeddings[name]) for name in inputs if name in embeddings)
    return _Embeddings(ordered, found[0]) if len(found) == 1 else ordered


def _columns_of(layer: FeatureEmbeddingDict, inputs: Mapping[str, Tensor]) -> dict[str, Column]:
    """The columns of single ids that have no encoder behind the table, in the order of the features."""
    columns, modules, encoders = {}, layer.embedding_layers, layer.feature_encoders
    for name, spec in layer._feature_map.features.items():
        if spec["type"] == "categorical" and name in inputs and name in modules and name not in encoders:
            module, ids = modules[name], inputs[name]
            if isinstance(module, nn.Embedding) and ids.dim() == 1:
                columns[name] = Column(module.weight, ids.long())
    return columns


def _to_tensor(
    layer: FeatureEmbeddingDict, embeddings: Mapping[str, Tensor], flatten_emb: bool = False, *args: Any, **kwargs: Any
) -> Tensor:
    """The layer's `dict2tensor`."""
    selects = any(args) or any(kwargs.values())
    if selects or not isinstance(embeddings, _Embeddings) or not embeddings.are_whole(layer._feature_map.features):
        return type(layer).dict2tensor(layer, embeddings, flatten_emb, *args, **kwargs)
    whole = embeddings.found.whole
    return whole.flatten(1) if flatten_emb else whole
