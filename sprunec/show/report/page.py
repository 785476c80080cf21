"""Write the page of a run, or of several side by side: one HTML file that asks for nothing else.

`page.html`, beside this file, has the frame, `page.css` the style, and `page.js` what values are shown by: the page is
whole without it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from sprunec.durable import write_atomically
from sprunec.show.report.charts import (
    latency_figure,
    loss_figure,
    search_figure,
    size_figure,
    speed_figure,
    speed_size_figure,
)
from sprunec.show.report.plots import beside, of_run, table, text
from sprunec.show.report.runs import Run, read_run
from sprunec.show.report.sections import OWN, models_table, tiles
from sprunec.show.report_words import (
    SUMMARY,
    comparison_lines,
    proof_rows,
    search_rows,
    summary_row,
)

STATUS = {
    "running": ("busy", "Running."),
    "done": ("good", "Done: the small model computes what the masked one computes, and was written."),
    "failed": ("bad", "Failed."),
    "interrupted": ("busy", "Interrupted; the same command goes on where it stopped."),
    "target-missed": ("busy", "Done and written, but a mask had not settled on its target."),
    "comparison-failed": ("bad", "The masked and the small model disagree; nothing was written."),
}


def write_html(out: Path) -> Path:
    """Write OUT/report.html from OUT/report.json and OUT/events.jsonl; a reader never sees half a page."""
    page = out / "report.html"
    write_page(page, [read_run(out)])
    return page


def write_page(path: Path, runs: Sequence[Run]) -> None:
    # A sample may hold half a surrogate pair, which UTF-8 cannot: a question mark must do.
    write_atomically(path, page_text(runs).encode("utf-8", "replace").decode("utf-8"))


def page_text(runs: Sequence[Run]) -> str:
    """Write the whole page, top to bottom: what all runs share in one chart, then what each has for itself."""
    several = len(runs) > 1
    title = " · ".join(run.name for run in runs)
    cards = [_card(name, parts) for name, parts in _shared(runs).items()]
    for name, section in OWN.items():
        if several:
            found = [(run, "".join(section(run))) for run in runs]
            parts = [f"<div{of_run(run.number)}><h3>{text(run.name)}</h3>{made}</div>" for run, made in found if made]
        else:
            parts = [*section(runs[0])]
        cards.append(_card(name, parts))
    script = _part("page.js")
    return Template(_part("page.html")).substitute(
        title=text(title),
        heading=text(f"{len(runs)} runs" if several else title),
        head=_chooser(runs) if several else _head(runs[0].report),
        sections="".join(cards),
        style=_part("page.css") + "".join(f"\n{_left_out(run.number)}" for run in runs if several),
        script=script,
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _part(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _card(title: str, parts: Sequence[str]) -> str:
    """Set a section; figures that follow each other stand side by side where there is room."""
    made = "".join(parts)
    return f"<section><h2>{title}</h2>{made}</section>" if made else ""


def _shared(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Make what shows all runs at once."""
    several = len(runs) > 1
    sizes = [size_figure(runs), speed_size_figure(runs) if several else speed_figure(runs[0])]
    search = [search_table(runs), beside(search_figure(runs), latency_figure(runs))]
    models = runs_table(runs) if several else models_table(runs[0].report)
    losses = beside(loss_figure(runs), loss_figure(runs, "distillation", "weighted sum of the distillation losses"))
    return {
        "Runs" if several else "Models": [models, beside(*sizes)],
        "Search": search,
        "Losses": [losses],
        "Proof": [proof_table(runs), *_failures(runs)],
    }


def _chooser(runs: Sequence[Run]) -> str:
    """Let people choose which runs are shown; the style sheet hides what belongs to the others."""
    box = '<label class="r{}"><input type="checkbox" id="run-{}" checked><i></i>{}</label>'
    boxes = [box.format(run.number % 8, run.number, text(run.name)) for run in runs]
    return f'<fieldset class="chooser"><legend>Runs shown</legend>{"".join(boxes)}</fieldset>'


def _left_out(number: int) -> str:
    return f'body:has(#run-{number}:not(:checked)) [data-run="{number}"] {{ display: none; }}'


def _head(report: Mapping[str, Any]) -> str:
    tone, status = STATUS.get(report["status"], ("busy", str(report["status"])))
    error = f"<pre>{text(report['error'])}</pre>" if report.get("error") else ""
    return f'<p class="{tone}">{text(status)}</p>{error}{tiles(report)}'


# ---- tables of all runs; with several each row has the run that it belongs to


def runs_table(runs: Sequence[Run]) -> str:
    rows = [(of_run(run.number), run.name, *summary_row(run.report)) for run in runs]
    return table(("run", *SUMMARY), rows, left=("run", "status"))


def search_table(runs: Sequence[Run]) -> str:
    """List the solutions of searches, one for each of their targets."""
    columns = ("target", "asked", "got", "parameters", "damage", "gap", "absent", "KL to dense", "finalist", "goes on")
    return _rows_of(runs, columns, search_rows, left=("target", "goes on"))


def proof_table(runs: Sequence[Run]) -> str:
    """List what was held against what: how far apart they are, and how far they may be."""
    columns = ("compared", "arithmetic", "max |delta|", "limit", "tokens", "verdict")
    return _rows_of(runs, columns, proof_rows, left=("compared", "arithmetic", "verdict"))


def _failures(runs: Sequence[Run]) -> list[str]:
    lines = [line for run in runs for line in comparison_lines(run.report) if "not published" in line]
    return [f'<p class="bad">{text(line)}</p>' for line in lines]


def _rows_of(
    runs: Sequence[Run],
    columns: Sequence[str],
    rows: Callable[[Mapping[str, Any]], Sequence[tuple[str, ...]]],
    left: Any,
) -> str:
    if len(runs) == 1:
        return table(columns, rows(runs[0].report), left)
    found = [(of_run(run.number), run.name, *row) for run in runs for row in rows(run.report)]
    return table(("run", *columns), found, ("run", *left))
