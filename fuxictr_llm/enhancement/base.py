"""Enhancement, the base class of every method: an add-on that reaches into a FuxiCTR model through taps, and may add
columns that the model reads as its own.

Below it is what the taps and the method's loss see of a forward pass: its trace.

Shape symbols: `B` rows, `F` fields, `D` embedding dim, `R` width of the representation, `T` tasks, `L` length of a
sequence.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.models import BaseModel
from torch import Tensor, nn

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.runs import Run
from fuxictr_llm.enhancement.anatomy import Anatomy
from fuxictr_llm.enhancement.columns import AddedColumn
from fuxictr_llm.enhancement.recorder import vectors_by_field

TAPS = ("inputs", "embeddings", "representation", "logit", "loss")
# Hook names of earlier versions, which nothing calls any more -> their names now.
RENAMED_HOOKS = {
    "start": "on_train_begin",
    "epoch": "on_epoch_begin",
    "kept": "on_save_weights",
    "finish": "on_train_end",
}


class Enhancement(nn.Module):
    """One method's add-on to a model. It owns all parameters of the method and overrides the taps it needs.

    Args:
        config: an instance of the method's config dataclass.
        anatomy: what the backbone offers: fields, widths, logit layers.
    """

    method_name: ClassVar[str] = ""
    config_cls: ClassVar[type | None] = None  # set by register_method
    # Placebos: name -> config keys that train the same method without what the words say. A gain that a placebo has
    # as well does not come from the words.
    controls: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    colour: ClassVar[str | None] = None  # of the method in every picture; None: one of those that no method has
    reads_embeddings: ClassVar[bool] = True  # where False, the tap `logit` gets None in place of the embeddings

    encodes_together: ClassVar[bool] = False  # whether the processes of torchrun share the work of `encode`

    def __init__(self, config: Any, anatomy: Anatomy):
        super().__init__()
        self.config = config
        self.anatomy = anatomy
        self.field_projections: FieldProjections | None = None
        if self.reads_embeddings and anatomy.embedding_dim is not None and len(set(anatomy.dims)) > 1:
            self.field_projections = FieldProjections(anatomy.dims, anatomy.embedding_dim)

    @classmethod
    def prepare(cls, config: Any, run: Run) -> dict[str, Any]:
        """Make what the method needs before training (vectors, say); returns the config keys that change by it."""
        return {}

    @classmethod
    def encode(cls, config: Any, run: Run) -> dict[str, Any]:
        """The part of `prepare` that asks a language model, for the command `encode`."""
        return cls.prepare(config, run)

    @classmethod
    def columns(cls, config: Any, feature_map: FeatureMap) -> Mapping[str, AddedColumn]:
        """More columns that the backbone reads as its own, by name; asked before it is built.

        `inputs` gives them with every batch, or the loader does.

        Args:
            config: an instance of the method's config dataclass.
            feature_map: of the data set; it is not changed.
        """
        return {}

    @classmethod
    def fold(cls, config: Any, anatomy: Anatomy, state: Mapping[str, Tensor]) -> "Enhancement | None":
        """What remains of the method for serving: one of `folded.FOLDED`, or None for the backbone alone.

        Args:
            config: an instance of the method's config dataclass.
            anatomy: the backbone's.
            state: the trained state of this method's module. Nothing else is there: no vectors, no language model.

        Raises:
            UserError: the method acts at inference and overrides no `fold`.
        """
        acting = [tap for tap in ("representation", "logit") if getattr(cls, tap) is not getattr(Enhancement, tap)]
        if _function_of(cls.columns) is not _function_of(Enhancement.columns):
            acting += ["inputs"] if cls.inputs is not Enhancement.inputs else []
        if acting:
            raise UserError(f"method {cls.method_name!r} uses the tap {acting[0]!r} at inference and has no fold()")
        return None

    def on_train_begin(self, run: Run) -> None:
        """Called before training: fetch what training needs and the model does not keep (a teacher, say)."""

    def backbone_start(self, run: Run) -> Mapping[str, Tensor]:
        """Weights and buffers of the backbone that training starts from, by name, in place of its fresh ones.

        Called once, after `on_train_begin`.
        """
        return {}

    def on_epoch_begin(self, epoch: int) -> None:
        """Called when an epoch of training begins; the first is 0."""

    def on_save_weights(self) -> None:
        """Called after the model's weights were saved; in training they are the best so far."""

    def on_train_end(self, run: Run) -> None:
        """Called after training, with the best weights loaded and before evaluation: drop what training needed."""

    def training_state(self) -> dict[str, Any]:
        """What training depends on besides the parameters and buffers, for a checkpoint: a teacher in training, say.

        Nested dicts, lists and tuples of tensors and of what JSON has.
        """
        return {}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `training_state` returned; `on_train_begin` has been called."""

    def pictures(self, run: Run) -> dict[str, Any]:
        """Name -> matplotlib Figure of what was learnt; called after the evaluation and saved beside the run."""
        return {}

    @classmethod
    def self_check(cls, trial: "Trial") -> Sequence[str]:
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
        """The taps of `TAPS` that the method uses now, by default those it overrides; the others cost nothing."""
        own = type(self)
        return frozenset(tap for tap in TAPS if getattr(own, tap) is not getattr(Enhancement, tap))

    def trained_parameters(self) -> Iterable[nn.Parameter]:
        """The parameters of the method that the optimizer gets."""
        return self.parameters()

    def inputs(self, inputs: Any) -> Mapping[str, Tensor] | None:
        """Reads the batch as the loader gave it, before the forward pass; may return columns, `B` rows each.

        The backbone reads these beside the batch's own, or in their place where they have the same name. At inference
        it is called only with another active tap, or where the method adds `columns`.
        """

    def embeddings(self, embeddings: Tensor) -> None:
        """Reads the field embeddings `[B, F, D]`."""

    def representation(self, representation: Tensor) -> Tensor | None:
        """Reads the input of the logit layers `[B, R]`; may return a replacement of the same shape.

        It is not called where `anatomy.widths` is empty: then nothing in front of the logit can be replaced.
        """

    def logit(self, embeddings: Tensor, logit: Tensor) -> Tensor | None:
        """Reads `[B, F, D]` and the logits `[B, T]`; may return a term to add, broadcast to `[B, T]`."""

    def loss(self, trace: "ForwardTrace", y_true: Tensor) -> Tensor | None:
        """Reads the trace of a training step and y `[B, T]`; may return a scalar to add to the loss."""


def _function_of(method: Any) -> Any:
    return getattr(method, "__func__", method)


class FieldProjections(nn.Module):
    """Brings field embeddings of several widths to one width, D, with a Linear for each field of another width.

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


class NotTried(UserError):
    """A method cannot be tried on a little data, as the message explains; that is neither passed nor failed."""


class Trial(Protocol):
    """A backbone on a little data, on which a method is tried; `diagnosis.tiny.TinyCase` is one.

    Attributes:
        cls: the backbone's class.
        feature_map: of the data.
        settings: the constructor's arguments.
    """

    @property
    def cls(self) -> type[BaseModel]: ...

    @property
    def feature_map(self) -> FeatureMap: ...

    @property
    def settings(self) -> Mapping[str, Any]: ...

    def build(self, cls: Callable[..., BaseModel] | None = None, seed: int = 1, **changes: Any) -> BaseModel:
        """A seeded model of the backbone, or of a class that is built like it; `changes` are added to the settings.

        Raises:
            UserError: it cannot be built with these settings.
        """

    def enhanced(self, method: type[Enhancement], **changes: Any) -> BaseModel:
        """The backbone with the method.

        Raises:
            UserError: as for `build`.
        """

    def batches(self) -> list[Any]:
        """The same few batches at every call, in the form that the backbone takes."""

    def trained(self, model: BaseModel, batches: list[Any] | None = None) -> BaseModel:
        """The model after a short epoch.

        Raises:
            UserError: training diverged, or a parameter of the model's method did not move.
        """

    def predictions(self, model: BaseModel) -> Tensor:
        """`[B, T]` of all batches, in evaluation mode."""


def in_float32(tensor: Tensor) -> Tensor:
    """The tensor itself, or in float32 where it has half of that precision."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


class ForwardTrace:
    """Field embeddings, representation and logits of one forward pass: the backbone's own, and the final ones.

    All of it is in float32, even where the backbone runs under autocast.

    Attributes:
        rows: B.
        logit: `[B, T]`, before any term is added.
        final_logit: `[B, T]`, with the method's terms and replacement.
        replacement: `[B, R]`, what the method put in place of the representation; None without one.
    """

    logit: Tensor
    final_logit: Tensor

    def __init__(self, anatomy: Anatomy, rows: int, project: Callable[[list[Tensor]], Tensor] | None = None):
        self.anatomy = anatomy
        self.rows = rows
        self.embedded: list[tuple[Any, Any]] = []  # output and input of each call of the embedding module
        self.layer_inputs: dict[str, list[Tensor]] = {}  # logit layer -> [B, width] of each call
        self.layer_weights: dict[str, Tensor] = {}  # logit layer -> [1, width]
        self.named: Tensor | None = None  # [B, R], where the config names the representation's module
        self.activations: list[tuple[Tensor, Tensor]] = []  # logit and prediction of each call
        self.replacement: Tensor | None = None
        self.stack: Tensor | None = None  # the backbone's own [B, F, D] or [B, F * D]
        self.stack_version = 0
        self._project = project
        self._by_field: dict[str, Tensor] | None = None
        self._embeddings: Tensor | None = None

    @property
    def by_field(self) -> dict[str, Tensor]:
        """Field -> its embedding `[B, width]`, from the first call that gave one; of a sequence, its items' mean.

        Computed on first use: where the backbone has a stack of its own, it is not needed.
        """
        if self._by_field is None:
            self._by_field = {}
            for output, columns in self.embedded:
                for field, tensor in vectors_by_field(output, self.anatomy.fields).items():
                    if field not in self._by_field:
                        self._by_field[field] = self._row_vectors(field, tensor, columns)
        return self._by_field

    def _row_vectors(self, field: str, tensor: Tensor, columns: Any) -> Tensor:
        """`[B, width]` of a field's embeddings `[B, width]` or `[B, L, width]`; `columns` has the ids."""
        tensor = in_float32(_of_rows(tensor, self.rows))
        if tensor.dim() != 3:
            return tensor
        return _mean_of_items(tensor, _of_rows(columns[field], self.rows), self.anatomy.padding[field])

    @property
    def embeddings(self) -> Tensor:
        """`[B, F, D]`, the fields in feature-map order; never change it in place: it may be the backbone's own tensor.

        `[B, 0, 0]` for a backbone without field embeddings.
        """
        if self._embeddings is None:
            self._embeddings = self._make_embeddings()
        return self._embeddings

    def _make_embeddings(self) -> Tensor:
        fields, dims = self.anatomy.fields, self.anatomy.dims
        if not fields:
            return self.logit.new_zeros(self.rows, 0, 0)
        if self.stack is not None and not self._was_changed(self.stack):
            return in_float32(self.stack.view(self.stack.shape[0], len(fields), dims[0]))
        tensors = [self.by_field[name] for name in fields]
        return torch.stack(tensors, dim=1) if self._project is None else self._project(tensors)

    def _was_changed(self, stack: Tensor) -> bool:
        """Whether it was changed in place, by a dropout say; for evaluation mode, the anatomy has ruled it out."""
        return torch.is_grad_enabled() and stack._version != self.stack_version

    @property
    def representation(self) -> Tensor:
        """`[B, R]`: the inputs of all logit layers side by side; without those, the field embeddings."""
        if self.anatomy.logit_layers:
            inputs = [in_float32(self.layer_inputs[layer.module][layer.call]) for layer in self.anatomy.logit_layers]
            return torch.cat(inputs, dim=-1)
        if self.named is not None:
            return self.named
        return torch.cat([self.by_field[name] for name in self.anatomy.fields], dim=-1)

    @property
    def final_representation(self) -> Tensor | None:
        """`[B, R]`, the replacement or else the backbone's own; None for a backbone without either."""
        if self.replacement is not None or not self.anatomy.representation_width:
            return self.replacement
        return self.representation


def _of_rows(tensor: Tensor, rows: int) -> Tensor:
    """`[B, ...]`; a LongCTR model embeds each row's history and target in one call: only the target is returned."""
    if tensor.shape[0] == rows or not rows:
        return tensor
    return tensor.view(rows, -1, *tensor.shape[1:])[:, -1]


def _mean_of_items(tensor: Tensor, ids: Tensor, padding: int) -> Tensor:
    """`[B, L, D]` -> `[B, D]`: the mean over the positions that are not padding; zero where all are padding."""
    real = (ids.to(tensor.device) != padding).unsqueeze(-1).to(tensor.dtype)
    return (tensor * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)
