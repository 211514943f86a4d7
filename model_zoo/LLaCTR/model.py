"""LLaCTR's two terms on any backbone: FRE in the loss, FIE in the logit.

"Field Matters: A Lightweight LLM-enhanced Method for CTR Prediction", arXiv 2505.14057.

Shape symbols: `B` rows, `K` fields, `D` embedding dim, `D_llm` width of the field vectors, `P = K (K - 1) / 2` pairs,
`T` tasks: multi-task models have a map and a term of FIE for each; with one task that dimension is not there.
"""

import logging
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.runs import Run
from fuxictr_llm.enhancement.anatomy import Anatomy
from fuxictr_llm.enhancement.base import Enhancement, ForwardTrace, Trial
from fuxictr_llm.enhancement.folded import PairWeights, Shift
from fuxictr_llm.enhancement.kernels import mean_log_softmax, pair_matrix, pair_sums

from .config import LLaCTRConfig
from .vector_file import read_field_vectors, write_field_vectors

# A full map has P x P weights, so it grows as K^4: 64 fields are 4 million, 300 fields 2 billion.
MOST_FIELDS_OF_FULL_MAP = 64
TRIAL_WIDTH = 8  # of the vectors of a self-check


class LLaCTR(Enhancement):
    """Both terms of LLaCTR; one whose lambda is 0 has no parameters and is never computed.

    Args:
        config: its `field_vectors` names a file with a row `h_k` per field.
        anatomy: the backbone's fields and tasks.

    Raises:
        UserError: the backbone has no field embeddings, the file does not fit, or the full pair map would be too
            large.
    """

    colour = "#D55E00"
    controls = {"random": {"field_vectors": "random"}, "shuffled": {"field_vectors": "shuffled"}}
    encodes_together = True  # the tuning

    def __init__(self, config: LLaCTRConfig, anatomy: Anatomy):
        config = config.for_backbone(anatomy.backbone)
        super().__init__(config, anatomy)
        if anatomy.embedding_dim is None:
            reason = anatomy.missing.get("embeddings", "it has none")
            raise UserError(f"LLaCTR needs field embeddings, and {anatomy.backbone} shows none: {reason}")
        self.fre: FeatureRepresentationEnhancement | None = None
        self.fie: FeatureInteractionEnhancement | None = None
        if not config.is_on:
            self.field_projections = None  # a regularizer would move them, and with them the norm that is clipped
            return
        # A backbone may leave a field of the data set out of its embeddings.
        vectors = read_field_vectors(config.field_vectors, anatomy.fields, exact=False)
        if config.lambda_fre > 0:
            self.fre = FeatureRepresentationEnhancement(vectors, anatomy.embedding_dim)
        if config.lambda_fie > 0 and len(anatomy.fields) > 1:
            self.fie = FeatureInteractionEnhancement(
                vectors,
                cast(str, config.fie_map),
                cast(str, config.fie_form),
                cast(str, config.fie_init),
                tasks=len(anatomy.tasks),
                bound=config.bound,
            )

    @classmethod
    def prepare(cls, config: LLaCTRConfig, run: Run) -> dict[str, Any]:
        """Field vectors from the language model (cached), as a file that training reads."""
        if not config.is_on:
            logging.warning("LLaCTR is off: lambda_fre and lambda_fie are both 0")
            return {}
        from .field_vectors import prepare_field_vectors

        return {"field_vectors": str(prepare_field_vectors(config, run))}

    @classmethod
    def fold(cls, config: LLaCTRConfig, anatomy: Anatomy, state: Mapping[str, Tensor]) -> Enhancement | None:
        """`lambda_fie * g`, which is the same for every row; FRE is a term of the loss alone."""
        if "fie.map" not in state:
            return None
        config = config.for_backbone(anatomy.backbone)
        weights = config.lambda_fie * pair_weights(
            state["fie.map"], state["fie.cosines"], state["fie.bias"], config.bound
        )
        if config.fie_form == "scalar":
            return Shift(None, anatomy, weights.sum(dim=-1))
        return PairWeights(None, anatomy, weights)

    @classmethod
    def self_check(cls, trial: Trial) -> Sequence[str]:
        """Both terms train, with random field vectors."""
        fields = [name for name, spec in trial.feature_map.features.items() if spec["type"] != "meta"]
        vectors = torch.randn(len(fields), TRIAL_WIDTH, generator=torch.Generator().manual_seed(3))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "vectors.safetensors"
            write_field_vectors(file, vectors, fields)
            model = trial.trained(trial.enhanced(cls, field_vectors=str(file)))
        terms = {"FRE": model.enhancement.fre, "FIE": model.enhancement.fie}
        return [term for term, module in terms.items() if module is None]

    def pictures(self, run: Run) -> dict[str, Any]:
        if self.fre is None and self.fie is None:
            return {}
        from .pictures import draw

        weights = self.fie.pair_weights() if self.fie is not None and self.fie.form == "pairwise" else None
        return draw(run, self.anatomy.fields, self.anatomy.tasks, weights)

    def trained_parameters(self) -> Iterable[nn.Parameter]:
        return self.parameters() if self.config.train_maps else ()

    def active_taps(self) -> frozenset[str]:
        taps = {"loss"} if self.fre is not None else set()
        return frozenset(taps | {"logit"} if self.fie is not None else taps)

    def logit(self, embeddings: Tensor, logit: Tensor) -> Tensor:
        assert self.fie is not None  # or this tap is not active
        return self.config.lambda_fie * self.fie(embeddings)

    def loss(self, trace: ForwardTrace, y_true: Tensor) -> Tensor:
        assert self.fre is not None  # or this tap is not active
        return self.config.lambda_fre * self.fre(trace.embeddings)


class FeatureRepresentationEnhancement(nn.Module):
    """`FRE = (1/B) sum_b sum_k KL(softmax(W h_k + b) || softmax(e_bk))`, `[B, K, D] -> scalar`.

    Args:
        field_vectors: H, `[K, D_llm]`.
        embedding_dim: D.
    """

    field_vectors: Tensor

    def __init__(self, field_vectors: Tensor, embedding_dim: int):
        super().__init__()
        self.register_buffer("field_vectors", field_vectors)
        self.projection = nn.Linear(field_vectors.shape[1], embedding_dim)

    def forward(self, embeddings: Tensor) -> Tensor:
        log_p = self.projection(self.field_vectors).log_softmax(dim=-1)  # [K, D]
        # p is the same for every row, so only the mean of the rows' log q is needed.
        return (log_p.exp() * (log_p - mean_log_softmax(embeddings))).sum()


def pair_weights(pair_map: Tensor, cosines: Tensor, bias: Tensor, bound: float | None = None) -> Tensor:
    """`g = A c + a`, or bounded: `g = c + r tanh((A c + a - c) / r)`, which is nowhere further than r from c.

    Args:
        pair_map: A, `[P, P]` (`[T, P, P]`), or in the form of `a` where it is diagonal.
        cosines: c, `[P]`.
        bias: a, `[P]` or `[T, P]`.
        bound: r; None: unbounded.

    Returns:
        In the form of `a`.
    """
    weights = (pair_map @ cosines if pair_map.dim() > bias.dim() else pair_map * cosines) + bias
    return weights if bound is None else cosines + bound * ((weights - cosines) / bound).tanh()


class FeatureInteractionEnhancement(nn.Module):
    """`sum_{i<j} g_ij <e_bi, e_bj>` with `g = A c + a` and `c_ij = cos(h_i, h_j)`, `[B, K, D] -> [B, T]`.

    `g` does not depend on the row: without gradients in evaluation mode it is a constant that `train(False)`
    folds.

    Args:
        field_vectors: H, `[K, D_llm]`.
        fie_map: `bounded` and `full` (A is `[P, P]`), or `diagonal` (A is diagonal).
        form: `pairwise`, or `scalar`: `sum_{i<j} g_ij`, the same for every row.
        init: `identity`: training starts from the cosines themselves; `random`: as torch's Linear.
        tasks: T.
        bound: how far a weight may be from its cosine; None: unbounded.

    Raises:
        UserError: a full map over more than 64 fields.
    """

    cosines: Tensor
    folded: Tensor

    def __init__(
        self,
        field_vectors: Tensor,
        fie_map: str,
        form: str = "pairwise",
        init: str = "identity",
        tasks: int = 1,
        bound: float | None = None,
    ):
        super().__init__()
        num_fields = len(field_vectors)
        num_pairs = num_fields * (num_fields - 1) // 2
        if fie_map != "diagonal" and num_fields > MOST_FIELDS_OF_FULL_MAP:
            raise UserError(
                f"fie_map {fie_map!r} over {num_fields} fields would have {num_pairs**2:,} weights "
                f"({num_pairs**2 * 4 / 2**30:.1f} GiB); set fie_map: diagonal"
            )
        left, right = torch.triu_indices(num_fields, num_fields, offset=1)
        normed = nn.functional.normalize(field_vectors, dim=-1)
        self.register_buffer("cosines", (normed[left] * normed[right]).sum(dim=-1))
        each = () if tasks == 1 else (tasks,)
        self.register_buffer("folded", torch.zeros(*each, num_fields, num_fields), persistent=False)
        self.form, self.bound = form, bound
        start = torch.ones(num_pairs) if fie_map == "diagonal" else torch.eye(num_pairs)
        self.map = nn.Parameter(start.repeat(*each, *[1] * start.dim()))
        self.bias = nn.Parameter(torch.zeros(*each, num_pairs))
        if init == "random":
            spread = num_pairs**-0.5
            nn.init.uniform_(self.map, -spread, spread)
            nn.init.uniform_(self.bias, -spread, spread)
        self._fold()

    def forward(self, embeddings: Tensor) -> Tensor:
        live = self.training or torch.is_grad_enabled()
        weights = self.pair_weights() if live else self.folded
        if self.form == "scalar":
            return 0.5 * weights.sum(dim=(-2, -1)).expand(len(embeddings), -1 if weights.dim() > 2 else 1)
        return pair_sums(weights, embeddings)

    def pair_weights(self) -> Tensor:
        """The symmetric `[K, K]` matrix of `g` (`[T, K, K]`), with zeros on its diagonal."""
        return pair_matrix(pair_weights(self.map, self.cosines, self.bias, self.bound), self.folded.shape[-1])

    def train(self, mode: bool = True) -> Self:
        if not mode:
            self._fold()
        return super().train(mode)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._fold()

    @torch.no_grad()
    def _fold(self) -> None:
        self.folded.copy_(self.pair_weights())
