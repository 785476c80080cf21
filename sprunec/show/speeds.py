"""How fast the models are, in words; a ratio only where its spread leaves no doubt on which side of 1 it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sprunec.show.numbers import NOTHING, is_finite, number

AS_DENSE = (0.9, 1.1)  # quartiles inside tell that there is no difference worth a word


def quartiles(model: Mapping[str, Any]) -> tuple[float, float] | None:
    """Of tokens per second; None where they are not known."""
    low, high = model.get("tokens_per_second_spread") or (None, None)
    return (low, high) if is_finite(low) and is_finite(high) else None


def relative(model: Mapping[str, Any]) -> tuple[float, float, float] | None:
    """How many times the dense model's speed, and the quartiles; None where they are not known."""
    found = model.get("relative_speed") or {}
    ratio, low, high = (found.get(key) for key in ("ratio", "low", "high"))
    return (ratio, low, high) if is_finite(ratio) and is_finite(low) and is_finite(high) else None


def ratio_words(model: Mapping[str, Any]) -> str:
    """`1.80 x` where that says something, else a word."""
    found = relative(model)
    if found is None:
        return NOTHING
    ratio, low, high = found
    if high - low <= abs(ratio - 1.0):
        return f"{ratio:.2f} x"
    return "as dense" if AS_DENSE[0] <= low and high <= AS_DENSE[1] else "unclear"


def rate_range(model: Mapping[str, Any]) -> str:
    found = quartiles(model)
    return NOTHING if found is None else " to ".join(number(each, ",.0f") for each in found)


def ratio_range(model: Mapping[str, Any]) -> str:
    found = relative(model)
    return NOTHING if found is None else f"{found[1]:.2f} to {found[2]:.2f} x"


def speed_words(models: Mapping[str, Any]) -> list[str]:
    """One line about the spread of what was measured, if anything was."""
    words = []
    for name, model in models.items():
        if model and relative(model):
            words.append(f"{name} {ratio_range(model)} dense")
        elif model and quartiles(model):
            words.append(f"{name} {rate_range(model)} tokens/s")
    return [f"speeds, quartiles over interleaved rounds: {'; '.join(words)}"] if words else []
