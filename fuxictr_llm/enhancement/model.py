"""`enhance(Backbone, Method)`: a subclass of any FuxiCTR model into which a method reaches through taps.

Shape symbols: `B` rows, `F` fields, `D` embedding dim, `R` width of the representation, `T` tasks (1 but for
multi-task models).

    DeepFM_LLaCTR = enhance(DeepFM, LLaCTR)     # a subclass of DeepFM
    model = DeepFM_LLaCTR(feature_map, **params)  # FuxiCTR's fit, evaluate, save_weights work as ever

The backbone's class is not edited. For every backbone (tests/test_matrix.py, tests/enhancement):
1. With no tap active, weights and training are bit-identical to the plain backbone's.
2. Every parameter of an active term is in the optimizer and moves.
3. `backbone_state_dict()` loads with strict=True into the plain backbone.
   Of a method that adds columns, "plain" is the backbone built on `model.feature_map`, which has them: with the same
   vectors in its batches it trains bit-identically, as far as the columns have no encoders of the method's own.
4. pickle, deepcopy and saved states work, and a copy never drives its original.
5. What is computed for the loss alone is not computed at inference.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from fuxictr.pytorch.models import BaseModel
from fuxictr.pytorch.torch_utils import get_regularizer
from torch import Tensor, nn

from fuxictr_llm.common.checks import checked
from fuxictr_llm.common.errors import UserError, reason_of
from fuxictr_llm.enhancement.anatomy import find_anatomy, preserved_rng, tap_keys
from fuxictr_llm.enhancement.base import Enhancement, ForwardTrace
from fuxictr_llm.enhancement.columns import AddedColumn, give_encoders
from fuxictr_llm.enhancement.taps import Taps
from fuxictr_llm.host.columns import with_more_features
from fuxictr_llm.host.embeddings import complete

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
    added_columns: tuple[str, ...] = ()  # those of the method, which the feature map of the data set lacks

    def __init__(self, feature_map: Any, *args: Any, **params: Any):
        config_cls = self.enhancement_cls.config_cls
        config = None if config_cls is None else checked(config_cls, params)
        added = self.enhancement_cls.columns(config, feature_map)
        self.added_columns = tuple(added)
        more = with_more_features(feature_map, _specs(added), _named(self.enhancement_cls)) if added else feature_map
        try:
            super().__init__(more, *args, **params)
            complete(self)
            give_encoders(self, added)
            anatomy = find_anatomy(self, **tap_keys(params))
        except Exception as error:  # anyone's class can fail in any way
            if not added or not _works(self.backbone_cls, feature_map, *args, **params):
                raise
            raise UserError(
                f"{self.backbone_cls.__name__} cannot read the vectors of column {self.added_columns[0]!r}, which "
                f"{_named(self.enhancement_cls)} adds ({reason_of(error)}); take another backbone, as DeepFM or DCNv2, "
                "or a method that adds no column"
            ) from error
        self._method_regularizer = params.get("method_regularizer")
        with preserved_rng(self.device):
            self.enhancement = self.enhancement_cls(config, anatomy).to(self.device)
        self._taps = Taps(anatomy, self.enhancement, adds_columns=bool(added))
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
        self.method_loss = None
        if trace is None:
            return loss
        labels = torch.cat(y_true, dim=-1) if isinstance(y_true, list) else y_true  # a list in multi-task models
        term = self.enhancement.loss(trace, labels)
        if term is None:
            return loss
        self.method_loss = term.detach()
        return loss + term

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


def _named(method: type[Enhancement]) -> str:
    return f"method {method.method_name or method.__name__}"


def _specs(added: Mapping[str, AddedColumn]) -> dict[str, dict[str, Any]]:
    return {name: column.spec for name, column in added.items()}


def _works(backbone: type[BaseModel], *args: Any, **params: Any) -> bool:
    """Whether the backbone can be built and tapped as it is."""
    try:
        find_anatomy(backbone(*args, **params), **tap_keys(params))
    except Exception:
        return False
    return True


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


def added_columns_of(model: BaseModel) -> dict[str, dict[str, Any]]:
    """The columns that a model's method adds, as FuxiCTR's feature map describes them; none of a plain model."""
    return {name: model.feature_map.features[name] for name in getattr(model, "added_columns", ())}


def own_columns(model: BaseModel) -> tuple[str, ...]:
    """The columns that a model's method gives it with every batch, so that a batch need not have them."""
    gives = isinstance(model, EnhancedModel) and "inputs" in model.enhancement.active_taps()
    return model.added_columns if gives else ()


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
