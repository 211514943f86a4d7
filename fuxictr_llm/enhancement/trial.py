"""A method tried on a backbone: what `Enhancement.self_check` gets, and how it says that it cannot be tried."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from fuxictr.features import FeatureMap
from fuxictr.pytorch.models import BaseModel
from torch import Tensor

from fuxictr_llm.common.errors import UserError

if TYPE_CHECKING:
    from fuxictr_llm.enhancement.base import Enhancement

AFFECTS_RESULTS = False  # see common/code_digest.py


class NotTried(UserError):
    """A self-check cannot be done on a little data; the message says why. It counts neither as passed nor as failed."""


class Trial(Protocol):
    """A backbone on a little data; `diagnosis.tiny.TinyCase` is one.

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

    def enhanced(self, method: "type[Enhancement]", **changes: Any) -> BaseModel:
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
