"""The embedding tables of a served model, whose columns are looked up at once: most of the time of a small batch."""

from collections import defaultdict
from collections.abc import Iterator, Mapping

import torch
from fuxictr.pytorch.layers import FeatureEmbeddingDict
from fuxictr.pytorch.models import BaseModel
from torch import Tensor, nn

from fuxictr_llm.host.batches import moved_to
from fuxictr_llm.host.lookups import ALONE_FROM, Column, Found, Lookups, look_up_at_once


class JoinedTables(Lookups):
    """Tables of the same width in one tensor; they stay the same parameters. Predictions stay the same, bit by bit.

    Args:
        model: is not trained any more, and is asked for ids that its tables have.
    """

    def __init__(self, model: BaseModel):
        self._weights: list[Tensor] = []
        self._places: dict[Tensor, tuple[int, int]] = {}  # of a table: which of the weights, and its first row in it
        self._starts: dict[tuple[Tensor, ...], Tensor] = {}
        alike = defaultdict(list)
        for table in _tables_of(model):
            if table.nbytes < ALONE_FROM:
                alike[table.shape[1], table.dtype, table.device].append(table)
        for tables in alike.values():
            if len(tables) > 1:
                self._join(tables)
        look_up_at_once(model, self)

    def _join(self, tables: list[Tensor]) -> None:
        weight, start = torch.cat([table.detach() for table in tables]), 0
        for table in tables:
            table.data = weight[start : start + len(table)]
            self._places[table] = len(self._weights), start
            start += len(table)
        self._weights.append(weight)

    def look_up(self, columns: Mapping[str, Column]) -> Iterator[Found]:
        """What is found of the columns of each joined tensor."""
        of_weights = defaultdict(list)
        for name, column in columns.items():
            if column.table in self._places:
                of_weights[self._places[column.table][0]].append(name)
        for index, names in of_weights.items():
            if len(names) > 1:
                tables, ids = zip(*(columns[name] for name in names), strict=True)
                places = torch.stack(ids, dim=1).add_(self._starts_of(tables))
                rows = self._weights[index].index_select(0, places.view(-1))
                whole = rows.view(len(places), len(names), rows.shape[1])
                yield Found(names, whole, whole.unbind(1))

    def _starts_of(self, tables: tuple[Tensor, ...]) -> Tensor:
        if tables not in self._starts:
            starts = [self._places[table][1] for table in tables]
            self._starts[tables] = moved_to(tables[0].device, torch.tensor(starts))
        return self._starts[tables]


def _tables_of(model: BaseModel) -> list[Tensor]:
    """The tables of single ids, each once; of a column that has another one's, the ids are in the table."""
    tables: dict[Tensor, None] = {}
    for layer in model.modules():
        if type(layer) is FeatureEmbeddingDict:
            for name, module in layer.embedding_layers.items():
                size = layer._feature_map.features[name].get("vocab_size", 0)
                if type(module) is nn.Embedding and module.max_norm is None and size <= module.num_embeddings:
                    tables[module.weight] = None
    return [*tables]
