"""What a report says of its models, in words: rows, comparisons, sizes that were missed, and speeds.

A ratio of speeds is shown only where its spread leaves no doubt on which side of 1 it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sprunec.show.numbers import NOTHING, is_finite, number, percent, plural, powered

MODELS = ("dense", "masked", "small")
MOST_MISSED = 4
AS_DENSE = (0.9, 1.1)  # quartiles inside tell that there is no difference worth a word


def model_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Make one row of seven words for each of the three models; parameters and speed also relative to dense."""
    models = report.get("models") or {}
    dense = models.get("dense") or {}
    rows: list[tuple[str, ...]] = []
    for name in MODELS:
        model = models.get(name) or {}
        size, speed = model.get("parameters"), model.get("tokens_per_second")
        share = percent(size, dense.get("parameters"))
        faster = "1.00 x" if name == "dense" and is_finite(speed) else ratio_words(model)
        loss, perplexity = number(model.get("loss"), ".4f"), number(model.get("perplexity"), ".2f")
        rows.append((name, number(size), share, loss, perplexity, number(speed, ",.0f"), faster))
    return rows


# ---- what was kept


def kept_layers(report: Mapping[str, Any]) -> list[tuple[int, Any, Any]]:
    """List (layer, heads, dim_ff) in order; None is an absent sublayer, NOTHING one that nobody spoke of."""
    kept = report.get("kept") or {}
    attention, feed_forward = kept.get("attention") or {}, kept.get("feed_forward") or {}
    layers = sorted({int(layer) for layer in (*attention, *feed_forward)})
    return [(n, attention.get(str(n), NOTHING), feed_forward.get(str(n), NOTHING)) for n in layers]


def whole(value: Any) -> int | None:
    """Return a count, if it is one."""
    return int(value) if is_finite(value) else None


# ---- comparisons


def comparison_lines(report: Mapping[str, Any]) -> list[str]:
    """Say how far apart masked and small are, and of each emitted format how far it is, or why there is none."""
    lines = [comparison_words(report)]
    for name, found in (report.get("formats") or {}).items():
        if "error" in found:
            lines.append(f"{name} is not published: {found['error']}")
        else:
            apart, over = f"{_difference(found)} of {found['dtype']}", plural(found.get("tokens"), "token")
            lines.append(f"{name}, opened again: {apart}, over {over}")
    return lines


def comparison_words(report: Mapping[str, Any]) -> str:
    found = report.get("comparison")
    if not found:
        return "masked and small were not compared"
    words = f"masked against small: {_difference(found)}, over {plural(found.get('tokens'), 'token')}"
    if "float32_difference" in found:
        single, largest = powered(found["float32_difference"]), powered(found.get("largest_logit"))
        words += f"; in float32 arithmetic {single}, on logits up to {largest}"
    return words


def _difference(found: Mapping[str, Any]) -> str:
    """Say how far apart two models are; a difference that is no number is above every tolerance."""
    apart, tolerance = found.get("max_abs_difference"), found.get("tolerance")
    verdict = "within" if is_finite(apart) and is_finite(tolerance) and apart <= tolerance else "ABOVE"
    limit = f"{verdict} the tolerance {powered(tolerance)}" if is_finite(tolerance) else "the tolerance is unknown"
    return f"max |delta logit| {powered(apart)}, {limit}"


# ---- sizes


def missed_lines(report: Mapping[str, Any]) -> list[str]:
    """Name the budgets whose mask is not exactly of the size that was asked for, or not known to be."""
    missed = [budget for budget in report.get("budgets") or () if _excess(budget) != 0.0]
    sizes = [(budget, *budget_sizes(budget)) for budget in missed[:MOST_MISSED]]
    lines = [f"{budget['pass']}, {budget['name']}: asked {asked}, got {got}" for budget, asked, got, _ in sizes]
    more = len(missed) - MOST_MISSED
    return [*lines, f"and {plural(more, 'budget')} more"] if more > 0 else lines


def budget_sizes(budget: Mapping[str, Any]) -> tuple[str, str, str]:
    """Write what was asked, what was got, and by how much they differ."""
    excess = _excess(budget)
    return _size(_asked(budget)), _size(budget.get("got")), _size(excess) if excess else NOTHING


def _asked(budget: Mapping[str, Any]) -> Any:
    """Take the plan's size; reports of before it was told apart from the target have that alone."""
    return budget.get("asked", budget.get("target"))


def _excess(budget: Mapping[str, Any]) -> float | None:
    """Measure what a mask keeps above what was asked for; None where one of the two is unknown."""
    got, asked = budget.get("got"), _asked(budget)
    return float(got) - float(asked) if is_finite(got) and is_finite(asked) else None


def _size(value: Any) -> str:
    """Write a target or what became of it: nearly always whole."""
    return number(value, ",.0f" if is_finite(value) and float(value).is_integer() else ",.1f")


# ---- speeds


def quartiles(model: Mapping[str, Any]) -> tuple[float, float] | None:
    """Read those of tokens per second; None where they are not known."""
    low, high = model.get("tokens_per_second_spread") or (None, None)
    return (low, high) if is_finite(low) and is_finite(high) else None


def relative(model: Mapping[str, Any]) -> tuple[float, float, float] | None:
    """Read how many times the dense model's speed, and the quartiles; None where they are not known."""
    found = model.get("relative_speed") or {}
    ratio, low, high = (found.get(key) for key in ("ratio", "low", "high"))
    return (ratio, low, high) if is_finite(ratio) and is_finite(low) and is_finite(high) else None


def ratio_words(model: Mapping[str, Any]) -> str:
    """Write `1.80 x` where that says something, else a word."""
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


def speed_lines(report: Mapping[str, Any]) -> list[str]:
    """Write one line about the spread of what was measured, if anything was."""
    words = []
    for name, model in (report.get("models") or {}).items():
        if model and relative(model):
            words.append(f"{name} {ratio_range(model)} dense")
        elif model and quartiles(model):
            words.append(f"{name} {rate_range(model)} tokens/s")
    return [f"speeds, quartiles over interleaved rounds: {'; '.join(words)}"] if words else []
