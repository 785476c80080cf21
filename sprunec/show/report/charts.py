"""Charts of runs: losses over steps, sizes against losses, speeds and latencies, masks while they learn.

With several runs on a page each has its colour in every chart, and passes have no bands of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sprunec.show.numbers import is_finite, number
from sprunec.show.report.plots import (
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axes,
    Points,
    bar,
    drawing,
    figure,
    of_run,
    series,
    table,
    text,
    thinned,
    tip,
    words,
)
from sprunec.show.report.runs import Events, Run
from sprunec.show.report_words import models_of, quartiles, rate_range

SERIES_NAMED = 8  # more budgets than this are told apart by their shade only
BEYOND = 1.08  # how far a frame goes beyond its largest number


class Place(NamedTuple):
    """A point: where it lies, what is told of it, and what is written beside it."""

    size: float
    value: float
    told: str
    name: str = ""


def loss_figure(runs: Sequence[Run], key: str = "loss", unit: str = "nats per target token") -> str:
    """Draw a loss over all steps that the model has had; in each pass, and what held-out text says meanwhile."""
    curves = {run.number: _by_pass(run, key) for run in runs}
    held = {run.number: _by_pass(run, "held_out") if key == "loss" else {} for run in runs}
    found = [points for each in (*curves.values(), *held.values()) for points in each.values()]
    losses = sorted(loss for points in found for _, loss in points)
    if not losses:
        return ""
    # The first steps of a fresh model may lie far above all others; they are drawn at the upper edge.
    high, low = losses[int(0.99 * (len(losses) - 1))], losses[0]
    axes = Axes(max(points[-1][0] for points in found), low - 0.05 * (high - low), high)
    drawn = _bands(axes, curves[runs[0].number]) if len(runs) == 1 else ""
    for run in runs:
        prefix = f"{run.name}, " if len(runs) > 1 else ""
        parts = _curves(axes, curves[run.number], prefix) + _held_out(axes, held[run.number], prefix)
        drawn += f"<g{of_run(run.number) if len(runs) > 1 else ''}>{parts}</g>"
    caption = f"{unit.capitalize()} over training steps; bold: means of neighbouring steps"
    caption += "; dots: on held-out text" if any(held.values()) else ""
    drawn = axes.svg(f"{'training' if key == 'loss' else key} loss over steps", drawn)
    return figure(drawn, caption, _loss_table(runs, curves, held))


def _by_pass(run: Run, key: str) -> dict[str, Points]:
    return series((e["node"], (e.get("model_steps", e.get("step")), e.get(key))) for e in run.events)


def _bands(axes: Axes, curves: Mapping[str, Points]) -> str:
    """Tell the passes of one run apart, every other one by a shade behind it."""
    parts = []
    for index, (node, points) in enumerate(curves.items()):
        start, end = axes.x(points[0][0] - 1), axes.x(points[-1][0])
        size = f'width="{end - start:.1f}" height="{axes.height - TOP - 28}"'
        parts += [f'<rect class="band" x="{start}" y="{TOP}" {size}/>'] if index % 2 == 0 else []
        fits = max(1, int((end - start) / 8))  # letters are rarely wider
        name = node if len(node) <= fits else node[: fits - 1] + "…"
        parts.append(words((start + end) / 2, TOP - 8, f"{text(name)}<title>{text(node)}</title>", "mid pass"))
    return "".join(parts)


def _curves(axes: Axes, curves: Mapping[str, Points], prefix: str) -> str:
    steps, parts = sum(map(len, curves.values())), []
    for node, points in curves.items():
        parts.append(axes.line(thinned(points, steps, 600), "raw"))
        parts.append(axes.curve(thinned(points, steps, 80), f"{prefix}{node}"))
    return "".join(parts)


def _held_out(axes: Axes, held: Mapping[str, Points], prefix: str) -> str:
    told = [
        axes.dot(step, loss, f"{prefix}{node}, step {step:,.0f}: {loss:.4f} on held-out text", "held")
        for node, points in held.items()
        for step, loss in points
    ]
    return "".join(told)


def _loss_table(
    runs: Sequence[Run], curves: Mapping[int, Mapping[str, Points]], held: Mapping[int, Mapping[str, Points]]
) -> str:
    rows = list[tuple[str, ...]]()
    for run in runs:
        for node, points in curves[run.number].items():
            last = held[run.number].get(node, [])[-1:]
            losses = [loss for _, loss in points]
            cells = (f"{each:.4f}" for each in (losses[0], min(losses), losses[-1], *(loss for _, loss in last)))
            given = [node, number(len(points)), *cells, *([] if last else ["-"])]
            rows.append((of_run(run.number), run.name, *given) if len(runs) > 1 else tuple(given))
    several = ["run"] if len(runs) > 1 else []
    return table([*several, "pass", "steps", "first", "lowest", "last", "held-out, last"], rows, ("run", "pass"))


def size_figure(runs: Sequence[Run]) -> str:
    """Draw how large dense and small models are, and their held-out losses."""

    def points(run: Run) -> Iterator[Place]:
        for role in ("dense", "small"):
            model = models_of(run.report)[role]
            size, loss = model.get("parameters"), model.get("loss")
            if is_finite(size) and is_finite(loss):
                yield Place(size, loss, f"{run.name}, {role}: {number(size)} parameters, loss {loss:.4f}", role)

    caption = "Held-out loss, nats per token, over parameters; circle: dense"
    return _scatter(runs, points, "held-out loss over parameters", caption)


def speed_size_figure(runs: Sequence[Run]) -> str:
    """Draw how large dense and small models are, and how fast."""

    def points(run: Run) -> Iterator[Place]:
        for role in ("dense", "small"):
            model = models_of(run.report)[role]
            size, speed = model.get("parameters"), model.get("tokens_per_second")
            if is_finite(size) and is_finite(speed):
                told = f"{number(speed, ',.0f')} tokens/s ({rate_range(model)})"
                yield Place(size, speed, f"{run.name}, {role}: {number(size)} parameters, {told}", role)

    caption = "Tokens per second of a forward pass, over parameters; each run has measured its own models in turn"
    return _scatter(runs, points, "speed over parameters", caption, from_zero=True)


def search_figure(runs: Sequence[Run]) -> str:
    """Draw how far each solution of a sweep is from the dense model."""
    caption = "KL of the cut model's output to the dense one's, in nats a token, over parameters: a search's solutions."
    return _scatter(
        runs, lambda run: _solutions(run, lambda row: row.get("kl"), "KL", ".4f"), "loss over size", caption
    )


def latency_figure(runs: Sequence[Run]) -> str:
    """Draw how long each solution of a search takes by the latencies that were measured for it."""

    def points(run: Run) -> Iterator[Place]:
        return _solutions(run, lambda row: (row["limits"].get("milliseconds") or {}).get("got"), "milliseconds", ".3g")

    caption = "Milliseconds by the table of latencies, over parameters: a search's solutions."
    return _scatter(runs, points, "latency over size", caption, from_zero=True)


def _solutions(run: Run, of: Callable[[Mapping[str, Any]], Any], what: str, form: str) -> Iterator[Place]:
    for row in run.report.get("search") or ():
        size, value = row.get("parameters"), of(row)
        if is_finite(size) and is_finite(value):
            taken = ", goes on" if row.get("chosen") else ""
            yield Place(size, value, f"{run.name}: {number(size)} parameters, {what} {value:{form}}{taken}")


def _scatter(
    runs: Sequence[Run],
    points: Callable[[Run], Iterator[Place]],
    label: str,
    caption: str,
    from_zero: bool = False,
) -> str:
    """Draw each run's points, joined in the order of their sizes; nothing where there are fewer than two."""
    found = {run.number: sorted(points(run)) for run in runs}
    values = [each.value for places in found.values() for each in places]
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    spread = 0.1 * ((high - low) or abs(high) or 1.0)
    most = BEYOND * max(each.size for places in found.values() for each in places)
    axes, parts = Axes(most, 0.0 if from_zero else low - spread, high + spread, height=280), []
    for run in runs:
        places = found[run.number]
        marks = [axes.dot(*each[:3], "held" if each.name == "dense" else "dot") for each in places]
        marks += [axes.name(*each[:2], each.name) for each in places if len(runs) == 1]
        line = axes.line([each[:2] for each in places], "joined")
        parts.append(f"<g{of_run(run.number) if len(runs) > 1 else ''}>{line}{''.join(marks)}</g>")
    return figure(axes.svg(label, *parts), caption)


def mask_figures(events: Events) -> list[str]:
    """Draw expected size against target, one drawing for each pass that learns a mask."""
    learning: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        if event.get("budgets"):
            learning.setdefault(str(event["node"]), []).append(event)
    return [mask_figure(node, steps) for node, steps in learning.items()]


def mask_figure(node: str, events: Events) -> str:
    sizes = [(event.get("step"), budget) for event in events for budget in event["budgets"]]
    expected, target = (series((b["name"], (x, b.get(y))) for x, b in sizes) for y in ("expected", "target"))
    points = [point for line in (*expected.values(), *target.values()) for point in line]
    if not points:
        return ""
    axes = Axes(max(step for step, _ in points), 0.0, max(size for _, size in points) * 1.05, height=240)
    aims = {tuple(thinned(line, len(events), 100)) for line in target.values()}  # equal targets are one line
    parts, rows = [axes.line(list(line), "target") for line in sorted(aims)], []
    for index, (name, line) in enumerate(expected.items()):
        shade = f"{1 - 0.75 * index / max(len(expected) - 1, 1):.2f}"
        parts.append(f'<g stroke-opacity="{shade}">{axes.curve(thinned(line, len(events), 60), name)}</g>')
        ends = [series[-1][1] for series in (line, target.get(name, line))]
        rows.append((name, *(f"{size:,.1f}" for size in (line[0][1], *ends))))
    many = f", {len(expected)} budgets, paler from first to last" if len(expected) > SERIES_NAMED else ""
    caption = f"{node}: expected size over its steps{many}; dashed: target"
    numbers = table(("budget", "first", "last", "target"), rows, ("budget",))
    return figure(axes.svg(f"expected size in {node}", *parts), caption, numbers)


def speed_figure(run: Run) -> str:
    """Draw a bar to each model's median speed, and a line from quartile to quartile."""
    models, shown = models_of(run.report), dict[str, tuple[Any, ...]]()
    for name, model in models.items():
        if (spread := quartiles(model)) and is_finite(speed := model.get("tokens_per_second")):
            shown[name] = (speed, *spread)
    most = max((max(found) for found in shown.values()), default=0.0)
    if not most > 0.0:
        return ""
    parts, room = [], WIDTH - LEFT - 12 - RIGHT - 76
    for place, (name, (speed, low, high)) in enumerate(shown.items()):
        y, scale, start = 30 * place, room / most, LEFT + 12
        told = f"{name}: {number(speed, ',.0f')} tokens/s ({rate_range(models[name])})"
        parts += [words(LEFT, y + 14, text(name), "end"), bar("on", start, y, scale * speed, tip(told))]
        ends = f'x1="{start + scale * low:.1f}" x2="{start + scale * high:.1f}" y1="{y + 9}" y2="{y + 9}"'
        parts += [f'<line class="span" {ends}/>', words(start + scale * high + 8, y + 14, number(speed, ",.0f"))]
    caption = "Tokens per second of a forward pass: medians over interleaved rounds; the line: quartiles."
    return figure(drawing(WIDTH, 30 * len(shown), "tokens per second", *parts), caption)
