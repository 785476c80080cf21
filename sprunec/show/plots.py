"""The drawings of a run's page: losses, sizes of masks while they learn, what was kept; plain SVG."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import floor, log10
from typing import Any

from sprunec.show.numbers import ABSENT, UNKNOWN, is_finite, number
from sprunec.show.speeds import quartiles, rate_range
from sprunec.show.tables import kept_layers, whole

Points = list[tuple[float, float]]

SERIES_NAMED = 8  # more budgets than this are told apart by their shade only


def text(value: object) -> str:
    """A value as HTML text; control characters, which XML forbids, are replaced."""
    return escape("".join(c if c >= " " or c in "\n\t" else "\ufffd" for c in str(value)))


@dataclass(frozen=True)
class Axes:
    """Where numbers lie in a drawing: `left..right` and `low..high` fill the frame inside the margins."""

    right: float
    low: float
    high: float
    left: float = 0.0
    width: int = 1000
    height: int = 300
    margin: int = 52

    def x(self, value: float) -> float:
        share = (value - self.left) / ((self.right - self.left) or 1.0)
        return round(self.margin + share * (self.width - self.margin - 16), 1)

    def y(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / ((self.high - self.low) or 1.0)
        return round(self.height - 24 - share * (self.height - 48), 1)

    def line(self, points: Points, kind: str, style: str = "") -> str:
        places = " ".join(f"{self.x(x)},{self.y(y)}" for x, y in points)
        return f'<polyline class="{kind}" points="{places}"{style}/>'

    def svg(self, label: str, *parts: str) -> str:
        """The frame with its ticks, and the parts over it."""
        frame = []
        for tick in ticks(self.low, self.high):
            y = self.y(tick)
            frame.append(f'<line class="grid" x1="{self.margin}" x2="{self.width - 16}" y1="{y}" y2="{y}"/>')
            frame.append(f'<text class="end" x="{self.margin - 8}" y="{y + 4}">{tick:g}</text>')
        for tick in ticks(self.left, self.right):
            frame.append(f'<text class="mid" x="{self.x(tick)}" y="{self.height - 4}">{tick:g}</text>')
        return drawing(self.width, self.height, label, *frame, *parts)


def drawing(width: float, height: float, label: str, *parts: str) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"'
    return f'{head} aria-label="{text(label)}">{"".join(parts)}</svg>'


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers between two."""
    if high <= low:
        return [low]
    rough = (high - low) / 5
    power = 10.0 ** floor(log10(rough))
    step = power * next(m for m in (1, 2, 5, 10) if rough <= m * power * 1.0001)
    first = -floor(-low / step * 0.999999)
    return [round(n * step, 10) for n in range(first, floor(high / step * 1.000001) + 1)]


def thinned(points: Points, steps: int, most: int) -> Points:
    """Means of neighbours, `most` points for so many steps: a drawing has no room for a million."""
    size = max(1, -(-steps // most))
    groups = (points[i : i + size] for i in range(0, len(points), size))
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def drawable(pairs: Iterable[tuple[Any, Any]]) -> Points:
    """Those of which both numbers are known and finite."""
    return [(float(x), float(y)) for x, y in pairs if is_finite(x) and is_finite(y)]


def by_node(events: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    nodes: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        nodes.setdefault(str(event["node"]), []).append(event)
    return nodes


def loss_chart(events: Sequence[Mapping[str, Any]], loss: str = "loss", unit: str = "nats per target token") -> str:
    """A loss over all steps that the model has had, each pass that has it on a band of its own."""
    curves = {
        node: drawable((e.get("model_steps", e.get("step")), e.get(loss)) for e in of_node)
        for node, of_node in by_node(events).items()
    }
    curves = {node: points for node, points in curves.items() if points}
    losses = sorted(loss for points in curves.values() for _, loss in points)
    if not losses:
        return ""
    # The first steps of a fresh model may lie far above all others; they are drawn at the upper edge.
    high, low = losses[int(0.99 * (len(losses) - 1))], losses[0]
    axes = Axes(max(p[-1][0] for p in curves.values()), low - 0.05 * (high - low), high)
    parts = []
    for index, (node, points) in enumerate(curves.items()):
        parts += pass_band(axes, node, points, shaded=index % 2 == 0)
        parts += [axes.line(thinned(points, len(losses), most), kind) for kind, most in (("raw", 1000), ("curve", 80))]
    caption = f"<p>{unit.capitalize()} over training steps; bold: means of neighbouring steps.</p>"
    return axes.svg(f"{'training' if loss == 'loss' else loss} loss over steps", *parts) + caption


def pass_band(axes: Axes, node: str, points: Points, *, shaded: bool) -> list[str]:
    start, end = axes.x(points[0][0] - 1), axes.x(points[-1][0])
    fits = max(1, int((end - start) / 6.6))  # letters of 12 px are rarely wider
    name = node if len(node) <= fits else node[: fits - 1] + "…"
    band = f'<rect class="band" x="{start}" y="20" width="{end - start:.1f}" height="{axes.height - 44}"/>'
    words = f'<text class="mid" x="{(start + end) / 2:.1f}" y="14">{text(name)}<title>{text(node)}</title></text>'
    return [band, words] if shaded else [words]


def mask_charts(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """Expected size against target, one drawing for each pass that learns a mask."""
    masks = {node: [e for e in of_node if e.get("budgets")] for node, of_node in by_node(events).items()}
    return [f"<h3>{text(node)}</h3>{mask_chart(node, of_node)}" for node, of_node in masks.items() if of_node]


def mask_chart(node: str, events: Sequence[Mapping[str, Any]]) -> str:
    expected, target = budget_series(events, "expected"), budget_series(events, "target")
    sizes = [size for points in (*expected.values(), *target.values()) for _, size in points]
    if not sizes:
        return ""
    last = max(step for points in (*expected.values(), *target.values()) for step, _ in points)
    axes = Axes(last, 0.0, max(sizes) * 1.05, height=240)
    aims = {tuple(thinned(points, len(events), 200)) for points in target.values()}  # equal targets are one line
    parts = [axes.line(list(points), "target") for points in sorted(aims)]
    shades = [1 - 0.75 * i / max(len(expected) - 1, 1) for i in range(len(expected))]
    for shade, points in zip(shades, expected.values(), strict=True):
        parts.append(axes.line(thinned(points, len(events), 200), "curve", f' stroke-opacity="{shade:.2f}"'))
    keys = zip(shades, map(text, expected), strict=True)
    legend = "".join(f'<span class="key"><i style="opacity:{shade:.2f}"></i>{name}</span>' for shade, name in keys)
    if len(expected) > SERIES_NAMED:
        legend = f"{len(expected)} budgets, paler from first to last; "
    return axes.svg(f"expected size in {node}", *parts) + f"<p>{legend}dashed: target</p>"


def budget_series(events: Sequence[Mapping[str, Any]], what: str) -> dict[str, Points]:
    series: dict[str, list[tuple[Any, Any]]] = {}
    for event in events:
        for budget in event["budgets"]:
            series.setdefault(str(budget["name"]), []).append((event.get("step"), budget.get(what)))
    return {name: found for name, pairs in series.items() if (found := drawable(pairs))}


def speed_chart(report: Mapping[str, Any]) -> str:
    """A bar to each model's median speed, and a line from quartile to quartile."""
    models = {name: model for name, model in (report.get("models") or {}).items() if model and quartiles(model)}
    shown = {name: model for name, model in models.items() if is_finite(model.get("tokens_per_second"))}
    most = max((max(*(quartiles(each) or ()), each["tokens_per_second"]) for each in shown.values()), default=0.0)
    if not most > 0.0:
        return ""
    parts = []
    for place, (name, model) in enumerate(shown.items()):
        y, (low, high) = 26 * place, (700 * each / most for each in quartiles(model) or (0.0, 0.0))
        speed, ends = model["tokens_per_second"], f'y1="{y + 9}" y2="{y + 9}"'
        parts.append(f'<text class="end" x="68" y="{y + 14}">{text(name)}</text>')
        parts.append(f'<rect class="on" x="80" y="{y}" width="{700 * speed / most:.1f}" height="18" rx="2"/>')
        parts.append(f'<line class="span" x1="{80 + low:.1f}" x2="{80 + high:.1f}" {ends}/>')
        parts.append(f'<text x="790" y="{y + 14}">{number(speed, ",.0f")} ({rate_range(model)})</text>')
    caption = "<p>Tokens per second of a forward pass: medians over interleaved rounds; the line: quartiles.</p>"
    return drawing(1000, 26 * len(shown), "tokens per second", *parts) + caption


def kept_drawings(report: Mapping[str, Any]) -> list[str]:
    """Heads as a grid of layers by heads, feed-forward widths as bars."""
    config, layers = report.get("config") or {}, kept_layers(report)
    heads, width = whole(config.get("num_heads")), whole(config.get("dim_ff"))
    grid = layer_rows("kept heads", [(n, kept) for n, kept, _ in layers], lambda kept, y: head_row(kept, heads or 0, y))
    bars = layer_rows(
        "kept dim_ff", [(n, kept) for n, _, kept in layers], lambda kept, y: width_row(kept, width or 0, y)
    )
    shown = (
        [
            (f"Attention heads, of {number(heads, nothing=UNKNOWN)}", grid),
            (f"Feed-forward dims, of {number(width, nothing=UNKNOWN)}", bars),
        ]
        if layers
        else []
    )
    return [f"<h3>{title}</h3>{picture}" for title, picture in shown]


def layer_rows(label: str, rows: Sequence[tuple[int, Any]], draw: Callable[[Any, int], str]) -> str:
    parts = []
    for place, (layer, kept) in enumerate(rows):
        y = 22 * place
        word = ABSENT if kept is None else kept
        row = f'<text class="word" x="80" y="{y + 14}">{word}</text>' if isinstance(word, str) else draw(kept, y)
        parts.append(f'<text class="end" x="68" y="{y + 14}">layer {layer}</text>{row}')
    return drawing(1000, 22 * len(rows), label, *parts)


def head_row(heads: Sequence[int], total: int, y: int) -> str:
    kept, wide = set(heads), min(30.0, 800 / max(total, 1))
    cells = (
        f'<rect class="{"on" if n in kept else "off"}" x="{80 + n * wide:.1f}" y="{y}" width="{wide * 0.9:.1f}"'
        f' height="18" rx="2"><title>head {n}: {"kept" if n in kept else "cut"}</title></rect>'
        for n in range(total)
    )
    return "".join(cells) + f'<text x="{88 + total * wide:.1f}" y="{y + 14}">{len(kept)}</text>'


def width_row(width: Any, total: int, y: int) -> str:
    bar = f'<rect class="off" x="80" y="{y}" width="800" height="18" rx="2"/>'
    full = 800 * width / total if total and is_finite(width) else 0
    bar += f'<rect class="on" x="80" y="{y}" width="{full:.1f}" height="18" rx="2"/>'
    return bar + f'<text x="888" y="{y + 14}">{number(width)}</text>'
