"""Write a run's page: report.json and events.jsonl as one HTML file with drawings; it needs no network and no script.

`page.html`, beside this file, has the frame and the style.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from string import Template
from typing import Any

from sprunec.durable import naming, read_file, write_atomically
from sprunec.show.console import duration, metric_words
from sprunec.show.numbers import NOT_FINITE, NOTHING, is_finite, number, percent
from sprunec.show.plots import kept_drawings, loss_chart, mask_charts, search_chart, speed_chart, text
from sprunec.show.report_words import (
    budget_sizes,
    comparison_lines,
    model_rows,
    models_of,
    rate_range,
    ratio_range,
    ratio_words,
    search_rows,
    task_rows,
)

STATUS = {
    "running": ("busy", "Running."),
    "done": ("good", "Done: the small model computes what the masked one computes, and was written."),
    "failed": ("bad", "Failed."),
    "interrupted": ("busy", "Interrupted; the same command goes on where it stopped."),
    "target-missed": ("busy", "Done and written, but a mask had not settled on its target."),
    "comparison-failed": ("bad", "The masked and the small model disagree; nothing was written."),
}
PASSES, VERSIONS = ("node", "pass", "numbers", "digest"), ("what", "version")  # columns of words, not numbers


def write_html(out: Path) -> Path:
    """Write OUT/report.html from OUT/report.json and OUT/events.jsonl; a reader never sees half a page."""
    report = json.loads(read_file(out / "report.json"))
    page, words = out / "report.html", page_text(report, read_events(out / "events.jsonl"))
    # A sample may hold half a surrogate pair, which UTF-8 cannot: a question mark must do.
    write_atomically(page, words.encode("utf-8", "replace").decode("utf-8"))
    return page


def read_events(path: Path) -> list[dict[str, Any]]:
    """Read the steps so far; the last line of a run that is still writing may be cut off, and is left out."""
    events = []
    with naming(path):
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in text.splitlines():
        with suppress(ValueError, RecursionError):
            events.append(json.loads(line))
    return [event for event in events if isinstance(event, dict) and "node" in event]


def page_text(report: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> str:
    """Write the whole page, top to bottom."""
    plan = report["plan"]
    tone, status = STATUS.get(report["status"], ("busy", str(report["status"])))
    error = f"<pre>{text(report['error'])}</pre>" if report.get("error") else ""
    versions = [(name, number(version)) for name, version in (report.get("versions") or {}).items()]
    said = [(name, model.get("sample")) for name, model in models_of(report).items()]
    sections = {
        "Models": [models_table(report), *(f"<p>{text(line)}</p>" for line in comparison_lines(report))],
        "Tasks": [tasks_table(report)],
        "Search": [search_table(report), search_chart(report)],
        "Speed": [speed_chart(report)],
        "Training loss": [loss_chart(events)],
        "Distillation loss": [loss_chart(events, "distillation", "weighted sum of the distillation losses")],
        "Size of the masks while they learn": mask_charts(events),
        "What was kept": kept_drawings(report),
        "Budgets": [budgets_table(report)],
        "Samples": [f"<h3>{name}</h3><pre>{text(sample)}</pre>" for name, sample in said if sample],
        "Passes": [passes_table(report)],
        "Versions": [table(VERSIONS, versions, VERSIONS)],
    }
    cards = [f"<section><h2>{title}</h2>{''.join(parts)}</section>" for title, parts in sections.items() if any(parts)]
    return Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8")).substitute(
        title=text(plan.get("name", "run") if isinstance(plan, Mapping) else plan),
        head=f'<p class="{tone}">{text(status)}</p>{error}{tiles(report)}',
        sections="".join(cards),
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[str]) -> str:
    """Set columns right, as numbers, unless they are named in `left`."""
    align = ["" if column in left else ' class="n"' for column in columns]
    head = "".join(f"<th{a}>{text(c)}</th>" for a, c in zip(align, columns, strict=True))
    body = ["".join(f"<td{a}>{text(c)}</td>" for a, c in zip(align, row, strict=True)) for row in rows]
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in body)}</table>" if body else ""


def tiles(report: Mapping[str, Any]) -> str:
    """Show the four numbers that people look for first, as far as they are known."""
    dense, _, small = models_of(report).values()
    known = is_finite(dense.get("loss")) and is_finite(small.get("loss"))
    faster, compared = ratio_words(small), report.get("comparison")
    against = "the speed of dense" if faster.endswith("x") else "speed against dense"
    found = {
        "of the dense parameters": percent(small.get("parameters"), dense.get("parameters")),
        "held-out loss, small to dense": f"{small['loss'] - dense['loss']:+.3f}" if known else NOTHING,
        f"{against}, quartiles {ratio_range(small)}": faster,
        "max |delta logit|, masked to small": (
            number(compared.get("max_abs_difference"), ".1e", NOT_FINITE) if compared else NOTHING
        ),
    }
    shown = [f"<div><b>{text(big)}</b><span>{text(of)}</span></div>" for of, big in found.items() if big != NOTHING]
    return f'<div class="tiles">{"".join(shown)}</div>' if shown else ""


def models_table(report: Mapping[str, Any]) -> str:
    columns = ["model", "parameters", "of dense", "held-out loss", "perplexity", "tokens/s", "quartiles", "speed"]
    rows = zip(model_rows(report), models_of(report).values(), strict=True) if report.get("models") else ()
    cells = [(*words, rate_range(model), faster, ratio_range(model)) for (*words, faster), model in rows]
    return table([*columns, "quartiles"], cells, left=("model",))


def tasks_table(report: Mapping[str, Any]) -> str:
    columns = ("task", "metric", "dense", "small", "difference", "samples")
    return table(columns, task_rows(report), left=("task", "metric"))


def search_table(report: Mapping[str, Any]) -> str:
    """List the solutions of a search, one for each of its targets."""
    columns = ("target", "asked", "got", "parameters", "damage", "gap", "absent", "KL to dense", "finalist", "goes on")
    return table(columns, search_rows(report), left=("target", "goes on"))


def budgets_table(report: Mapping[str, Any]) -> str:
    rows = []
    for budget in report.get("budgets") or ():
        asked, got, off = budget_sizes(budget)
        soft = (number(budget.get(key)) for key in ("expected", "distance", "undecided", "settled"))
        rows.append((budget["pass"], budget["name"], asked, got, NOTHING if off == "0" else off, *soft))
    columns = ("pass", "budget", "asked", "got", "off by", "expected", "distance", "undecided gates", "settled")
    return table(columns, rows, left=("pass", "budget"))


def passes_table(report: Mapping[str, Any]) -> str:
    """List every pass with its own numbers; those of a pass from the store are the ones it was stored with."""
    rows = []
    for entry in report.get("passes") or ():
        time = "in store" if entry["cached"] else duration(entry.get("seconds"))
        rows.append(
            (entry["name"], entry["pass"], ", ".join(metric_words(entry["metrics"])), entry["digest"][:12], time)
        )
    return table((*PASSES, "time"), rows, PASSES)
