"""What a method is: an add-on that reaches into a FuxiCTR model through five taps."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.enhancement.anatomy import Anatomy
from fuxictr_llm.enhancement.trace import ForwardTrace
from fuxictr_llm.enhancement.trial import NotTried, Trial

TAPS = ("inputs", "embeddings", "representation", "logit", "loss")
# Hooks of earlier versions, which nothing calls any more -> the hooks that took their place.
RENAMED_HOOKS = {
    "start": "on_train_begin",
    "epoch": "on_epoch_begin",
    "kept": "on_save_weights",
    "finish": "on_train_end",
}


class Enhancement(nn.Module):
    """One method's add-on. It owns all parameters of the method and overrides the taps it needs.

    Args:
        config: an instance of the method's config dataclass.
        anatomy: what the backbone offers: fields, widths, logit layers.
    """

    method_name: ClassVar[str] = ""
    config_cls: ClassVar[type | None] = None  # set by register_method
    # Placebos, which show what of a gain the words are no cause of: name -> the config keys that make one.
    controls: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    reads_embeddings: ClassVar[bool] = True  # where False, the tap `logit` gets None in the place of `[B, F, D]`

    def __init__(self, config: Any, anatomy: Anatomy):
        super().__init__()
        self.config = config
        self.anatomy = anatomy
        self.field_projections = None
        if self.reads_embeddings and len(set(anatomy.dims)) > 1:
            self.field_projections = FieldProjections(anatomy.dims, anatomy.embedding_dim)

    @classmethod
    def prepare(cls, config: Any, experiment: Any) -> dict[str, Any]:
        """Make what the method needs before training (vectors, say); returns config keys to change."""
        return {}

    @classmethod
    def encode(cls, config: Any, experiment: Any) -> dict[str, Any]:
        """That part of `prepare` in which a language model is asked, for the command of this name."""
        return cls.prepare(config, experiment)

    @classmethod
    def fold(cls, config: Any, anatomy: Anatomy, state: Mapping[str, Tensor]) -> "Enhancement | None":
        """What serving adds to the backbone: one of `folding.FOLDED`, or None for the backbone alone.

        Args:
            config: an instance of the method's config dataclass.
            anatomy: the backbone's.
            state: the trained state of this method's module. Nothing else is there: no vectors, no language model.

        Raises:
            UserError: the method acts at inference and does not say what is left of it.
        """
        acts = [tap for tap in ("representation", "logit") if getattr(cls, tap) is not getattr(Enhancement, tap)]
        if acts:
            raise UserError(f"method {cls.method_name!r} uses the tap {acts[0]!r} at inference and has no fold()")
        return None

    def on_train_begin(self, run: Any) -> None:
        """Called before training: fetch what training needs and the model does not keep (a teacher, say)."""

    def on_epoch_begin(self, epoch: int) -> None:
        """Called when an epoch of training begins; the first is 0."""

    def on_save_weights(self) -> None:
        """Called after the model's weights were saved; in training they are the best so far."""

    def on_train_end(self, run: Any) -> None:
        """Called after training, with the best weights loaded and before evaluation: drop what training needed."""

    def pictures(self, run: Any) -> dict[str, Any]:
        """Name -> matplotlib Figure of what was learnt, saved beside the run; called when it is done."""
        return {}

    @classmethod
    def self_check(cls, trial: Trial) -> Sequence[str]:
        """Try the method on a backbone and a little data, for `doctor` and `zoo`, which ask every method.

        This one trains the method with its default settings, and every parameter must move. A method that needs
        something prepared (vectors, a teacher) puts random ones in its place in a check of its own.

        Returns:
            The parts of the method for which the backbone offers nothing; none where all of it works.

        Raises:
            UserError: it does not work; with the reason.
            NotTried: it cannot be tried like this.
        """
        try:
            model = trial.enhanced(cls)
        except UserError as error:
            if _function_of(cls.prepare) is _function_of(Enhancement.prepare):
                raise
            raise NotTried(f"it needs what its prepare() makes, and has no self_check() of its own: {error}") from error
        trial.trained(model)
        return ()

    def active_taps(self) -> frozenset[str]:
        """The taps that this method uses now, out of `TAPS`; one that is not named costs nothing."""
        own = type(self)
        return frozenset(tap for tap in TAPS if getattr(own, tap) is not getattr(Enhancement, tap))

    def trained_parameters(self) -> Iterable[nn.Parameter]:
        """Those of the method's parameters that the optimizer gets."""
        return self.parameters()

    def inputs(self, inputs: Any) -> None:
        """Reads the batch as the loader gave it, before the forward pass; at inference only where another tap acts."""

    def embeddings(self, embeddings: Tensor) -> None:
        """Reads the field embeddings `[B, F, D]`."""

    def representation(self, representation: Tensor) -> Tensor | None:
        """Sees the input of the logit layer `[B, R]`; may return a replacement of the same shape.

        It is not asked where the anatomy has no `widths`: then nothing in front of the logit can be replaced.
        """

    def logit(self, embeddings: Tensor, logit: Tensor) -> Tensor | None:
        """Sees `[B, F, D]` and the logits `[B, T]`; may return a term to add to them, `[B, T]` or one for all tasks."""

    def loss(self, trace: ForwardTrace, y_true: Tensor) -> Tensor | None:
        """Sees what the forward pass of a training step showed, and y `[B, T]`; may return a scalar to add."""


def _function_of(method: Any) -> Any:
    return getattr(method, "__func__", method)


class FieldProjections(nn.Module):
    """Brings field embeddings of several widths to one, D: a Linear without bias a field that has another width.

    Args:
        dims: the widths of the F fields' embeddings.
        embedding_dim: D.
    """

    def __init__(self, dims: Sequence[int], embedding_dim: int):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Identity() if width == embedding_dim else nn.Linear(width, embedding_dim, bias=False) for width in dims
        )

    def forward(self, embeddings: list[Tensor]) -> Tensor:
        """F times `[B, width]` -> `[B, F, D]`."""
        return torch.stack([layer(part) for layer, part in zip(self.layers, embeddings, strict=True)], dim=1)
