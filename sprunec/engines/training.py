"""The options of a training pass, and how its learning rate runs. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

# After the warm-up: a factor of the plan's `learning_rate`, by the share of the steps that are done.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),  # Loshchilov & Hutter 2017
    "linear": lambda done: 1 - done,
    "constant": lambda done: 1.0,
}


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
        """Return the learning rate of a step of the pass; noam counts all steps that the model has had."""
        counted = model_step if self.schedule == "noam" else step
        return self.learning_rate * factor(self.schedule, counted, self.steps, self.warmup_steps)


def factor(schedule: str, step: int, steps: int, warmup: int) -> float:
    """Return what the learning rate is multiplied by at a step, from 0: a linear warm-up, then as in `SCHEDULES`.

    noam is min(t / warmup^1.5, 1 / sqrt(t)), t from 1 (Vaswani et al. 2017), and stays low if the warm-up is never
    over. It doesn't know its end: its steps count from the model's first step, not the pass's.
    """
    if schedule == "noam":
        return min(float((step + 1) / max(warmup, 1) ** 1.5), float((step + 1) ** -0.5))
    warm = min(1.0, (step + 1) / warmup) if warmup else 1.0
    done = min(1.0, max(0.0, (step - warmup) / max(1, steps - warmup)))
    return warm * SCHEDULES[schedule](done)


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """How a pass distils: the weights of its losses, where the language model's counts 1, and pairs of states.

    Attributes:
        divergence: of the student's probabilities from the teacher's, see `divergences`.
        on: where: "targets", "all"; None: logits on targets, hidden states on all.
    """

    logits: float
    temperature: float
    hidden: float
    pairs: tuple[str, ...]
    project: bool
    divergence: str = "forward"
    on: str | None = None

    @property
    def logits_on(self) -> str:
        return self.on or "targets"

    @property
    def hidden_on(self) -> str:
        return self.on or "all"


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """What trains in the place of weights: matrices of so many rows and columns, times alpha / rank."""

    kind: str
    rank: int
    alpha: float
    targets: tuple[str, ...]
