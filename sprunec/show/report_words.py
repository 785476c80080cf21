"""What a report says of its models, in words: rows, comparisons, sizes that were missed, and speeds.

A ratio of speeds is shown only where its spread leaves no doubt on which side of 1 it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sprunec.show.numbers import ABSENT, NOTHING, is_finite, number, percent, plural, powered

MODELS = ("dense", "masked", "small")
WORST, IN_FLOAT32 = ("max_abs_difference", "tolerance"), ("float32_difference", "float32_tolerance")
MOST_MISSED = 4
MANY = 1000.0
AS_DENSE = (0.9, 1.1)  # quartiles inside tell that there is no difference worth a word


def models_of(report: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Give what was measured of each of the three models; nothing of one that was not."""
    found = report.get("models") or {}
    return {name: found.get(name) or {} for name in MODELS}


def model_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Make one row of seven words for each of the three models; parameters and speed also relative to dense."""
    models, rows = models_of(report), list[tuple[str, ...]]()
    for name, model in models.items():
        size, speed = model.get("parameters"), model.get("tokens_per_second")
        share = percent(size, models["dense"].get("parameters"))
        faster = "1.00 x" if name == "dense" and is_finite(speed) else ratio_words(model)
        loss, perplexity = number(model.get("loss"), ".4f"), number(model.get("perplexity"), ".2f")
        rows.append((name, number(size), share, loss, perplexity, number(speed, ",.0f"), faster))
    return rows


def task_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Make one row of six words for each metric of each task: dense and small, the change, the number of samples."""
    found = [models_of(report)[role].get("tasks") or {} for role in ("dense", "small")]
    measured = dict.fromkeys((task, metric) for tasks in found for task, metrics in tasks.items() for metric in metrics)
    rows = list[tuple[str, ...]]()
    for task, metric in measured:
        dense, small = (tasks.get(task, {}).get(metric) or {} for tasks in found)
        change, samples = change_words(dense.get("value"), small.get("value")), (dense or small).get("samples")
        rows.append((task, metric, _score(dense), _score(small), change, number(samples)))
    return rows


def search_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Make one row of ten words for each limit of each solution that a search has found."""
    rows = list[tuple[str, ...]]()
    for found in report.get("search") or ():
        measured = (number(found.get(key), form) for key, form in (("damage", ".4f"), ("gap", ".2%"), ("absent", "")))
        more = *measured, number(found.get("kl"), ".4f"), number(found.get("taken")), "yes" if found["chosen"] else "no"
        for name, limit in found["limits"].items():
            asked, got = (_amount(limit.get(key)) for key in ("asked", "got"))
            rows.append((name, asked, got, number(found.get("parameters")), *more))
    return rows


def _amount(value: Any) -> str:
    return number(value, ",.0f" if is_finite(value) and value == round(value) else ",.6g")


def _score(found: Mapping[str, Any]) -> str:
    error = f" ± {_short(found['stderr'])}" if is_finite(found.get("stderr")) else ""
    return _short(found.get("value")) + error


def change_words(before: Any, after: Any) -> str:
    """Write by how much a number has changed, with its sign."""
    if not is_finite(before) or not is_finite(after):
        return NOTHING
    return f"{'-' if after < before else '+'}{_short(abs(after - before))}"


def _short(value: Any) -> str:
    """Write four places behind the point of what is below a thousand, which shares and most others are."""
    return number(value, ".4g" if is_finite(value) and abs(value) >= MANY else ".4f")


def kept_layers(report: Mapping[str, Any]) -> list[tuple[int, Any, Any]]:
    """List (layer, heads, dim_ff) in order; a word where the sublayer is absent, or nobody spoke of it."""
    kept = report.get("kept") or {}
    sublayers = [kept.get(name) or {} for name in ("attention", "feed_forward")]
    found = []
    for layer in sorted({int(layer) for sublayer in sublayers for layer in sublayer}):
        heads, width = (sublayer.get(str(layer), NOTHING) for sublayer in sublayers)
        found.append((layer, ABSENT if heads is None else heads, ABSENT if width is None else width))
    return found


SUMMARY = ("status", "parameters", "of dense", "dense loss", "small loss", "change", "speed", "max |delta logit|")


def summary_row(report: Mapping[str, Any]) -> tuple[str, ...]:
    """Sum a run up, as `SUMMARY` names it."""
    dense, _, small = models_of(report).values()
    size, losses = small.get("parameters"), (dense.get("loss"), small.get("loss"))
    apart = (report.get("comparison") or {}).get("max_abs_difference")
    sizes = number(size), percent(size, dense.get("parameters"))
    compared = powered(apart) if report.get("comparison") else NOTHING
    words = (*sizes, *(number(loss, ".4f") for loss in losses), change_words(*losses))
    return (str(report["status"]), *words, ratio_words(small), compared)


def proof_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Make one row of six words for each comparison: of what, in which arithmetic, how far, the limit, on what."""
    rows, found = list[tuple[str, ...]](), report.get("comparison") or {}
    if found:
        for arithmetic, keys in (("float64", WORST), ("float32", IN_FLOAT32)):
            if keys[0] in found:
                rows.append(_proof("logits of masked and small", arithmetic, found, *keys))
        if "worst_block_difference" in found:
            what = f"hidden states behind block {number(found.get('worst_block'))}, where they differ most"
            apart = powered(found["worst_block_difference"])
            rows.append((what, "float64", apart, NOTHING, number(found.get("tokens")), NOTHING))
    for name, form in (report.get("formats") or {}).items():
        dtype, by = number(form.get("dtype")), f" by {form['runtime']}" if "runtime" in form else ""
        rows.append(_proof(f"{name}, opened again{by}, and small", dtype, form, *WORST))
        if "decoding_difference" in form:
            apart = powered(form["decoding_difference"])
            what = f"{name}: token by token with its cache, and in one forward"
            rows.append((what, dtype, apart, NOTHING, NOTHING, NOTHING))
        if greedy := form.get("greedy"):
            same = f"{number(greedy.get('same'))} alike"
            tokens = number(greedy.get("tokens"))
            rows.append((f"{name}: greedy tokens and small's", dtype, same, NOTHING, tokens, NOTHING))
    return rows


def _proof(what: str, arithmetic: str, found: Mapping[str, Any], apart: str, limit: str) -> tuple[str, ...]:
    sizes = powered(found.get(apart)), powered(found.get(limit))
    return (what, arithmetic, *sizes, number(found.get("tokens")), verdict(found.get(apart), found.get(limit)))


def verdict(apart: Any, tolerance: Any) -> str:
    """Say on which side of a limit a difference is; one that is no number is above every limit."""
    return "within" if is_finite(apart) and is_finite(tolerance) and apart <= tolerance else "ABOVE"


def unit_totals(report: Mapping[str, Any]) -> list[int | None]:
    """Read how many heads and feed-forward dims a layer of the input model has; None where that is not known."""
    sizes = [(report.get("config") or {}).get(name) for name in ("num_heads", "dim_ff")]
    return [int(size) if is_finite(size) else None for size in sizes]


def comparison_lines(report: Mapping[str, Any]) -> list[str]:
    """Say how far apart masked and small are, and of each emitted format how far it is, or why there is none."""
    lines = [comparison_words(report)]
    for name, found in (report.get("formats") or {}).items():
        failed = f"{name} is not published: {found['error']}" if "error" in found else ""
        trusting = ", with trust_remote_code=True" if found.get("own_code") else ""
        by = f" by {found['runtime']}" if "runtime" in found else ""
        line = f"{name}, opened again{by}{trusting}: {_difference(found)}"
        if "decoding_difference" in found:
            line += f"; with past keys and values {powered(found['decoding_difference'])} from one forward"
        if greedy := found.get("greedy"):
            line += f"; greedily it goes on as the small model for {greedy['same']} of {greedy['tokens']} tokens"
        lines.append(failed or line)
    return lines


def comparison_words(report: Mapping[str, Any]) -> str:
    found = report.get("comparison")
    if not found:
        return "masked and small were not compared"
    words = f"masked against small: {_difference(found)}"
    if "float32_difference" in found:
        single, largest = powered(found["float32_difference"]), powered(found.get("largest_logit"))
        words += f"; in float32 arithmetic {single}, on logits up to {largest}"
    return words


def _difference(found: Mapping[str, Any]) -> str:
    """Say how far apart two models are; a difference that is no number is above every tolerance."""
    apart, tolerance = found.get("max_abs_difference"), found.get("tolerance")
    above = verdict(apart, tolerance)
    limit = f"{above} the tolerance {powered(tolerance)}" if is_finite(tolerance) else "the tolerance is unknown"
    of = f" of {found['dtype']}" if "dtype" in found else ""
    return f"max |delta logit| {powered(apart)}, {limit}{of}, over {plural(found.get('tokens'), 'token')}"


def missed_lines(report: Mapping[str, Any]) -> list[str]:
    """Name the budgets whose mask is not exactly of the size that was asked for, or not known to be."""
    sizes = [(budget, *budget_sizes(budget)) for budget in report.get("budgets") or ()]
    missed = [f"{row['pass']}, {row['name']}: asked {asked}, got {got}" for row, asked, got, off in sizes if off != "0"]
    more = len(missed) - MOST_MISSED
    return missed[:MOST_MISSED] + ([f"and {plural(more, 'budget')} more"] if more > 0 else [])


def budget_sizes(budget: Mapping[str, Any]) -> list[str]:
    """Write what was asked, what was got, and by how much they differ: "0" only where that is not at all.

    Reports of before the plan's size was told apart from the target have that alone.
    """
    asked, got = budget.get("asked", budget.get("target")), budget.get("got")
    off = float(got) - float(asked) if is_finite(got) and is_finite(asked) else None
    return [number(size, ",.0f" if is_finite(size) and size == round(size) else ",.1f") for size in (asked, got, off)]


def quartiles(model: Mapping[str, Any]) -> Sequence[float]:
    """Read those of tokens per second; empty where they are not known."""
    found = model.get("tokens_per_second_spread") or ()
    return found if all(map(is_finite, found)) else ()


def relative(model: Mapping[str, Any]) -> Sequence[float]:
    """Read how many times the dense model's speed, and the quartiles; empty where they are not known."""
    found: list[Any] = [(model.get("relative_speed") or {}).get(key) for key in ("ratio", "low", "high")]
    return found if all(map(is_finite, found)) else ()


def ratio_words(model: Mapping[str, Any]) -> str:
    """Write `1.80 x` where that says something, else a word."""
    if not (found := relative(model)):
        return NOTHING
    ratio, low, high = found
    if high - low <= abs(ratio - 1.0):
        return f"{ratio:.2f} x"
    return "as dense" if AS_DENSE[0] <= low and high <= AS_DENSE[1] else "unclear"


def ratio_range(model: Mapping[str, Any]) -> str:
    return "{1:.2f} to {2:.2f} x".format(*found) if (found := relative(model)) else NOTHING


def rate_range(model: Mapping[str, Any]) -> str:
    return " to ".join(number(each, ",.0f") for each in quartiles(model)) or NOTHING


def speed_lines(report: Mapping[str, Any]) -> list[str]:
    """Write one line about the spread of what was measured, if anything was."""
    words = []
    for name, model in models_of(report).items():
        if relative(model):
            words.append(f"{name} {ratio_range(model)} dense")
        elif quartiles(model):
            words.append(f"{name} {rate_range(model)} tokens/s")
    return [f"speeds, quartiles over interleaved rounds: {'; '.join(words)}"] if words else []
