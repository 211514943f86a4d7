"""Stage 1: a backbone's representation of a row and its text find each other among the rows of a batch.

"CTRL: Connect Collaborative and Language Model for CTR Prediction", arXiv 2306.02841.

Shape symbols: `N` rows, `R` width of the representation, `S` width of a row's text vector, `d` of both sides, `M`
sub-spaces.
"""

from itertools import product
from typing import Any

import torch
import torch.nn.functional as functional
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fuxictr_llm.common.checks import STRICT
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.enhancement import Enhancement
from fuxictr_llm.enhancement.anatomy import Anatomy


@dataclass(config=STRICT, kw_only=True)
class AlignmentConfig:
    """Of `CTRLConfig`, and `text_width`: S."""

    text_width: int
    align_width: int = 128
    sub_spaces: int = 3
    align_normalize: bool = False
    align_tau: float = 0.7
    mask_equal: bool = False


class SubSpaces(nn.Module):
    """`h = W_0 x + b_0`, `h_m = W_m h + b_m`: `[N, width] -> [N, M, d]`."""

    def __init__(self, width: int, out: int, count: int):
        super().__init__()
        self.project, self.split, self.count = nn.Linear(width, out), nn.Linear(out, count * out), count

    def forward(self, vectors: Tensor) -> Tensor:
        return self.split(self.project(vectors)).unflatten(1, (self.count, -1))


class _BestPairs(torch.autograd.Function):
    """`similarities` of `[M, N, d]`, ties to the first: autograd's own gradient of `amax` takes three times as long."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        products = table.unsqueeze(1) @ text.unsqueeze(0).mT
        to_text, nearest_text = products.max(dim=1)
        to_table, nearest_table = products.max(dim=0)
        ctx.save_for_backward(table, text, nearest_text.to(torch.uint8), nearest_table.to(torch.uint8))
        return to_text.sum(dim=0), to_table.sum(dim=0).T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_to_text: Tensor, of_to_table: Tensor) -> tuple[Tensor, Tensor]:
        table, text, nearest_text, nearest_table = ctx.saved_tensors
        of_table, of_text = torch.zeros_like(table), torch.zeros_like(text)
        of_to_table = of_to_table.T.contiguous()
        for a, b in product(range(len(table)), range(len(text))):
            of_product = (nearest_text[a] == b) * of_to_text + (nearest_table[b] == a) * of_to_table
            of_table[a].addmm_(of_product, text[b])
            of_text[b].addmm_(of_product.T, table[a])
        return of_table, of_text


def similarities(table: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """`sim(i, j) = sum_a max_b <h_i,a , g_j,b>`, `[N, N]`: of rows i to texts j, and of texts i to rows j.

    Args:
        table, text: `[N, M, d]`.
    """
    return _BestPairs.apply(table.transpose(0, 1).contiguous(), text.transpose(0, 1).contiguous())


def contrastive_loss(to_text: Tensor, to_table: Tensor, tau: float, equal: Tensor | None = None) -> Tensor:
    """`(CE(sim_text->table / tau) + CE(sim_table->text / tau)) / 2`, targets on the diagonal; a scalar.

    Args:
        to_text, to_table: `similarities`.
        equal: bool `[N, N]`, pairs that are no negatives.
    """
    targets = torch.arange(len(to_text), device=to_text.device)
    if equal is not None:
        others = equal & ~torch.eye(len(equal), dtype=torch.bool, device=equal.device)
        to_text, to_table = (sims.masked_fill(others, -torch.inf) for sims in (to_text, to_table))
    return (functional.cross_entropy(to_table / tau, targets) + functional.cross_entropy(to_text / tau, targets)) / 2


class Alignment(Enhancement):
    """Both sides' projections into sub-spaces. It uses no tap: its loss is not the backbone's.

    Args:
        config: widths and the loss.
        anatomy: the backbone's. Without a representation in front of the logit, the field embeddings are taken.

    Raises:
        UserError: the backbone shows neither.
    """

    method_name = "Alignment"
    config_cls = AlignmentConfig
    reads_embeddings = False

    def __init__(self, config: AlignmentConfig, anatomy: Anatomy):
        super().__init__(config, anatomy)
        if not anatomy.representation_width:
            reason = anatomy.missing.get("representation", "it has none")
            raise UserError(f"CTRL needs a representation, and {anatomy.backbone} shows none: {reason}")
        self.table = SubSpaces(anatomy.representation_width, config.align_width, config.sub_spaces)
        self.text = SubSpaces(config.text_width, config.align_width, config.sub_spaces)

    def align_loss(self, representation: Tensor, vectors: Tensor, equal: Tensor | None = None) -> Tensor:
        """Of rows `[N, R]` and their text vectors `[N, S]`."""
        table, text = self.table(representation), self.text(vectors)
        if self.config.align_normalize:
            table, text = functional.normalize(table, dim=-1), functional.normalize(text, dim=-1)
        return contrastive_loss(*similarities(table, text), self.config.align_tau, equal)
