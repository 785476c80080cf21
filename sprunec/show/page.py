"""A run's page: report.json and events.jsonl as one HTML file with drawings, which needs no network and no script."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sprunec.durable import naming, read_file, write_atomically
from sprunec.show.console import duration, metric_words
from sprunec.show.numbers import NOT_FINITE, NOTHING, is_finite, number, percent
from sprunec.show.plots import kept_drawings, loss_chart, mask_charts, speed_chart, text
from sprunec.show.speeds import rate_range, ratio_range, ratio_words
from sprunec.show.tables import MODELS, asked, comparison_words, form_words, model_rows, off_by, size

STATUS = {
    "running": ("busy", "Running."),
    "done": ("good", "Done: the small model computes what the masked one computes, and was written."),
    "failed": ("bad", "Failed."),
    "interrupted": ("busy", "Interrupted; the same command goes on where it stopped."),
    "target-missed": ("busy", "Done and written, but a mask had not settled on its target."),
    "comparison-failed": ("bad", "The masked and the small model disagree; nothing was written."),
}
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
pre { overflow-wrap: anywhere; white-space: pre-wrap; } td { overflow-wrap: break-word; }
td:first-child, td:last-child { white-space: nowrap; }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 12px; }
.grid { stroke: var(--line); } .band { fill: var(--band); } .on { fill: var(--main); } .off { fill: var(--off); }
.raw, .curve, .target { fill: none; stroke: var(--main); stroke-width: 2; stroke-linejoin: round; }
.raw { stroke-width: 1; opacity: .3; } .target { stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 5 4; }
.span { stroke: var(--ink); stroke-width: 3; }
.end { text-anchor: end; } .mid { text-anchor: middle; } svg .word { fill: var(--busy); }
.key { margin-right: 14px; } .key i { display: inline-block; width: 14px; height: 3px; margin-right: 6px;
  vertical-align: middle; background: var(--main); }
"""


def write_html(out: Path) -> Path:
    """Write OUT/report.html from OUT/report.json and OUT/events.jsonl; a reader never sees half a page."""
    report = json.loads(read_file(out / "report.json"))
    page, words = out / "report.html", page_text(report, read_events(out / "events.jsonl"))
    # A sample may hold half a surrogate pair, which UTF-8 cannot: a question mark must do.
    write_atomically(page, words.encode("utf-8", "replace").decode("utf-8"))
    return page


def read_events(path: Path) -> list[dict[str, Any]]:
    """The steps so far; the last line of a run that is still writing may be cut off, and is left out."""
    events = []
    with naming(path):
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in text.splitlines():
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and "node" in event:
            events.append(event)
    return events


def page_text(report: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> str:
    """The whole page, top to bottom."""
    title = text(plan_name(report))
    sections = [
        section("Models", models_table(report), *(f"<p>{text(line)}</p>" for line in compared(report))),
        section("Speed", speed_chart(report)),
        section("Training loss", loss_chart(events)),
        section("Distillation loss", loss_chart(events, "distillation", "weighted sum of the distillation losses")),
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


def compared(report: Mapping[str, Any]) -> list[str]:
    return [comparison_words(report), *form_words(report)]


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
    faster = ratio_words(small)
    of = "the speed of dense" if faster.endswith("x") else "speed against dense"
    found.append((faster, f"{of}, quartiles {ratio_range(small)}"))
    if report.get("comparison"):
        apart = number(report["comparison"].get("max_abs_difference"), ".1e", NOT_FINITE)
        found.append((apart, "max |delta logit|, masked to small"))
    shown = [f"<div><b>{text(big)}</b><span>{text(of)}</span></div>" for big, of in found if big != NOTHING]
    return f'<div class="tiles">{"".join(shown)}</div>' if shown else ""


def models_table(report: Mapping[str, Any]) -> str:
    columns = (
        "model",
        "parameters",
        "of dense",
        "held-out loss",
        "perplexity",
        "tokens/s",
        "quartiles",
        "speed",
        "quartiles",
    )
    models = report.get("models") or {}
    rows = []
    for name, *cells, faster in model_rows(report):
        model = models.get(name) or {}
        rows.append((name, *cells, rate_range(model), faster, ratio_range(model)))
    return table(columns, rows, left=("model",)) if models else ""


def budgets_table(report: Mapping[str, Any]) -> str:
    columns = ("pass", "budget", "asked", "got", "off by", "expected", "distance", "undecided gates", "settled")
    rows = [
        (b["pass"], b["name"], *sizes(b), *(number(b.get(k)) for k in ("expected", "distance", "undecided", "settled")))
        for b in report.get("budgets") or ()
    ]
    return table(columns, rows, left=("pass", "budget"))


def sizes(budget: Mapping[str, Any]) -> tuple[str, str, str]:
    """Asked, got, and by how much they differ."""
    off = off_by(budget)
    return size(asked(budget)), size(budget.get("got")), size(off) if off else NOTHING


def passes_table(report: Mapping[str, Any]) -> str:
    """Every pass with its own numbers; those of a pass from the store are the ones it was stored with."""
    rows = []
    for entry in report.get("passes") or ():
        time = "in store" if entry["cached"] else duration(entry.get("seconds"))
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
