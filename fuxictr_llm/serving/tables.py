"""The embedding tables of a served model, whose columns are looked up at once: most of the time of a small batch."""

from collections import defaultdict
from collections.abc import Iterator, Mapping

import torch
from fuxictr.pytorch.layers import FeatureEmbeddingDict
from fuxictr.pytorch.models import BaseModel
from torch import Tensor, nn

from fuxictr_llm.host.batches import moved_to
from fuxictr_llm.host.lookups import ALONE_FROM, Column, Found, Lookups, look_up_at_once
from fuxictr_llm.training.table_blocks import Block, Penalty, read_rows


class JoinedTables(Lookups):
    """Tables of the same width in one tensor; they stay the same parameters. Predictions stay the same, bit by bit.

    Args:
        model: is not trained any more, and is asked for ids that its tables have.
    """

    def __init__(self, model: BaseModel):
        alike = defaultdict(list)
        for table in _tables_of(model):
            if table.nbytes < ALONE_FROM:
                alike[table.shape[1], table.dtype, table.device].append(table)
        together = [dict.fromkeys(tables) for tables in alike.values() if len(tables) > 1]
        self._blocks = [Block.of_tables(tables, Penalty(0.0, 0.0), {}) for tables in together]
        self._starts: dict[tuple[Tensor, ...], Tensor] = {}
        look_up_at_once(model, self)

    def look_up(self, columns: Mapping[str, Column]) -> Iterator[Found]:
        """What is found of the columns of each block."""
        for block in self._blocks:
            names = [name for name, column in columns.items() if column.table in block.starts]
            if len(names) > 1:
                tables, ids = zip(*(columns[name] for name in names), strict=True)
                places = torch.stack(ids, dim=1).add_(self._starts_of(tables, block))
                rows = read_rows(block.weight, places.view(-1))
                whole = rows.view(len(places), len(names), rows.shape[1])
                yield Found(names, whole, whole.unbind(1))

    def _starts_of(self, tables: tuple[Tensor, ...], block: Block) -> Tensor:
        if tables not in self._starts:
            starts = torch.tensor([block.starts[table] for table in tables])
            self._starts[tables] = moved_to(block.weight.device, starts)
        return self._starts[tables]


def _tables_of(model: BaseModel) -> list[Tensor]:
    """The tables that have all ids of their columns, each once."""
    most_ids: dict[Tensor, int] = defaultdict(int)
    for layer in model.modules():
        if type(layer) is FeatureEmbeddingDict:
            for name, module in layer.embedding_layers.items():
                if type(module) is nn.Embedding and module.max_norm is None:
                    ids = layer._feature_map.features[name].get("vocab_size", 0)
                    most_ids[module.weight] = max(most_ids[module.weight], ids)
    return [table for table, ids in most_ids.items() if ids <= len(table)]
