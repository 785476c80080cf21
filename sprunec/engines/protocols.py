"""What the one training loop asks of what is under and beside it, so that it is the same loop wherever it runs.

    TrainingEngine  how processes train a model together; makes a driver for each model
    Driver          one model in training: its weights, gradients, moments and loss scale, wherever they lie
    Learner         what learns beside the weights, such as gates
    AuxiliaryLoss   a loss beside the language model's, such as distillation's

The loop runs on every rank alike: it asks for the same global batch, takes this rank's sequences of it, and divides
their loss by the number of targets in the whole batch. So gradients are *added* over ranks, never averaged, and the
size of the world changes nothing. Gates, multipliers and a loss's own parameters are the same on every rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn

from sprunec.data.batches import Batch
from sprunec.engines.device import Place
from sprunec.engines.training import Training
from sprunec.engines.world import World


class TrainingEngine(Protocol):
    """How a model is trained; nothing of it changes the result.

    Attributes:
        place: the device of this rank's tensors, and the precision of products.
    """

    @property
    def world(self) -> World: ...

    @property
    def place(self) -> Place: ...

    def drive(
        self,
        model: nn.Module,
        training: Training,
        others: Iterable[nn.Parameter] = (),
        kept: Mapping[str, Tensor] | None = None,
    ) -> Driver:
        """Take a model over, block by block, and make its optimizer; called by all ranks on the same weights.

        Args:
            model: whole and plain, on this rank's device; its blocks may be graphs with gates. What becomes of it is
                the engine's: ask `weights` for what was trained, and use the model no more.
            others: what is trained beside it, the same on all ranks.
            kept: bool masks by parameter name, True where the weight trains; the others stay zero.
        """

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """The state of a model that was driven, whole and plain, by its own names: on the lead, elsewhere empty."""


class Driver(Protocol):
    """One model in training; every call is made by all ranks alike."""

    @property
    def scale(self) -> float:
        """What this step's losses are multiplied by; 1 in precisions that need no loss scale."""

    @property
    def scaled(self) -> bool:
        """Whether there is a loss scale, so that a step may be left out."""

    def part(self, last: bool) -> AbstractContextManager[None]:
        """Around the forward and backward pass of a part of this rank's rows; `last`: gradients are complete then."""

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, N, V) of a part."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a part's loss, times the loss scale, to those before."""

    def norm(self) -> float:
        """Finish the gradients: add them over ranks, take out the loss scale, leave held weights out.

        Returns:
            Their norm over all ranks; not finite if any of them is not.
        """

    def step(self, rate: float, norm: float) -> None:
        """Clip to what the training says, given the norm before, and move; held weights stay zero."""

    def end(self, finite: bool) -> None:
        """After each step, made or left out: choose the next loss scale, forget the gradients."""

    def finite(self) -> bool:
        """Whether all weights are, on all ranks."""

    def state(self) -> dict[str, Any]:
        """Weights, moments and loss scale, as `load` takes them.

        Plain tensors, of which the lead's are written; or as `shards`, by name, each rank's parts (DTensors), which are
        written to a folder, and whose place `load` is then given instead.
        """

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that was saved by a world of any size; every rank is given the same whole state."""


class Learner:
    """What learns beside the weights; the loop calls its methods in turn at each step. This one learns nothing."""

    def before(self, step: int, model_step: int) -> None: ...

    def gradients(self) -> list[Tensor]:
        """Return those that have reached it from this rank's sequences; the loop puts their sums in their place."""
        return []

    def finite(self) -> bool:
        """Say whether these gradients are."""
        return True

    def backward(self, unscale: float) -> None: ...

    def after(self, step: int) -> dict[str, Any]:
        """Move; return what it adds to the event."""
        return {}

    def skip(self, step: int) -> dict[str, Any]:
        """Stand still at a step that moves nothing, where `backward` and `after` are left out."""
        return {}

    def done(self) -> bool:
        """Say whether nothing is left to learn; asked before each step, it must follow from what `state` holds."""
        return False

    def state(self) -> dict[str, Any] | None:
        return None

    def load(self, state: Any) -> None: ...


class AuxiliaryLoss(Protocol):
    """A loss beside the language model's, and what it trains beside the model; called in turn at each step."""

    def parameters(self) -> list[nn.Parameter]: ...

    def begin(self, batch: Batch) -> None:
        """Take in the step's global batch."""

    def loss(self, part: Batch, logits: Tensor) -> Tensor:
        """Return what a part of it, just run through the model, adds to the loss; logits (B, N, V)."""

    def state(self) -> dict[str, Any]: ...

    def load(self, state: dict[str, Any]) -> None: ...
