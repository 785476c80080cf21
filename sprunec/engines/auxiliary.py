"""What may learn beside a model: the training loop calls these in turn at each step."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from sprunec.data.batches import Batch


class Companion(Protocol):
    """What learns beside the weights, such as gates; the loop calls these in turn at each step."""

    def before(self, step: int, model_step: int) -> None: ...

    def gradients(self) -> list[Tensor]:
        """Those that have reached it from this rank's rows; the loop puts their sum over all ranks in their place."""

    def finite(self) -> bool:
        """Whether these gradients are."""

    def backward(self, unscale: float) -> None: ...

    def after(self, step: int) -> dict[str, Any]:
        """Move; returns what it adds to the event."""

    def skip(self, step: int) -> dict[str, Any]:
        """Instead of `backward` and `after`, at a step that moves nothing."""

    def done(self) -> bool:
        """Whether nothing is left to learn; asked before each step, it must follow from what `state` holds."""

    def state(self) -> dict[str, Any]: ...

    def load(self, state: dict[str, Any]) -> None: ...


class Objective(Protocol):
    """A loss beside the language model's, and what it trains beside the model; called in turn at each step."""

    def parameters(self) -> list[nn.Parameter]: ...

    def begin(self, batch: Batch) -> None:
        """The step's global batch."""

    def loss(self, part: Batch, logits: Tensor) -> Tensor:
        """What a part of it, just run through the model, adds to the loss; logits (B, N, V)."""

    def state(self) -> dict[str, Any]: ...

    def load(self, state: dict[str, Any]) -> None: ...
