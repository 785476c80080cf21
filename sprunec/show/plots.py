"""Draw a run's page: losses, sizes of masks while they learn, speeds, what was kept; plain SVG."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import floor, log10
from typing import Any

from sprunec.show.numbers import UNKNOWN, is_finite, number
from sprunec.show.report_words import kept_layers, models_of, quartiles, rate_range, unit_totals

Points = list[tuple[float, float]]
Events = Sequence[Mapping[str, Any]]

WIDTH, LEFT, RIGHT = 1000, 52, 16  # of every drawing, and its margins
SERIES_NAMED = 8  # more budgets than this are told apart by their shade only


def text(value: object) -> str:
    """Write a value as HTML text; control characters, which XML forbids, are replaced."""
    return escape("".join(c if c >= " " or c in "\n\t" else "\ufffd" for c in str(value)))


def drawing(width: float, height: float, label: str, *parts: str) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"'
    return f'{head} aria-label="{text(label)}">{"".join(parts)}</svg>'


def words(x: float, y: float, content: str, kind: str = "") -> str:
    """Set `content`, which is HTML text already; its `kind` says on which side of it the place is."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y}">{content}</text>'


def bar(kind: str, x: float, y: float, width: float, inside: str = "") -> str:
    return f'<rect class="{kind}" x="{x:.1f}" y="{y}" width="{width:.1f}" height="18" rx="2">{inside}</rect>'


@dataclass(frozen=True)
class Axes:
    """Where numbers lie in a drawing: `0..right` and `low..high` fill the frame inside the margins."""

    right: float
    low: float
    high: float
    height: int = 300

    def x(self, value: float) -> float:
        return round(LEFT + value / (self.right or 1.0) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / ((self.high - self.low) or 1.0)
        return round(self.height - 24 - share * (self.height - 48), 1)

    def line(self, points: Points, kind: str, style: str = "") -> str:
        places = " ".join(f"{self.x(x)},{self.y(y)}" for x, y in points)
        return f'<polyline class="{kind}" points="{places}"{style}/>'

    def svg(self, label: str, *parts: str) -> str:
        """Draw the frame with its ticks, and the parts over it."""
        frame = []
        for tick in ticks(self.low, self.high):
            y = self.y(tick)
            frame.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
            frame.append(words(LEFT - 8, y + 4, f"{tick:g}", "end"))
        frame += [words(self.x(tick), self.height - 4, f"{tick:g}", "mid") for tick in ticks(0.0, self.right)]
        return drawing(WIDTH, self.height, label, *frame, *parts)


def ticks(low: float, high: float) -> list[float]:
    """Choose about five round numbers between two."""
    if high <= low:
        return [low]
    rough = (high - low) / 5
    power = 10.0 ** floor(log10(rough))
    step = power * next(m for m in (1, 2, 5, 10) if rough <= m * power * 1.0001)
    first = -floor(-low / step * 0.999999)
    return [round(n * step, 10) for n in range(first, floor(high / step * 1.000001) + 1)]


def thinned(points: Points, steps: int, most: int) -> Points:
    """Take means of neighbours, `most` points for so many steps: a drawing has no room for a million."""
    size = max(1, -(-steps // most))
    groups = (points[i : i + size] for i in range(0, len(points), size))
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def series(pairs: Iterable[tuple[object, tuple[Any, Any]]]) -> dict[str, Points]:
    """Collect points by name, of those pairs of which both numbers are known and finite."""
    found: dict[str, Points] = {}
    for name, (x, y) in pairs:
        if is_finite(x) and is_finite(y):
            found.setdefault(str(name), []).append((float(x), float(y)))
    return found


def loss_chart(events: Events, loss: str = "loss", unit: str = "nats per target token") -> str:
    """Draw a loss over all steps that the model has had, each pass that has it on a band of its own."""
    curves = series((e["node"], (e.get("model_steps", e.get("step")), e.get(loss))) for e in events)
    losses = sorted(loss for points in curves.values() for _, loss in points)
    if not losses:
        return ""
    # The first steps of a fresh model may lie far above all others; they are drawn at the upper edge.
    high, low = losses[int(0.99 * (len(losses) - 1))], losses[0]
    axes, parts = Axes(max(p[-1][0] for p in curves.values()), low - 0.05 * (high - low), high), []
    for index, (node, points) in enumerate(curves.items()):
        start, end = axes.x(points[0][0] - 1), axes.x(points[-1][0])
        if index % 2 == 0:
            parts.append(
                f'<rect class="band" x="{start}" y="20" width="{end - start:.1f}" height="{axes.height - 44}"/>'
            )
        fits = max(1, int((end - start) / 6.6))  # letters of 12 px are rarely wider
        name = node if len(node) <= fits else node[: fits - 1] + "…"
        parts.append(words((start + end) / 2, 14, f"{text(name)}<title>{text(node)}</title>", "mid"))
        parts += [axes.line(thinned(points, len(losses), most), kind) for kind, most in (("raw", 1000), ("curve", 80))]
    caption = f"<p>{unit.capitalize()} over training steps; bold: means of neighbouring steps.</p>"
    return axes.svg(f"{'training' if loss == 'loss' else loss} loss over steps", *parts) + caption


def mask_charts(events: Events) -> list[str]:
    """Draw expected size against target, one drawing for each pass that learns a mask."""
    learning: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        if event.get("budgets"):
            learning.setdefault(str(event["node"]), []).append(event)
    return [f"<h3>{text(node)}</h3>{mask_chart(node, steps)}" for node, steps in learning.items()]


def mask_chart(node: str, events: Events) -> str:
    sizes = [(event.get("step"), budget) for event in events for budget in event["budgets"]]
    expected, target = (series((b["name"], (x, b.get(y))) for x, b in sizes) for y in ("expected", "target"))
    points = [point for line in (*expected.values(), *target.values()) for point in line]
    if not points:
        return ""
    axes = Axes(max(step for step, _ in points), 0.0, max(size for _, size in points) * 1.05, height=240)
    aims = {tuple(thinned(line, len(events), 200)) for line in target.values()}  # equal targets are one line
    parts, legend = [axes.line(list(line), "target") for line in sorted(aims)], ""
    for index, (name, line) in enumerate(expected.items()):
        shade = f"{1 - 0.75 * index / max(len(expected) - 1, 1):.2f}"
        parts.append(axes.line(thinned(line, len(events), 200), "curve", f' stroke-opacity="{shade}"'))
        legend += f'<span class="key"><i style="opacity:{shade}"></i>{text(name)}</span>'
    if len(expected) > SERIES_NAMED:
        legend = f"{len(expected)} budgets, paler from first to last; "
    return axes.svg(f"expected size in {node}", *parts) + f"<p>{legend}dashed: target</p>"


def search_chart(report: Mapping[str, Any]) -> str:
    """Draw how far each solution of a sweep is from the dense model, over its parameters."""
    found = [row for row in report.get("search") or () if is_finite(row.get("kl"))]
    points = sorted((row["parameters"] / 1e6, row["kl"]) for row in found)
    if len(points) < 2:
        return ""
    high = max(kl for _, kl in points)
    axes = Axes(max(size for size, _ in points) * 1.05, 0.0, high * 1.05, height=260)
    dots = [f'<circle class="on" cx="{axes.x(x)}" cy="{axes.y(y)}" r="4"/>' for x, y in points]
    caption = "<p>KL of the cut model's output to the dense one's, in nats a token, over millions of parameters.</p>"
    return axes.svg("loss over size", axes.line(points, "curve"), *dots) + caption


def speed_chart(report: Mapping[str, Any]) -> str:
    """Draw a bar to each model's median speed, and a line from quartile to quartile."""
    models, shown = models_of(report), dict[str, tuple[Any, ...]]()
    for name, model in models.items():
        if (spread := quartiles(model)) and is_finite(speed := model.get("tokens_per_second")):
            shown[name] = (speed, *spread)
    most = max((max(found) for found in shown.values()), default=0.0)
    if not most > 0.0:
        return ""
    parts = []
    for place, (name, (speed, low, high)) in enumerate(shown.items()):
        y, scale = 26 * place, 700 / most
        parts += [words(68, y + 14, text(name), "end"), bar("on", 80, y, scale * speed)]
        ends = f'x1="{80 + scale * low:.1f}" x2="{80 + scale * high:.1f}" y1="{y + 9}" y2="{y + 9}"'
        measured = f"{number(speed, ',.0f')} ({rate_range(models[name])})"
        parts += [f'<line class="span" {ends}/>', words(790, y + 14, measured)]
    caption = "<p>Tokens per second of a forward pass: medians over interleaved rounds; the line: quartiles.</p>"
    return drawing(WIDTH, 26 * len(shown), "tokens per second", *parts) + caption


def kept_drawings(report: Mapping[str, Any]) -> list[str]:
    """Draw heads as a grid of layers by heads, feed-forward widths as bars; say of what was not cut that it was not."""
    layers, found = kept_layers(report), []
    shown: Sequence[tuple[str, str, Callable[[Any, int, int], str]]]
    shown = (("heads", "Attention heads", head_row), ("dims", "Feed-forward dims", width_row))
    for kind, ((units, title, draw), total) in enumerate(zip(shown, unit_totals(report), strict=True), start=1):
        kept = {layer[0]: layer[kind] for layer in layers}
        if total and all((len(k) if isinstance(k, list) else k) == total for k in kept.values()):
            found.append(f"<h3>{title}</h3><p>All {number(total)} {units} in every layer.</p>")
            continue
        parts = []
        for y, (layer, left) in zip(range(0, 22 * len(kept), 22), kept.items(), strict=True):
            row = words(80, y + 14, left, "word") if isinstance(left, str) else draw(left, total or 0, y)
            parts += [words(68, y + 14, f"layer {layer}", "end"), row]
        rows = drawing(WIDTH, 22 * len(kept), f"kept {units}", *parts)
        found.append(f"<h3>{title}, of {number(total, nothing=UNKNOWN)}</h3>{rows}")
    return found if layers else []


def head_row(heads: Sequence[int], total: int, y: int) -> str:
    wide, cells = min(30.0, 800 / max(total, 1)), ""
    for head in range(total):
        kind, done = ("on", "kept") if head in heads else ("off", "cut")
        cells += bar(kind, 80 + head * wide, y, wide * 0.9, f"<title>head {head}: {done}</title>")
    return cells + words(88 + total * wide, y + 14, str(len(set(heads))))


def width_row(width: Any, total: int, y: int) -> str:
    full = 800 * width / total if total and is_finite(width) else 0
    return bar("off", 80, y, 800) + bar("on", 80, y, full) + words(888, y + 14, number(width))
