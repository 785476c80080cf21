"""Write report.md, for pull requests: a table of dense and small, the proof, what was kept; in GitHub's Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from sprunec.durable import write_atomically
from sprunec.show.numbers import NOTHING, number, percent
from sprunec.show.report.runs import Run, read_run
from sprunec.show.report_words import (
    SUMMARY,
    change_words,
    comparison_lines,
    kept_layers,
    missed_lines,
    models_of,
    ratio_words,
    summary_row,
    task_rows,
)

SPECIAL = str.maketrans(
    {character: f"\\{character}" for character in "\\`*_{}[]#|~"}
    | {character: escape(character) for character in "<>&"}
    | {"\n": " ", "\r": " "}
)


def write_markdown(out: Path) -> Path:
    """Write OUT/report.md from OUT/report.json."""
    path = out / "report.md"
    write_atomically(path, markdown_text([read_run(out)]))
    return path


def markdown_text(runs: Sequence[Run]) -> str:
    """Write one run as a table of its models, several as a table of runs."""
    parts = _run(runs[0]) if len(runs) == 1 else _runs(runs)
    return ("\n\n".join(part for part in parts if part) + "\n").encode("utf-8", "replace").decode("utf-8")


def _runs(runs: Sequence[Run]) -> list[str]:
    rows = [(run.name, *summary_row(run.report)) for run in runs]
    return [f"### {len(runs)} runs", _table(("run", *SUMMARY), rows, left=2)]


def _run(run: Run) -> list[str]:
    report = run.report
    head = f"### {_plain(run.name)}: {_plain(report['status'])}"
    error = f"> {_plain(report['error'])}" if report.get("error") else ""
    missed = "\n".join(f"- {_plain(line)}" for line in missed_lines(report))
    models = _table(("", "dense", "small", "small to dense"), _models(report))
    return [head, error, models, _proof(run), missed, _kept(report), _made_by(report)]


def _models(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Make a row for everything that is known of both."""
    dense, _, small = models_of(report).values()
    losses = dense.get("loss"), small.get("loss")
    sizes = [each.get("parameters") for each in (dense, small)]
    rows = [
        ("parameters", *map(number, sizes), percent(sizes[1], sizes[0])),
        ("held-out loss", *(number(loss, ".4f") for loss in losses), change_words(*losses)),
        ("perplexity", *(number(each.get("perplexity"), ".2f") for each in (dense, small)), NOTHING),
        ("tokens/s", *(number(each.get("tokens_per_second"), ",.0f") for each in (dense, small)), ratio_words(small)),
    ]
    rows += [(f"{task}, {metric}", *values) for task, metric, *values, _ in task_rows(report)]
    return [row for row in rows if {*row[1:3]} != {NOTHING}]


def _proof(run: Run) -> str:
    return "\n".join(f"- {_plain(line)}" for line in comparison_lines(run.report))


def _kept(report: Mapping[str, Any]) -> str:
    rows = [
        (str(layer), number(len(heads) if isinstance(heads, list) else heads), number(width))
        for layer, heads, width in kept_layers(report)
    ]
    if not rows:
        return ""
    listed = _table(("layer", "heads", "dim_ff"), rows, left=0)
    return f"<details><summary>What was kept</summary>\n\n{listed}\n\n</details>"


def _made_by(report: Mapping[str, Any]) -> str:
    versions = report.get("versions") or {}
    words = [f"{name} {versions[name]}" for name in ("sprunec", "torch") if name in versions]
    words += [str(device)] if (device := ((report.get("provenance") or {}).get("machine") or {}).get("device")) else []
    return f"<sub>{_plain(', '.join(words))}</sub>" if words else ""


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """Set the first so many columns left, the others right, as numbers."""
    ruled = ["---" if number < left else "---:" for number in range(len(heads))]
    lines = [[*map(_plain, heads)], ruled, *([*map(_plain, row)] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if len(lines) > 2 else ""


def _plain(words: object) -> str:
    """Write words so that nothing in them is read as Markdown or as HTML."""
    return str(words).translate(SPECIAL)
