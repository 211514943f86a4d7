"""What the tests of models that read histories share. Shape symbols: `B` rows, `L` length of a history."""

import torch
from fuxictr.features import FeatureMap
from torch import Tensor, nn

from fuxictr_llm.diagnosis.tiny import HISTORIES, NEGATIVES, tiny_batches, tiny_feature_map
from literal import build_backbone

TARGET, SEQUENCE = ["item_id", "cate_id"], ["click_history", "cate_history"]
# The constructor's arguments for the fields, of small models.
ARGUMENTS = {
    "DIN": ("din_target_field", "din_sequence_field"),
    "DIEN": ("dien_target_field", "dien_sequence_field"),
    "BST": ("bst_target_field", "bst_sequence_field"),
    "TransAct": ("target_item_field", "sequence_item_field"),
}
SMALL = {
    "DIN": {"dnn_hidden_units": [6], "attention_hidden_units": [5]},
    "DIEN": {"dnn_hidden_units": [6], "attention_hidden_units": [5]},
    "BST": {"dnn_hidden_units": [6]},
    "TransAct": {"dcn_hidden_units": [6], "dcn_cross_layers": 1, "dim_feedforward": 7},
}


def history_map(negatives: bool = False) -> FeatureMap:
    """Fields of every type; two histories, of items and categories, are read one by one."""
    return tiny_feature_map(whole=[*HISTORIES, *(NEGATIVES if negatives else ())])


def reader(name: str, apart: bool = False, negatives: bool = False, **changes) -> nn.Module:
    """A small model that reads both histories, side by side in one pair or `apart` in two."""
    fields = {} if not apart else dict(zip(ARGUMENTS[name], (TARGET, SEQUENCE), strict=True))
    return build_backbone(name, history_map(negatives), **{**SMALL[name], **fields, **changes})


def histories(feature_map: FeatureMap, rows: int = 12, padded: str = "front") -> dict[str, Tensor]:
    """A batch whose histories have 0, 1, ..., L, 0, 1, ... real ids, padded in `front` or `behind`."""
    batch = tiny_batches(feature_map, rows)[0]
    return padded_behind(batch) if padded == "behind" else batch


def padded_behind(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch with its histories' padding behind what is real."""

    def moved(ids: Tensor) -> Tensor:
        return torch.stack([torch.cat([row[row != 0], row[row == 0]]) for row in ids])

    return {name: moved(column) if name in HISTORIES else column for name, column in batch.items()}


def embeddings_of(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """`[B, D]` of each field, `[B, L, D]` of a history."""
    return model.embedding_layer(model.get_inputs(batch))


def pair_of(embeddings: dict[str, Tensor], batch: dict[str, Tensor], row: int) -> tuple[Tensor, list[Tensor]]:
    """The target `[2 D]` of a row and its real history, a vector `[2 D]` each."""
    target = torch.cat([embeddings[name][row] for name in TARGET])
    real = torch.nonzero(batch[SEQUENCE[0]][row]).flatten().tolist()
    return target, [torch.cat([embeddings[name][row, step] for name in SEQUENCE]) for step in real]


def others(embeddings: dict[str, Tensor], feature_map: FeatureMap, row: int) -> list[Tensor]:
    """The vectors of a row's other fields, in feature-map order."""
    left_out = {*HISTORIES, *NEGATIVES}
    return [embeddings[name][row] for name in feature_map.features if name in embeddings and name not in left_out]
