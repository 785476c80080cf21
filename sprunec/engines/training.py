"""The options of a training pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sprunec.engines.schedules import SCHEDULES


@dataclass(frozen=True)
class Training:
    """The options of a training pass that the loop and its engine read."""

    steps: int
    optimizer: str
    betas: tuple[float, float]
    learning_rate: float
    schedule: str
    warmup_steps: int
    weight_decay: float
    clip_grad: float | None
    accumulate: int
    loss_scale: float

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Training:
        return cls(**{name: options[name] for name in cls.__dataclass_fields__})

    def rate(self, step: int, model_step: int) -> float:
        """Of a step of the pass; noam counts all steps that the model has had."""
        counted = model_step if self.schedule == "noam" else step
        return self.learning_rate * SCHEDULES[self.schedule](counted, self.steps, self.warmup_steps)
