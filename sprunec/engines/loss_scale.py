"""The dynamic loss scale of fp16 (Micikevicius et al. 2018), whose verdict on a step comes from outside: of all ranks.

As `torch.amp.GradScaler`, which decides for itself and takes no mix of sharded and whole gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GROWTH, BACKOFF, INTERVAL = 2.0, 0.5, 2000


class LossScale:
    """Twice as large after every INTERVAL good steps in a row, half as large after each bad one."""

    def __init__(self, first: float, *, enabled: bool) -> None:
        self.enabled, self.value, self._good = enabled, first if enabled else 1.0, 0

    def update(self, finite: bool) -> None:
        if not self.enabled:
            return
        self._good = self._good + 1 if finite else 0
        if not finite:
            self.value *= BACKOFF
        elif self._good == INTERVAL:
            self.value, self._good = self.value * GROWTH, 0

    def state_dict(self) -> dict[str, Any]:
        return {"scale": self.value, "_growth_tracker": self._good} if self.enabled else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.enabled:
            self.value, self._good = state["scale"], state["_growth_tracker"]
