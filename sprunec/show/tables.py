"""Documents as tables for a terminal: pure functions from a document to something rich can print."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from sprunec.show.fitted import Column, FittedTable, Line, numeric
from sprunec.show.numbers import is_finite, number, plural
from sprunec.show.report_words import (
    comparison_lines,
    kept_layers,
    missed_lines,
    model_rows,
    speed_lines,
    task_rows,
    unit_totals,
)

MOST_HEADS_DRAWN = 64
BAR_CELLS = MAP_CELLS = 16


# ---- run


def result_table(report: Mapping[str, Any]) -> RenderableType:
    """Set dense, masked and small side by side, and say how far the last two are apart."""
    before, after = ("parameters", "of dense", "held-out loss"), ("tokens/s", "speed")
    table = FittedTable(Column("model"), *map(numeric, before), numeric("perplexity", rank=1), *map(numeric, after))
    for cells in model_rows(report):
        table.add(*cells, style="bold" if cells[0] == "small" else "")
    lines = [*comparison_lines(report), *speed_lines(report), *missed_lines(report)]
    return Group(table, *(Line(line, "dim") for line in lines))


def tasks_table(report: Mapping[str, Any]) -> FittedTable | None:
    """Set what tasks have measured of dense and small side by side; nothing where none was run."""
    table = FittedTable(
        Column("task"), Column("metric"), *map(numeric, ("dense", "small", "difference")), numeric("samples", rank=1)
    )
    rows = task_rows(report)
    for cells in rows:
        table.add(*cells)
    return table if rows else None


def kept_table(report: Mapping[str, Any]) -> RenderableType:
    """List layer by layer what was kept of heads and feed-forward, in the input model's numbering."""
    heads = Column("", wraps=True, rank=1), Column("heads kept")
    table = FittedTable(numeric("layer"), *heads, Column("", rank=2), Column("dim_ff kept"))
    heads_of, dims_of = unit_totals(report)
    for layer, kept, width in kept_layers(report):
        table.add(str(layer), *kept_cells(kept, heads_of, head_map), *kept_cells(width, dims_of, width_bar))
    return table


def kept_cells(kept: Any, total: int | None, draw: Callable[[Any, int], Text]) -> tuple[Text, Text]:
    """Draw what was kept, where it is known of how many, and count it."""
    if isinstance(kept, str):
        return Text(), Text(kept, style="yellow")
    amount = number(len(kept) if isinstance(kept, list) else kept)
    return draw(kept, total) if total else Text(), Text(f"{amount} of {number(total)}")


def head_map(heads: Sequence[int], total: int) -> Text:
    """Draw a small map of the heads, where it fits."""
    drawing = Text()
    for head in range(total if total <= MOST_HEADS_DRAWN else 0):
        drawing.append(" " if head and head % MAP_CELLS == 0 else "")
        drawing.append(*("■", "green") if head in heads else ("□", "dim"))
    return drawing


def width_bar(width: Any, total: int) -> Text:
    if not is_finite(width):
        return Text()
    full = round(BAR_CELLS * width / total)
    return Text.assemble(("█" * full, "green"), ("░" * (BAR_CELLS - full), "dim"))


# ---- gc


def waste_table(document: Mapping[str, Any], dry_run: bool) -> RenderableType:
    """List what goes, and how much that is in all."""
    out, entries, verb = document["out"], document["entries"], "could be" if dry_run else "are"
    if not entries:
        return Line(f"{out}: nothing to remove", wraps=False)
    head = f"{out}: {plural(document.get('bytes'), 'byte')} in {plural(len(entries), 'item')} {verb} removed"
    table = FittedTable(numeric("bytes"), Column("what"), Column("why", wraps=True))
    for entry in entries:
        name = re.sub("([0-9a-f]{12})[0-9a-f]{52}", r"\1", entry["path"].rpartition("/")[2])
        table.add(number(entry.get("bytes")), name, entry["reason"])
    return Group(Line(head, "bold", wraps=False), table)


# ---- schema


def schemas_table(about: Mapping[str, str]) -> FittedTable:
    """List schemas by name, with what each is of."""
    table = FittedTable(Column("schema"), Column("what it is of", wraps=True))
    for name, words in about.items():
        table.add(name, words)
    return table
