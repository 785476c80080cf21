"""The options of a training pass."""

from __future__ import annotations

from dataclasses import dataclass

from sprunec.engines.schedules import SCHEDULES


@dataclass(frozen=True, kw_only=True)
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

    def rate(self, step: int, model_step: int) -> float:
        """Of a step of the pass; noam counts all steps that the model has had."""
        counted = model_step if self.schedule == "noam" else step
        return self.learning_rate * SCHEDULES[self.schedule](counted, self.steps, self.warmup_steps)


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """How a pass distils: the weights of its losses, where the language model's counts 1, and pairs of states."""

    logits: float
    temperature: float
    hidden: float
    pairs: tuple[str, ...]
    project: bool
