"""How the learning rate runs over a pass, as a factor of the plan's `learning_rate`."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int, int, int], float]


def cosine(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then half a cosine down to nothing (Loshchilov & Hutter 2017)."""
    return _warm(step, warmup) * 0.5 * (1 + math.cos(math.pi * _progress(step, steps, warmup)))


def linear(step: int, steps: int, warmup: int) -> float:
    return _warm(step, warmup) * (1 - _progress(step, steps, warmup))


def constant(step: int, steps: int, warmup: int) -> float:
    return _warm(step, warmup)


def noam(step: int, steps: int, warmup: int) -> float:
    """rate * min(t / warmup^1.5, 1 / sqrt(t)), t from 1 (Vaswani et al. 2017); steps below the warm-up stay low.

    The one schedule that doesn't know its end: `step` counts from the model's first step, not the pass's.
    """
    t = step + 1
    return min(float(t / max(warmup, 1) ** 1.5), float(t**-0.5))


SCHEDULES: dict[str, Schedule] = {"cosine": cosine, "linear": linear, "constant": constant, "noam": noam}


def _warm(step: int, warmup: int) -> float:
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


def _progress(step: int, steps: int, warmup: int) -> float:
    return min(1.0, max(0.0, (step - warmup) / max(1, steps - warmup)))
