"""What the page says of each run for itself, section by section."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

from sprunec.execution.model_card import plan_json
from sprunec.show.console import duration, metric_words
from sprunec.show.numbers import NOT_FINITE, NOTHING, byte_words, is_finite, number, percent
from sprunec.show.report.charts import mask_figures
from sprunec.show.report.kept_maps import gate_figures, kept_figures
from sprunec.show.report.plots import beside, table, text
from sprunec.show.report.runs import Run
from sprunec.show.report_words import (
    budget_sizes,
    model_rows,
    models_of,
    rate_range,
    ratio_range,
    ratio_words,
    task_rows,
)

MOST_FILES = 40  # listed
Section = Callable[[Run], Sequence[str]]


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
    """Set the models side by side, without the columns in which nothing was measured."""
    columns = ["model", "parameters", "of dense", "held-out loss", "perplexity", "tokens/s", "quartiles", "speed"]
    rows = zip(model_rows(report), models_of(report).values(), strict=True) if report.get("models") else ()
    cells = [(*words, rate_range(model), faster, ratio_range(model)) for (*words, faster), model in rows]
    known = [any(words[place] != NOTHING for words in cells) for place in range(1 + len(columns))]
    shown = [[*compress(words, known)] for words in ([*columns, "quartiles"], *cells)]
    return table(shown[0], shown[1:], left=("model",))


def tasks_table(report: Mapping[str, Any]) -> str:
    columns = ("task", "metric", "dense", "small", "difference", "samples")
    return table(columns, task_rows(report), left=("task", "metric"))


def budgets_table(report: Mapping[str, Any]) -> str:
    rows = []
    for budget in report.get("budgets") or ():
        asked, got, off = budget_sizes(budget)
        soft = (number(budget.get(key)) for key in ("expected", "distance", "undecided", "settled"))
        rows.append((budget["pass"], budget["name"], asked, got, NOTHING if off == "0" else off, *soft))
    columns = ("pass", "budget", "asked", "got", "off by", "expected", "distance", "undecided gates", "settled")
    return table(columns, rows, left=("pass", "budget"))


def samples(report: Mapping[str, Any]) -> str:
    """Set what dense and small have written beside each other, after the same texts."""
    written = {role: model.get("samples") or [] for role, model in models_of(report).items() if model.get("samples")}
    rows = []
    for each in zip(*written.values(), strict=False):
        pairs = zip(written, each, strict=True)
        body = "".join(f"<dt>{role}</dt><dd>{text(sample.get('written', ''))}</dd>" for role, sample in pairs)
        rows.append(f'<div class="sample"><p>{text(each[0].get("given", ""))}</p><dl>{body}</dl></div>')
    return "".join(rows)


def passes_table(report: Mapping[str, Any]) -> str:
    """List every pass with its own numbers; those of a pass from the store are the ones it was stored with."""
    rows = []
    for entry in report.get("passes") or ():
        time = "in store" if entry["cached"] else duration(entry.get("seconds"))
        metrics = {key: value for key, value in entry["metrics"].items() if key != "sample"}
        rows.append((entry["name"], time, entry["digest"][:12], ", ".join(metric_words(metrics))))
    return table(("pass", "time", "digest", "numbers"), rows, ("pass", "numbers"))


def provenance(report: Mapping[str, Any]) -> list[str]:
    """Say what the run was made of, with which releases, and where."""
    known = report.get("provenance") or {}
    machine = {key: number(value) for key, value in (known.get("machine") or {}).items()}
    if is_finite(size := (known.get("machine") or {}).get("memory")):
        machine["memory"] = byte_words(size)
    hub = {f"hub {key}": str(value) for key, value in (report.get("hub") or {}).items()}
    versions = {name: number(version) for name, version in (report.get("versions") or {}).items()}
    files = [(Path(str(file["path"])).name, str(file["sha256"])) for file in known.get("files") or ()]
    more = f"<p>and {len(files) - MOST_FILES:,} more in report.json</p>" if len(files) > MOST_FILES else ""
    plan = plan_json(known["plan"]) if known.get("plan") else ""
    return [
        table(("what", "version"), (machine | versions | hub).items(), ("what", "version")),
        table(("input", "sha256"), files[:MOST_FILES], ("input", "sha256")) + more,
        f"<details><summary>The plan</summary><pre>{text(plan)}</pre></details>" if plan else "",
    ]


OWN: dict[str, Section] = {
    "What was kept": lambda run: [beside(*kept_figures(run.report))],
    "Masks while they learn": lambda run: [beside(*mask_figures(run.events)), *gate_figures(run.events)],
    "Tasks": lambda run: [tasks_table(run.report)],
    "Budgets": lambda run: [budgets_table(run.report)],
    "Samples": lambda run: [samples(run.report)],
    "Passes": lambda run: [passes_table(run.report)],
    "Provenance": lambda run: provenance(run.report),
}
