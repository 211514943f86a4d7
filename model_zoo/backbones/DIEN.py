from typing import Any, Literal

import torch
import torch.nn.functional as functional
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FeatureEmbeddingDict, MLP_Block
from torch import Tensor, nn

from ..sequence_fields import (
    Fields,
    check_field,
    check_pooled,
    concat_fields,
    field_groups,
    field_pairs,
    other_embeddings,
    packing_order,
    reorder,
)
from .base import Activations, Backbone, Rates

GRU_TYPES = ("GRU", "AIGRU", "AGRU", "AUGRU")
ATTENTION_TYPES = ("bilinear_attention", "dot_attention", "din_attention")


class DIEN(Backbone):
    """A GRU over the user's history, a second GRU weighted by attention to the target, and an MLP on top.

    Zhou et al., "Deep Interest Evolution Network for Click-Through Rate Prediction", AAAI 2019, equations 2-12.
    FuxiCTR's class reads padding as items where a history is padded in front, and fails for `AIGRU`, for
    `aux_loss_alpha` and for batches with at most one history that is not empty; this one takes all of them. The
    auxiliary loss (equation 6) is a mean over real steps, and is that of the last pair of fields.

    On a GPU, every step waits for the device with `din_attention`: rows without a history are left out of Dice's batch
    statistics, as in FuxiCTR, and how many there are decides about shapes.
    """

    embedding_cls = FeatureEmbeddingDict

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        dnn_hidden_units: list[int] = [200, 80],
        dnn_activations: Activations = "ReLU",
        embedding_dim: int = 16,
        net_dropout: Rates = 0,
        batch_norm: bool = True,
        dien_target_field: Fields = [("item_id", "cate_id")],
        dien_sequence_field: Fields = [("click_history", "cate_history")],
        dien_neg_seq_field: Fields = [("neg_click_history", "neg_cate_history")],
        gru_type: Literal["GRU", "AIGRU", "AGRU", "AUGRU"] = "AUGRU",
        enable_sum_pooling: bool = False,
        attention_dropout: Rates = 0,
        attention_type: Literal["bilinear_attention", "dot_attention", "din_attention"] = "bilinear_attention",
        attention_hidden_units: list[int] = [80, 40],
        attention_activation: Activations = "Dice",
        use_attention_softmax: bool = True,
        aux_hidden_units: list[int] = [100, 50],
        aux_activation: Activations = "ReLU",
        aux_loss_alpha: float = 0,
        **shared: Any,
    ):
        super().__init__(feature_map, embedding_dim=embedding_dim, **shared)
        if gru_type not in GRU_TYPES:
            raise ValueError(f"gru_type must be one of {', '.join(GRU_TYPES)} (got {gru_type!r})")
        self.pairs = field_pairs(
            feature_map, dien_target_field=dien_target_field, dien_sequence_field=dien_sequence_field
        )
        self.aux_loss_alpha, self.enable_sum_pooling = aux_loss_alpha, enable_sum_pooling
        self._set_fields_left_out(dien_neg_seq_field)
        self.extraction_modules = nn.ModuleList()
        self.evolving_modules = nn.ModuleList()
        self.attention_modules = nn.ModuleList()
        for target, _ in self.pairs:
            width = embedding_dim * len(target)
            self.extraction_modules.append(nn.GRU(width, width, batch_first=True))
            attentive = gru_type in ("AGRU", "AUGRU")
            self.evolving_modules.append(AttentionalGRU(width, gru_type) if attentive else PlainGRU(width, width))
            if gru_type != "GRU":
                mlp: dict[str, Any] = {
                    "hidden_units": attention_hidden_units,
                    "hidden_activations": attention_activation,
                }
                mlp["dropout_rates"] = attention_dropout
                self.attention_modules.append(Attention(width, attention_type, use_attention_softmax, mlp))
        widths = [embedding_dim * len(target) * (3 if enable_sum_pooling else 1) for target, _ in self.pairs]
        self.dnn = MLP_Block(
            input_dim=feature_map.sum_emb_out_dim() - embedding_dim * len(self.left_out) + sum(widths),
            output_dim=1,
            hidden_units=dnn_hidden_units,
            hidden_activations=dnn_activations,
            dropout_rates=net_dropout,
            batch_norm=batch_norm,
        )
        if aux_loss_alpha > 0:
            self.aux_net = MLP_Block(
                input_dim=2 * embedding_dim * len(self.pairs[-1][0]),
                output_dim=1,
                hidden_units=aux_hidden_units,
                hidden_activations=aux_activation,
                output_activation="Sigmoid",
                dropout_rates=net_dropout,
            )
        self.start()

    def _set_fields_left_out(self, dien_neg_seq_field: Fields) -> None:
        """Check the negatives, which the auxiliary loss alone needs, and list the sequences that the MLP leaves out."""
        negatives = field_groups(dien_neg_seq_field)
        if self.aux_loss_alpha > 0:
            if [len(names) for names in negatives] != [len(sequence) for _, sequence in self.pairs]:
                raise ValueError(
                    f"aux_loss_alpha {self.aux_loss_alpha} needs as many fields in dien_neg_seq_field as in "
                    f"dien_sequence_field (got {dien_neg_seq_field!r})"
                )
            for name in sum(negatives, ()):
                check_field(self.feature_map, "dien_neg_seq_field", name, sequence=True)
        self.negatives = negatives[-1] if self.aux_loss_alpha > 0 else ()
        named = [*(sequence for _, sequence in self.pairs), *negatives]
        self.left_out = [name for name in self.feature_map.features if name in sum(named, ())]
        check_pooled(self.feature_map, self.left_out)

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        X = self.get_inputs(inputs)
        embeddings = self.embedding_layer(X)
        parts, shown = [], {}
        for index, (target, sequence) in enumerate(self.pairs):
            real = X[sequence[0]] > 0
            order = packing_order(real)
            real = real.gather(1, order)
            target_emb = concat_fields(embeddings, target)
            history = reorder(concat_fields(embeddings, sequence), order)
            interests = self.extraction_modules[index](history)[0] * real.unsqueeze(-1)
            weights = self.attention_modules[index](interests, target_emb, real) if self.attention_modules else None
            parts.append(self.evolving_modules[index](interests, weights, real))
            if self.enable_sum_pooling:
                pooled = (history * real.unsqueeze(-1)).sum(dim=1)
                parts += [pooled, target_emb * pooled]
            if self.negatives and index == len(self.pairs) - 1:
                others = reorder(concat_fields(embeddings, self.negatives), order)
                shown = {"interests": interests, "history": history, "others": others, "real": real}
        parts += other_embeddings(self.feature_map, embeddings, self.left_out)
        return {"y_pred": self.output_activation(self.dnn(torch.cat(parts, dim=-1))), **shown}

    def add_loss(self, return_dict: dict[str, Tensor], y_true: Tensor) -> Tensor:
        """The loss plus `aux_loss_alpha` times the auxiliary one: an interest tells the next item from a negative."""
        loss = super().add_loss(return_dict, y_true)
        if not self.negatives:
            return loss
        interests, real = return_dict["interests"][:, :-1], return_dict["real"][:, 1:].float()
        auxiliary = loss.new_zeros(())
        for items, label in ((return_dict["history"], torch.ones_like), (return_dict["others"], torch.zeros_like)):
            chance = self.aux_net(torch.cat([interests, items[:, 1:]], dim=-1)).squeeze(-1)
            auxiliary = auxiliary + functional.binary_cross_entropy(chance, label(chance), weight=real, reduction="sum")
        return loss + self.aux_loss_alpha * auxiliary / real.sum().clamp(min=1)


class Attention(nn.Module):
    """Attention weights `[B, L]` of the interests `[B, L, D]` for the target `[B, D]` (equation 8)."""

    def __init__(self, width: int, attention_type: str, use_softmax: bool, mlp: dict[str, Any]):
        super().__init__()
        if attention_type not in ATTENTION_TYPES:
            raise ValueError(f"attention_type must be one of {', '.join(ATTENTION_TYPES)} (got {attention_type!r})")
        self.attention_type, self.use_softmax = attention_type, use_softmax
        if attention_type == "bilinear_attention":
            self.W_kernel = nn.Parameter(torch.eye(width))
        elif attention_type == "din_attention":
            self.attn_mlp = MLP_Block(input_dim=4 * width, output_dim=1, **mlp)

    def forward(self, interests: Tensor, target: Tensor, real: Tensor) -> Tensor:
        if self.attention_type == "din_attention":
            scores = self._scores_of_mlp(interests, target, real)
        else:
            keys = interests @ self.W_kernel if self.attention_type == "bilinear_attention" else interests
            scores = (keys @ target.unsqueeze(-1)).squeeze(-1)
        if not self.use_softmax:
            return scores * real
        return scores.masked_fill(~real, -1e9).softmax(dim=-1)

    def _scores_of_mlp(self, interests: Tensor, target: Tensor, real: Tensor) -> Tensor:
        if torch.compiler.is_compiling() and not self.training:  # a graph cannot choose rows, and needs no statistics
            return self._scores_of_rows(interests, target)
        rows = real.any(dim=1)  # as in FuxiCTR, rows without a history do not count in Dice's batch statistics
        scores = interests.new_zeros(real.shape)
        if not bool(rows.any()):
            return scores
        scores[rows] = self._scores_of_rows(interests[rows], target[rows])
        return scores

    def _scores_of_rows(self, interests: Tensor, target: Tensor) -> Tensor:
        target = target.unsqueeze(1).expand_as(interests)
        pairs = torch.cat([target, interests, target - interests, target * interests], dim=-1)
        return self.attn_mlp(pairs.flatten(end_dim=1)).view(pairs.shape[:2])


class PlainGRU(nn.GRU):
    """torch's GRU, read at the last real step (`GRU`); for `AIGRU` the interests are scaled by their weights first.

    Equations 2-5 and 9.
    """

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__(input_size, hidden_size, batch_first=True)

    def forward(  # type: ignore[override]  # inherits nn.GRU for the names of its weights, not for its interface
        self, interests: Tensor, weights: Tensor | None, real: Tensor
    ) -> Tensor:
        states = super().forward(interests if weights is None else interests * weights.unsqueeze(-1))[0]
        last = (real.sum(dim=1) - 1).clamp(min=0)
        state = states[torch.arange(states.shape[0], device=states.device), last]
        return state * real.any(dim=1, keepdim=True)


class AttentionalGRU(nn.Module):
    """A GRU whose update gate is the attention weight (`AGRU`, equation 10), or is scaled by it (`AUGRU`, 11-12)."""

    def __init__(self, width: int, gru_type: str):
        super().__init__()
        self.gru_type = gru_type
        self.gru_cell = nn.ModuleDict({"x2h": nn.Linear(width, 3 * width), "h2h": nn.Linear(width, 3 * width)})

    def forward(self, interests: Tensor, weights: Tensor, real: Tensor) -> Tensor:
        """`[B, L, D]`, `[B, L]` and a mask `[B, L]` of real steps, which come first -> the last state `[B, D]`."""
        state = torch.zeros_like(interests[:, 0])
        of_inputs = self.gru_cell["x2h"](interests).unbind(dim=1)
        for of_input, weight, is_real in zip(of_inputs, weights.unbind(dim=1), real.unbind(dim=1), strict=True):
            update_x, reset_x, new_x = of_input.chunk(3, dim=-1)
            update_h, reset_h, new_h = self.gru_cell["h2h"](state).chunk(3, dim=-1)
            weight = weight.unsqueeze(-1)
            update = weight if self.gru_type == "AGRU" else weight * torch.sigmoid(update_x + update_h)
            new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
            state = torch.where(is_real.unsqueeze(-1), state + update * (new - state), state)
        return state
