"""`enhance(Backbone, Method)`: a subclass of any FuxiCTR model into which a method reaches through five taps.

Shape symbols: `B` rows, `F` fields, `D` embedding dim, `R` width of the representation, `T` tasks (1 but for
multi-task models); of what is folded, `K` fields and `P = K (K - 1) / 2` pairs `i < j`, row by row.

    DeepFM_LLaCTR = enhance(DeepFM, LLaCTR)     # a subclass of DeepFM
    model = DeepFM_LLaCTR(feature_map, **params)  # FuxiCTR's fit, evaluate, save_weights work as ever

The backbone's class is not edited. For every backbone (tests/test_matrix.py, tests/enhancement):
1. With no tap active, weights and training are bit-identical to the plain backbone's.
2. Every parameter of an active term is in the optimizer and moves.
3. `backbone_state_dict()` loads with strict=True into the plain backbone.
4. pickle, deepcopy and saved states work, and a copy never drives its original.
5. What is computed for the loss alone is not computed at inference.

At the end: folded methods, what remains of a trained method for serving, constant terms of the logit.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from fuxictr.pytorch.models import BaseModel
from fuxictr.pytorch.torch_utils import get_regularizer
from torch import Tensor, nn

from fuxictr_llm.common.checks import checked
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.enhancement.anatomy import Anatomy, find_anatomy, preserved_rng, tap_keys
from fuxictr_llm.enhancement.base import Enhancement, ForwardTrace
from fuxictr_llm.enhancement.kernels import pair_matrix, pair_sums
from fuxictr_llm.enhancement.taps import Taps
from fuxictr_llm.host.embeddings import initialize_skipped

if TYPE_CHECKING:  # what follows EnhancedModel in every class that `enhance` makes
    from fuxictr.pytorch.models import BaseModel as Backbone
else:
    Backbone = object
_enhanced: dict[tuple[type[BaseModel], type[Enhancement]], type[BaseModel]] = {}


class EnhancedModel(Backbone):
    """The base that `enhance` puts in front of a backbone's class: it adds a method and the hooks of its taps."""

    enhancement_cls: ClassVar[type[Enhancement]]
    backbone_cls: ClassVar[type[BaseModel]]
    _taps: Taps | None = None  # while the backbone's constructor runs

    def __init__(self, feature_map: Any, *args: Any, **params: Any):
        super().__init__(feature_map, *args, **params)
        initialize_skipped(self)
        self._method_regularizer = params.get("method_regularizer")
        anatomy = find_anatomy(self, **tap_keys(params))
        with preserved_rng(self.device):
            config_cls = self.enhancement_cls.config_cls
            config = None if config_cls is None else checked(config_cls, params)
            self.enhancement = self.enhancement_cls(config, anatomy).to(self.device)
        self._taps = Taps(anatomy, self.enhancement)
        self._taps.attach(self)
        # The backbone's constructor made its optimizer without the method's parameters.
        super().compile(*self._compile_args[0], **self._compile_args[1])
        untrained = {*self.enhancement.parameters()} - {*self.enhancement.trained_parameters()}
        for group in self.optimizer.param_groups:
            group["params"] = [parameter for parameter in group["params"] if parameter not in untrained]
        set_weight_decay(self.optimizer, params.get("weight_decay"))

    def compile(self, *args: Any, **kwargs: Any) -> None:
        self._compile_args = (args, kwargs)
        super().compile(*args, **kwargs)

    def forward(self, inputs: Any) -> dict[str, Any]:
        if self._taps is None:
            return super().forward(inputs)
        return_dict, trace = self._taps.run(self, super().forward, inputs, self.training)
        if trace is not None and "loss" in self._taps.active:
            return_dict["trace"] = trace
        return return_dict

    def traced(self, inputs: Any) -> ForwardTrace:
        """The trace of one forward pass, whatever taps are active."""
        assert self._taps is not None
        trace = self._taps.run(self, super().forward, inputs, self.training, always=True)[1]
        assert trace is not None
        return trace

    def train_epoch(self, data_generator: Iterable) -> None:
        self.enhancement.on_epoch_begin(self._epoch_index)
        super().train_epoch(data_generator)

    def save_weights(self, checkpoint: str) -> None:
        super().save_weights(checkpoint)
        self.enhancement.on_save_weights()

    def add_loss(self, return_dict: dict[str, Any], y_true: Tensor | list[Tensor]) -> Tensor:
        """The backbone's loss plus the method's term; in evaluation mode there is no term."""
        trace = return_dict.pop("trace", None)
        loss = super().add_loss(return_dict, y_true)
        if trace is None:
            return loss
        labels = torch.cat(y_true, dim=-1) if isinstance(y_true, list) else y_true  # a list in multi-task models
        term = self.enhancement.loss(trace, labels)
        return loss if term is None else loss + term

    def regularization_loss(self) -> Tensor | float:
        """FuxiCTR's regularizers on the backbone alone, plus `method_regularizer` on the method's parameters."""
        with _frozen(self.enhancement):
            loss = super().regularization_loss()
        for p, weight in get_regularizer(self._method_regularizer):
            for parameter in self.enhancement.parameters():
                if parameter.requires_grad:
                    loss = loss + (weight / p) * torch.norm(parameter, p) ** p
        return loss

    def backbone_state_dict(self) -> dict[str, Tensor]:
        """The state without the method's part, which loads with strict=True into the plain backbone."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("enhancement.")}

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _blank_model, (self.backbone_cls, self.enhancement_cls), self.__dict__


def _blank_model(backbone: type[BaseModel], method: type[Enhancement]) -> BaseModel:
    cls: Any = enhance(backbone, method)
    return cls.__new__(cls)


@contextlib.contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """`requires_grad` is off for the block: FuxiCTR's regularizers leave such parameters out."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def set_weight_decay(optimizer: torch.optim.Optimizer, weight_decay: float | None) -> None:
    """Set the optimizer's own weight decay, for which FuxiCTR has no key; None leaves it as it is.

    Raises:
        UserError: the optimizer has no weight decay.
    """
    if weight_decay is None:
        return
    for group in optimizer.param_groups:
        if "weight_decay" not in group:
            raise UserError(f"optimizer {type(optimizer).__name__} has no weight_decay; remove the key or take adam")
        group["weight_decay"] = weight_decay


def enhance(backbone: type[BaseModel], method: type[Enhancement]) -> type[BaseModel]:
    """The class `Backbone_Method`: a subclass of the backbone with the method's taps, the same at every call.

    Args:
        backbone: any FuxiCTR model class; it is not changed.
        method: an Enhancement class.

    Raises:
        UserError: the backbone has a method already.
    """
    if (backbone, method) in _enhanced:
        return _enhanced[backbone, method]
    if issubclass(backbone, EnhancedModel):
        raise UserError(
            f"{backbone.__name__} has a method already, and a model has one; "
            f"give {method.method_name or method.__name__!r} the backbone {backbone.backbone_cls.__name__}"
        )
    name = f"{backbone.__name__}_{method.method_name or method.__name__}"
    body = {
        "__module__": "fuxictr_llm.model_zoo",
        "__doc__": f"{backbone.__name__} with {method.__name__}.",
        "backbone_cls": backbone,
        "enhancement_cls": method,
    }
    # Two threads get the same class.
    return _enhanced.setdefault((backbone, method), type(name, (EnhancedModel, backbone), body))


class PairWeights(Enhancement):
    """Adds `sum_{i<j} w_ij <e_bi, e_bj>` to the logit, or to each of T logits one with weights of its own.

    Args:
        anatomy: names the K fields and the T tasks.
        weights: w, `[P]` or `[T, P]`; None where they are loaded afterwards.
    """

    weights: Tensor
    matrix: Tensor

    def __init__(self, config: Any, anatomy: Anatomy, weights: Tensor | None = None):
        super().__init__(config, anatomy)
        num_fields = len(anatomy.fields)
        if weights is None:
            weights = torch.zeros(*_each_task(anatomy), num_fields * (num_fields - 1) // 2)
        self.register_buffer("weights", weights)
        self.register_buffer("matrix", pair_matrix(weights, num_fields), persistent=False)

    def logit(self, embeddings: Tensor, logit: Tensor) -> Tensor:
        return pair_sums(self.matrix, embeddings)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.matrix.copy_(pair_matrix(self.weights, self.matrix.shape[-1]))


class Shift(Enhancement):
    """Adds one number to the logit, or to each of T logits one of its own.

    Args:
        anatomy: the backbone's.
        shift: a scalar, or `[T]`; None where it is loaded afterwards.
    """

    shift: Tensor
    reads_embeddings = False

    def __init__(self, config: Any, anatomy: Anatomy, shift: Tensor | None = None):
        super().__init__(config, anatomy)
        self.register_buffer("shift", torch.zeros(_each_task(anatomy)) if shift is None else shift)

    def logit(self, embeddings: Any, logit: Tensor) -> Tensor:
        return self.shift


def _each_task(anatomy: Anatomy) -> tuple[int, ...]:
    """The leading dimension T of what differs by task; none for a single task."""
    return (len(anatomy.tasks),) if len(anatomy.tasks) > 1 else ()


FOLDED = {cls.__name__: cls for cls in (PairWeights, Shift)}
