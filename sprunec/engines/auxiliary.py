"""What may learn beside a model's weights; the training loop calls its methods in turn at each step.

    Learner         what learns beside the weights, such as gates
    AuxiliaryLoss   a loss beside the language model's, such as distillation's

What it holds is the same on every rank.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from sprunec.data.batches import Batch


class Learner:
    """What learns beside the weights. This one learns nothing."""

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
    """A loss beside the language model's, and what it trains beside the model."""

    def parameters(self) -> list[nn.Parameter]: ...

    def begin(self, batch: Batch) -> None:
        """Take in the step's global batch."""

    def loss(self, part: Batch, logits: Tensor) -> Tensor:
        """Return what a part of it, just run through the model, adds to the loss; logits (B, N, V)."""

    def state(self) -> dict[str, Any]: ...

    def load(self, state: dict[str, Any]) -> None: ...
