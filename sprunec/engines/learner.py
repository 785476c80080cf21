"""What may learn beside a model's weights, such as gates."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class Learner:
    """What learns beside the weights, the same on every rank; the training loop calls its methods at each step.

    This one learns nothing.
    """

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
