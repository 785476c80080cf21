"""Documents as tables for a terminal: pure functions from a document to something rich can print."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from sprunec.show.fitted import Column, FittedTable, Line
from sprunec.show.numbers import ABSENT, NOTHING, UNKNOWN, is_finite, number, percent, plural, powered, rounded
from sprunec.show.report_words import comparison_lines, kept_layers, missed_lines, model_rows, speed_lines, whole

MOST_HEADS_DRAWN = 64
BAR_CELLS = MAP_CELLS = 16


# ---- run --dry-run


def graph_table(document: Mapping[str, Any]) -> RenderableType:
    """List the nodes that `run` would go through, what each gives, and what all of it costs."""
    what, source = Column("what", wraps=True, readable=24), Column("from", wraps=True, readable=9, rank=2)
    steps, size, digest = Column("steps", right=True, rank=1), Column("size", right=True), Column("digest", rank=3)
    table = FittedTable(Column("node"), what, source, steps, size, digest, title=f"plan {document['plan']}")
    for node in document["nodes"]:
        stored = " stored" if node["cached"] else ""
        short = "lacks input" if node["digest"] is None else f"{node['digest'][:6]}{stored}"
        sizes = number(node.get("steps")), rounded(node.get("parameters"))
        table.add(node["name"], node["about"], sources(node), *sizes, short, style="dim" if stored else "")
    return Group(table, Line(graph_caption(document), "dim"))


def sources(node: Mapping[str, Any]) -> str:
    """Name the nodes that this one reads, each once, by number where they have one."""
    return ", ".join(re.sub(r"^(\d+)-.*", r"\1", name) for name in dict.fromkeys(node["inputs"].values()))


def graph_caption(document: Mapping[str, Any]) -> str:
    before, after = (document["parameters"].get(side) for side in ("before", "after"))
    nodes = document["nodes"]
    cached, unready = sum(node["cached"] for node in nodes), sum(node["digest"] is None for node in nodes)
    lacking = f", {unready} lacking input" if unready else ""
    return (
        f"{plural(len(nodes), 'node')}, {cached} already in the store{lacking}\n"
        f"parameters {number(before)} -> {number(after)} ({percent(after, before)})\n"
        f"{plural(document.get('tokens'), 'training token')}, "
        f"about {powered(document.get('flops'))} floating-point operations"
        + "".join(f"\n{cost_words(row)}" for row in document.get("training", ()))
    )


def cost_words(row: Mapping[str, Any]) -> str:
    """Say what a training step takes of each device."""
    devices, memory = row.get("devices"), f"about {gigabytes(row.get('memory'), ',.1f')}"
    if devices == 1:
        return f"training takes {memory} of a device's memory"
    held = "all of the model (DDP)" if row["sharding"] == "none" else "a part of the model (FSDP2)"
    sent = gigabytes(row.get("traffic"), ",.2f")
    return f"each of {number(devices)} devices with {held}: {memory}, sends {sent} a step"


def gigabytes(amount: Any, form: str) -> str:
    return f"{number(amount / 1e9 if is_finite(amount) else amount, form, UNKNOWN)} GB"


# ---- run


def result_table(report: Mapping[str, Any]) -> RenderableType:
    """Set dense, masked and small side by side, and say how far the last two are apart."""
    columns = ("model", "parameters", "of dense", "held-out loss", "perplexity", "tokens/s", "speed")
    table = FittedTable(*(Column(title, right=title != "model", rank=int(title == "perplexity")) for title in columns))
    for cells in model_rows(report):
        table.add(*cells, style="bold" if cells[0] == "small" else "")
    lines = [*comparison_lines(report), *speed_lines(report), *missed_lines(report)]
    return Group(table, *(Line(line, "dim") for line in lines))


def kept_table(report: Mapping[str, Any]) -> RenderableType:
    """List layer by layer what was kept of heads and feed-forward, in the input model's numbering."""
    heads_of, dims_of = (whole((report.get("config") or {}).get(name)) for name in ("num_heads", "dim_ff"))
    heads, dims = Column("heads kept"), Column("dim_ff kept")
    table = FittedTable(Column("layer", right=True), Column("", wraps=True, rank=1), heads, Column("", rank=2), dims)
    for layer, kept, width in kept_layers(report):
        table.add(str(layer), *head_cells(kept, heads_of), *width_cells(width, dims_of))
    return table


def head_cells(heads: Any, total: int | None) -> tuple[Text, Text]:
    """Draw a small map of the heads, where it fits, and count them."""
    if heads is None or heads == NOTHING:
        return Text(), unkept(heads)
    kept, drawing = set(heads), Text()
    for head in range(total if total and total <= MOST_HEADS_DRAWN else 0):
        drawing.append(" " if head and head % MAP_CELLS == 0 else "")
        drawing.append(*("■", "green") if head in kept else ("□", "dim"))
    return drawing, Text(f"{len(heads)} of {number(total)}")


def width_cells(width: Any, total: int | None) -> tuple[Text, Text]:
    """Draw a bar, and count the dims."""
    if width is None or width == NOTHING:
        return Text(), unkept(width)
    counted = Text(f"{number(width)} of {number(total)}")
    if not total or not is_finite(width):
        return Text(), counted
    full = round(BAR_CELLS * width / total)
    return Text.assemble(("█" * full, "green"), ("░" * (BAR_CELLS - full), "dim")), counted


def unkept(kept: str | None) -> Text:
    return Text(ABSENT if kept is None else NOTHING, style="yellow")


# ---- gc


def waste_table(document: Mapping[str, Any], dry_run: bool) -> RenderableType:
    """List what goes, and how much that is in all."""
    out, entries, verb = document["out"], document["entries"], "could be" if dry_run else "are"
    if not entries:
        return Line(f"{out}: nothing to remove", wraps=False)
    head = f"{out}: {plural(document.get('bytes'), 'byte')} in {plural(len(entries), 'item')} {verb} removed"
    table = FittedTable(Column("bytes", right=True), Column("what"), Column("why", wraps=True))
    for entry in entries:
        name = re.sub("([0-9a-f]{12})[0-9a-f]{52}", r"\1", entry["path"].rpartition("/")[2])
        table.add(number(entry.get("bytes")), name, entry["reason"])
    return Group(Line(head, "bold", wraps=False), table)


# ---- inspect


def inspect_table(document: Mapping[str, Any]) -> RenderableType:
    """List what is in a model, and what can be cut from it."""
    total, prunable = (document["parameters"].get(what) for what in ("total", "prunable"))
    share = percent(prunable, total)
    head = f"{document['family']}: {plural(total, 'parameter')}, {number(prunable)} prunable ({share})"
    origin = (document.get("origin") or {}).items()
    words = ", ".join(f"{key} {number(value)}" for key, value in origin if not isinstance(value, (dict, list)))
    tables = layer_table(document["layers"]), site_table(document["sites"])
    return Group(Line(head, "bold"), *tables, *([Line(f"origin: {words}", "dim")] if words else []))


def layer_table(layers: Iterable[Mapping[str, Any]]) -> FittedTable:
    columns = ("layer", "heads x dim_head", "parameters", "dim_ff", "parameters")
    table = FittedTable(*(Column(title, right=True) for title in columns))
    for layer in layers:
        attention, feed_forward = layer["attention"], layer["feed_forward"]
        left = right = (ABSENT, NOTHING)
        if attention:
            heads, width, size = (number(attention.get(key)) for key in ("heads", "dim_head", "parameters"))
            left = (f"{heads} x {width}", size)
        if feed_forward:
            right = (number(feed_forward.get("dim_ff")), number(feed_forward.get("parameters")))
        table.add(number(layer.get("index")), *left, *right)
    return table


def site_table(sites: Sequence[Mapping[str, Any]]) -> FittedTable:
    """List each kind of unit; places may differ in what one cut saves, so it can be a range."""
    numbers = (Column(title, right=True) for title in ("units", "places", "one cut saves"))
    table = FittedTable(Column("what can be cut"), *numbers)
    for unit in dict.fromkeys(site["unit"] for site in sites):
        same = [site for site in sites if site["unit"] == unit]
        sizes = [site.get("size") for site in same]
        units = sum(filter(is_finite, sizes)) if all(map(is_finite, sizes)) else None
        saves = [site.get("parameters_each") for site in same]
        known = sorted({each for each in saves if is_finite(each)})
        span = known if len(known) == len(set(saves)) else [None]  # of what is not known there is no range
        one = " to ".join(number(each) for each in dict.fromkeys((span[0], span[-1])))
        table.add(unit, number(units), number(len(same)), f"{one} parameters")
    return table
