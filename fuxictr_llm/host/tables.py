"""The embedding tables of columns in any model, and more rows for them: ids that come after those of training.

FuxiCTR's models keep the embeddings of a column in `FeatureEmbeddingDict`s, one or many: FM has numbers for its linear
part and vectors beside them, FFM a table for each other field. Columns that share an embedding share some tables and
have others of their own.

Shape symbols: `V` ids of a column while its model was trained, `M` ids that are added, `D` width of a table.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FeatureEmbeddingDict
from fuxictr.pytorch.layers.embeddings.pretrained_embedding import PretrainedEmbedding
from fuxictr.pytorch.models import BaseModel
from torch import Tensor, nn

from fuxictr_llm.common.errors import UserError, reason_of
from fuxictr_llm.host.batches import predictions_of, synthetic_batch

# The key of a column's description with V, where it has ids that came after training.
FIRST_COLD_ID = "first_cold_id"


@dataclass(frozen=True)
class Table:
    """A table `[V, D]` of embeddings.

    Attributes:
        name: where it is in the model.
        embeddings: all modules of the model that have it as their weight.
        layers: those of FeatureEmbeddingDicts that it belongs to; itself, or one that has vectors of values.
        columns: those that read it.
    """

    name: str
    embeddings: tuple[nn.Embedding, ...]
    layers: tuple[nn.Module, ...]
    columns: tuple[str, ...]

    @property
    def weight(self) -> Tensor:
        """`[V, D]`."""
        return self.embeddings[0].weight

    def set_weight(self, weight: Tensor) -> None:
        """Give all modules the same other parameter."""
        for embedding in self.embeddings:
            embedding.weight, embedding.num_embeddings = weight, len(weight)


def tables_of(model: nn.Module, columns: Sequence[str], rows: int) -> list[Table]:
    """The tables that a model has for columns of one vocabulary.

    Args:
        rows: V.

    Raises:
        UserError: there is none, or a layer of these columns has no table of V rows.
    """
    found: dict[int, Table] = {}
    modules = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    for name, module in model.named_modules():
        if not isinstance(module, FeatureEmbeddingDict):
            continue
        for column in columns:
            if column not in module.embedding_layers:
                continue
            layer = module.embedding_layers[column]
            tables = [
                part for part in layer.modules() if isinstance(part, nn.Embedding) and part.num_embeddings == rows
            ]
            if not tables:
                raise _not_found(model, column, f"{name}.{column} is a {type(layer).__name__} without one")
            for place, table in enumerate(tables):
                known = found.get(id(table.weight))
                label = known.name if known else f"{name}.embedding_layers.{column}"
                label += f".{place}" if len(tables) > 1 and not known else ""
                tied = tuple(each for each in modules if each.weight is table.weight)
                layers = dict.fromkeys([*(known.layers if known else ()), layer])
                readers = dict.fromkeys([*(known.columns if known else ()), column])
                found[id(table.weight)] = Table(label, tied, tuple(layers), tuple(readers))
    if not found:
        raise _not_found(model, columns[0], "it has no FeatureEmbeddingDict with that column")
    return list(found.values())


def _not_found(model: nn.Module, column: str, why: str) -> UserError:
    return UserError(
        f"cold_values: {type(model).__name__} has no table of embeddings for column {column!r} that can get more rows "
        f"({why}); leave the column out of cold_fields, or take a model that embeds by FuxiCTR's FeatureEmbedding"
    )


@torch.no_grad()
def add_rows(table: Table, rows: Tensor) -> None:
    """Put rows `[M, D]` behind those of a table; an optimizer knows nothing of them."""
    longer = torch.cat([table.weight.detach(), rows.to(table.weight)])
    table.set_weight(nn.Parameter(longer, requires_grad=table.weight.requires_grad))
    for layer in table.layers:
        if isinstance(layer, PretrainedEmbedding):
            layer.oov_idx = len(longer) - 1  # FuxiCTR takes all ids beyond it for zero


def describe_rows(feature_map: FeatureMap, columns: Iterable[str], first: int, count: int) -> None:
    """Note in a feature map that columns have `count` more ids from `first` on."""
    for column in columns:
        spec = feature_map.features[column]
        spec |= {"vocab_size": first + count, FIRST_COLD_ID: first}
        if "oov_idx" in spec:
            spec["oov_idx"] = first + count - 1  # where FuxiCTR's layer takes what is beyond for zero


def check_tables(model: BaseModel, columns: Mapping[str, Sequence[str]], added: Mapping[str, int]) -> None:
    """Check, without changing it, that a model can be given more ids.

    Args:
        columns: a column, and all that share its embedding.
        added: M of each.

    Raises:
        UserError: it has no tables for a column, or its forward pass does not take the new ids.
    """
    features = model.feature_map.features
    tables = {owner: tables_of(model, sharing, features[owner]["vocab_size"]) for owner, sharing in columns.items()}
    batch = synthetic_batch(model.feature_map)
    for owner, sharing in columns.items():
        for column in sharing:
            batch[column] = torch.full_like(batch[column], features[owner]["vocab_size"] + added[owner] - 1)
    training = model.training
    with _restored([table for of_column in tables.values() for table in of_column]), torch.random.fork_rng(devices=[]):
        for owner, of_column in tables.items():
            for table in of_column:
                add_rows(table, table.weight.new_zeros(added[owner], table.weight.shape[1]))
        try:
            with torch.no_grad():
                predictions_of(model, model.eval().forward(batch))
        except Exception as error:  # anyone's class can fail in any way
            names = ", ".join(map(repr, columns))
            raise UserError(
                f"cold_values: {type(model).__name__} takes no new ids of {names} ({reason_of(error)}): it has a table "
                "of its own besides FuxiCTR's; name other columns with cold_fields, or leave cold_values out"
            ) from error
        finally:
            model.train(training)


@contextmanager
def _restored(tables: Sequence[Table]) -> Iterator[None]:
    """After the block, tables have the very parameters that they had before."""
    weights = [(table, table.weight) for table in tables]
    layers = [layer for table in tables for layer in table.layers if isinstance(layer, PretrainedEmbedding)]
    oov_ids = [(layer, layer.oov_idx) for layer in layers]
    try:
        yield
    finally:
        for table, weight in weights:
            table.set_weight(weight)
        for layer, oov_id in oov_ids:
            layer.oov_idx = oov_id
