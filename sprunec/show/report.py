"""A run's page: report.json and events.jsonl as one HTML file with drawings, which needs no network and no script."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import floor, log10
from pathlib import Path
from typing import Any

from sprunec.show.console import duration, metric_words
from sprunec.show.tables import (
    ABSENT,
    MODELS,
    NOTHING,
    comparison_words,
    is_finite,
    kept_layers,
    model_rows,
    number,
    percent,
    times,
)

Points = list[tuple[float, float]]

STATUS = {
    "running": ("busy", "Running."),
    "done": ("good", "Done: the small model computes what the masked one computes, and was written."),
    "failed": ("bad", "Failed."),
    "interrupted": ("busy", "Interrupted; the same command goes on where it stopped."),
    "target-missed": ("busy", "Done and written, but a mask had not settled on its target."),
    "comparison-failed": ("bad", "The masked and the small model disagree; nothing was written."),
}
SERIES_NAMED = 8  # more budgets than this are told apart by their shade only
STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #1c2330; --soft: #667085; --line: #dfe3ea;
  --main: #2563c9; --band: #2563c912; --off: #e3e7ee; --good: #17803d; --bad: #c0272d; --busy: #a15c07; }
@media (prefers-color-scheme: dark) { :root { --page: #12151b; --card: #1b2029; --ink: #e6e9ef; --soft: #98a2b3;
  --line: #323a47; --main: #74a8ff; --band: #74a8ff14; --off: #2f3744; --good: #5bd083; --bad: #ff8580;
  --busy: #f2b457; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { margin: 0; font-size: 28px; overflow-wrap: anywhere; }
h2 { margin: 0 0 12px; font-size: 17px; }
h3 { margin: 16px 0 4px; font-size: 14px; color: var(--soft); font-weight: 600; }
section, .tiles div { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
section { padding: 18px 20px; margin-top: 18px; overflow-x: auto; }
p { margin: 8px 0 0; color: var(--soft); }
.good { color: var(--good); } .bad { color: var(--bad); } .busy { color: var(--busy); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin-top: 18px; }
.tiles div { padding: 12px 16px; }
.tiles b { display: block; font-size: 24px; } .tiles span { color: var(--soft); font-size: 13px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 600; font-size: 13px; text-align: left; }
th, td { padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); } tr:last-child td { border-bottom: 0; }
th.n, td.n { text-align: right; } code, pre { font: 13px/1.5 ui-monospace, monospace; }
pre { background: var(--page); border-radius: 6px; padding: 10px 12px; margin: 0; }
pre, td { overflow-wrap: anywhere; } pre { white-space: pre-wrap; }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 12px; }
.grid { stroke: var(--line); } .band { fill: var(--band); } .on { fill: var(--main); } .off { fill: var(--off); }
.raw, .curve, .target { fill: none; stroke: var(--main); stroke-width: 2; stroke-linejoin: round; }
.raw { stroke-width: 1; opacity: .3; } .target { stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 5 4; }
.end { text-anchor: end; } .mid { text-anchor: middle; } svg .word { fill: var(--busy); }
.key { margin-right: 14px; } .key i { display: inline-block; width: 14px; height: 3px; margin-right: 6px;
  vertical-align: middle; background: var(--main); }
"""


def write_html(out: Path) -> Path:
    """Write OUT/report.html from OUT/report.json and OUT/events.jsonl; a reader never sees half a page."""
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    page = out / "report.html"
    draft = out / f".report.html.{os.getpid()}"
    # A sample may hold half a surrogate pair, which UTF-8 cannot: a question mark must do.
    draft.write_text(page_text(report, read_events(out / "events.jsonl")), encoding="utf-8", errors="replace")
    os.replace(draft, page)
    return page


def read_events(path: Path) -> list[dict[str, Any]]:
    """The steps so far; the last line of a run that is still writing may be cut off, and is left out."""
    events = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events


def page_text(report: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> str:
    """The whole page, top to bottom."""
    title = text(plan_name(report))
    sections = [
        section("Models", models_table(report), f"<p>{text(comparison_words(report))}</p>"),
        section("Training loss", loss_chart(events)),
        section("Size of the masks while they learn", *mask_charts(events)),
        section("What was kept", *kept_drawings(report)),
        section("Budgets", budgets_table(report)),
        section("Samples", *samples(report)),
        section("Passes", passes_table(report)),
        section("Versions", versions_table(report)),
    ]
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title><style>{STYLE}</style></head>
<body><main><h1>{title}</h1>{status_words(report)}{tiles(report)}
{"".join(sections)}
</main></body></html>
"""


def text(value: object) -> str:
    """A value as HTML text; control characters, which XML forbids, are replaced."""
    return escape("".join(c if c >= " " or c in "\n\t" else "\ufffd" for c in str(value)))


def plan_name(report: Mapping[str, Any]) -> str:
    plan = report["plan"]
    return str(plan.get("name", "run") if isinstance(plan, Mapping) else plan)


def section(title: str, *parts: str) -> str:
    """A card, or nothing at all where there is nothing to show."""
    return f"<section><h2>{text(title)}</h2>{''.join(parts)}</section>" if any(parts) else ""


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[str] = ()) -> str:
    """Columns are numbers, set right, unless they are named in `left`."""
    align = ["" if column in left else ' class="n"' for column in columns]
    head = "".join(f"<th{a}>{text(c)}</th>" for a, c in zip(align, columns, strict=True))
    body = ["".join(f"<td{a}>{text(c)}</td>" for a, c in zip(align, row, strict=True)) for row in rows]
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in body)}</table>" if body else ""


# ---- words and tables


def status_words(report: Mapping[str, Any]) -> str:
    tone, words = STATUS.get(report["status"], ("busy", str(report["status"])))
    error = f"<pre>{text(report['error'])}</pre>" if report.get("error") else ""
    return f'<p class="{tone}">{text(words)}</p>{error}'


def tiles(report: Mapping[str, Any]) -> str:
    """The four numbers that people look for first, as far as they are known."""
    models = report.get("models") or {}
    dense, small = models.get("dense") or {}, models.get("small") or {}
    found = [(percent(small.get("parameters"), dense.get("parameters")), "of the dense parameters")]
    if is_finite(dense.get("loss")) and is_finite(small.get("loss")):
        found.append((f"{small['loss'] - dense['loss']:+.3f}", "held-out loss, small to dense"))
    found.append((times(small.get("tokens_per_second"), dense.get("tokens_per_second")), "the speed of dense"))
    if report.get("comparison"):
        found.append((f"{report['comparison']['max_abs_difference']:.1e}", "max |delta logit|, masked to small"))
    shown = [f"<div><b>{text(big)}</b><span>{text(of)}</span></div>" for big, of in found if big != NOTHING]
    return f'<div class="tiles">{"".join(shown)}</div>' if shown else ""


def models_table(report: Mapping[str, Any]) -> str:
    columns = ("model", "parameters", "of dense", "held-out loss", "perplexity", "tokens/s", "speed")
    return table(columns, model_rows(report), left=("model",)) if report.get("models") else ""


def budgets_table(report: Mapping[str, Any]) -> str:
    columns = ("pass", "budget", "asked", "expected", "got", "undecided gates", "settled")
    rows = [
        (b["pass"], b["name"], *(number(b[k]) for k in ("target", "expected", "got", "undecided", "settled")))
        for b in report.get("budgets") or ()
    ]
    return table(columns, rows, left=("pass", "budget"))


def passes_table(report: Mapping[str, Any]) -> str:
    """Every pass with its own numbers; those of a pass from the store are the ones it was stored with."""
    rows = []
    for entry in report.get("passes") or ():
        time = "in store" if entry["cached"] else duration(entry["seconds"])
        rows.append(
            (entry["name"], entry["pass"], ", ".join(metric_words(entry["metrics"])), entry["digest"][:12], time)
        )
    return table(("node", "pass", "numbers", "digest", "time"), rows, left=("node", "pass", "numbers", "digest"))


def versions_table(report: Mapping[str, Any]) -> str:
    rows = [(name, number(version)) for name, version in (report.get("versions") or {}).items()]
    return table(("what", "version"), rows, left=("what", "version"))


def samples(report: Mapping[str, Any]) -> list[str]:
    """What each model wrote, where it was asked to."""
    models = report.get("models") or {}
    said = [(name, (models.get(name) or {}).get("sample")) for name in MODELS]
    return [f"<h3>{name}</h3><pre>{text(sample)}</pre>" for name, sample in said if sample]


# ---- drawings


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


def by_node(events: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    nodes: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        nodes.setdefault(str(event["node"]), []).append(event)
    return nodes


def loss_chart(events: Sequence[Mapping[str, Any]]) -> str:
    """The loss over all steps that the model has had, each pass on a band of its own."""
    curves = {
        node: [(float(e.get("model_steps", e["step"])), float(e["loss"])) for e in of_node if is_finite(e["loss"])]
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
    caption = "<p>Nats per target token over training steps; bold: means of neighbouring steps.</p>"
    return axes.svg("training loss over steps", *parts) + caption


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
    axes = Axes(max(float(e["step"]) for e in events), 0.0, max(sizes) * 1.05, height=240)
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
    series: dict[str, Points] = {}
    for event in events:
        for budget in event["budgets"]:
            if is_finite(budget[what]):
                series.setdefault(str(budget["name"]), []).append((float(event["step"]), float(budget[what])))
    return series


def kept_drawings(report: Mapping[str, Any]) -> list[str]:
    """Heads as a grid of layers by heads, feed-forward widths as bars."""
    config, layers = report.get("config") or {}, kept_layers(report)
    heads, width = config.get("num_heads") or 0, config.get("dim_ff") or 0
    grid = layer_rows("kept heads", [(n, kept) for n, kept, _ in layers], lambda kept, y: head_row(kept, heads, y))
    bars = layer_rows("kept dim_ff", [(n, kept) for n, _, kept in layers], lambda kept, y: width_row(kept, width, y))
    shown = [(f"Attention heads, of {heads}", grid), (f"Feed-forward dims, of {width}", bars)] if layers else []
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


def width_row(width: int, total: int, y: int) -> str:
    bar = f'<rect class="off" x="80" y="{y}" width="800" height="18" rx="2"/>'
    full = 800 * width / total if total else 0
    bar += f'<rect class="on" x="80" y="{y}" width="{full:.1f}" height="18" rx="2"/>'
    return bar + f'<text x="888" y="{y + 14}">{width:,}</text>'
