"""Documents as tables for a terminal: pure functions from a document to something rich can print."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from sprunec.show.fitted import Column, FittedTable, Line
from sprunec.show.numbers import ABSENT, NOTHING, UNKNOWN, is_finite, number, percent, plural, rounded
from sprunec.show.speeds import ratio_words, speed_words

MODELS = ("dense", "masked", "small")
MOST_HEADS_DRAWN = 64
BAR_CELLS = MAP_CELLS = 16
MOST_MISSED = 4


# ---- run --dry-run


def graph_table(document: Mapping[str, Any]) -> RenderableType:
    """The nodes that `run` would go through, what each gives, and what all of it costs."""
    what, source = Column("what", wraps=True, readable=24), Column("from", wraps=True, readable=9, rank=2)
    steps, size, digest = Column("steps", right=True, rank=1), Column("size", right=True), Column("digest", rank=3)
    table = FittedTable(Column("node"), what, source, steps, size, digest, title=f"plan {document['plan']}")
    for node in document["nodes"]:
        sizes = number(node.get("steps")), rounded(node.get("parameters"))
        row = (node["name"], node["about"], sources(node), *sizes, digest_words(node))
        table.add(*row, style="dim" if node["cached"] else "")
    return Group(table, Line(graph_caption(document), "dim"))


def sources(node: Mapping[str, Any]) -> str:
    """The nodes that this one reads, by number where they have one; it may read one under two names."""
    names = dict.fromkeys(node["inputs"].values())
    heads = {name: name.partition("-")[0] for name in names}
    return ", ".join(heads[name] if heads[name].isdecimal() else name for name in names)


def digest_words(node: Mapping[str, Any]) -> str:
    if node["digest"] is None:
        return "lacks input"
    return str(node["digest"])[:6] + (" stored" if node["cached"] else "")


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
    """What a training step takes of each device."""
    devices, memory = row.get("devices"), f"about {gigabytes(row.get('memory'), ',.1f')}"
    if devices == 1:
        return f"training takes {memory} of a device's memory"
    held = "all of the model (DDP)" if row["sharding"] == "none" else "a part of the model (FSDP2)"
    return (
        f"each of {number(devices)} devices with {held}: {memory}, sends {gigabytes(row.get('traffic'), ',.2f')} a step"
    )


def gigabytes(amount: Any, form: str) -> str:
    return f"{number(amount / 1e9 if is_finite(amount) else amount, form, UNKNOWN)} GB"


def powered(value: Any) -> str:
    """Two digits and a power of ten, where the size is what matters."""
    return f"{value:.2g}" if is_finite(value) else number(value, nothing=UNKNOWN)


# ---- run


def result_table(report: Mapping[str, Any]) -> RenderableType:
    """Dense, masked and small side by side, and how far the last two are apart."""
    columns = ("model", "parameters", "of dense", "held-out loss", "perplexity", "tokens/s", "speed")
    table = FittedTable(*(Column(title, right=title != "model", rank=int(title == "perplexity")) for title in columns))
    for cells in model_rows(report):
        table.add(*cells, style="bold" if cells[0] == "small" else "")
    words = [comparison_words(report), *form_words(report), *speed_words(report.get("models") or {})]
    words += missed_words(report)
    return Group(table, *(Line(each, "dim") for each in words))


def model_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row of seven words for each of the three models; parameters and speed also relative to dense."""
    models = report.get("models") or {}
    dense = models.get("dense") or {}
    rows: list[tuple[str, ...]] = []
    for name in MODELS:
        model = models.get(name) or {}
        size, speed = model.get("parameters"), model.get("tokens_per_second")
        share, faster = percent(size, dense.get("parameters")), ratio_words(model)
        if name == "dense" and is_finite(speed):
            faster = "1.00 x"
        loss, perplexity = number(model.get("loss"), ".4f"), number(model.get("perplexity"), ".2f")
        rows.append((name, number(size), share, loss, perplexity, number(speed, ",.0f"), faster))
    return rows


def comparison_words(report: Mapping[str, Any]) -> str:
    found = report.get("comparison")
    if not found:
        return "masked and small were not compared"
    words = f"masked against small: {difference_words(found)}, over {plural(found.get('tokens'), 'token')}"
    if "float32_difference" in found:
        single, largest = powered(found["float32_difference"]), powered(found.get("largest_logit"))
        words += f"; in float32 arithmetic {single}, on logits up to {largest}"
    return words


def difference_words(found: Mapping[str, Any]) -> str:
    """How far apart two models are; a difference that is no number is above every tolerance."""
    apart, tolerance = found.get("max_abs_difference"), found.get("tolerance")
    verdict = "within" if is_finite(apart) and is_finite(tolerance) and apart <= tolerance else "ABOVE"
    limit = f"{verdict} the tolerance {powered(tolerance)}" if is_finite(tolerance) else "the tolerance is unknown"
    return f"max |delta logit| {powered(apart)}, {limit}"


def form_words(report: Mapping[str, Any]) -> list[str]:
    """One line for each emitted form that was opened again, or why it is not published."""
    lines = []
    for form, found in (report.get("formats") or {}).items():
        if "error" in found:
            lines.append(f"{form} is not published: {found['error']}")
            continue
        apart, over = f"{difference_words(found)} of {found['dtype']}", plural(found.get("tokens"), "token")
        lines.append(f"{form}, opened again: {apart}, over {over}")
    return lines


def missed_words(report: Mapping[str, Any]) -> list[str]:
    """The budgets whose mask is not exactly of the size that was asked for, by how much."""
    rows = [row for row in report.get("budgets") or () if off_by(row) != 0.0]
    sizes = [(size(asked(row)), size(row.get("got"))) for row in rows]
    named = list(zip(rows, sizes, strict=True))[:MOST_MISSED]
    lines = [f"{row['pass']}, {row['name']}: asked {wanted}, got {got}" for row, (wanted, got) in named]
    return lines + ([f"and {plural(len(rows) - MOST_MISSED, 'budget')} more"] if len(rows) > MOST_MISSED else [])


def off_by(budget: Mapping[str, Any]) -> float | None:
    """What a mask keeps above what was asked for; negative below; None where one of the two is unknown."""
    got, wanted = budget.get("got"), asked(budget)
    return float(got) - float(wanted) if is_finite(got) and is_finite(wanted) else None


def asked(budget: Mapping[str, Any]) -> Any:
    """By the plan; reports of before it was told apart from the target have that alone."""
    return budget.get("asked", budget.get("target"))


def size(value: Any) -> str:
    """A target or what became of it: nearly always whole."""
    return number(value, ",.0f" if is_finite(value) and float(value).is_integer() else ",.1f")


def kept_table(report: Mapping[str, Any]) -> RenderableType:
    """Layer by layer, which heads and how much of the feed-forward were kept, in the input model's numbering."""
    heads_of, dims_of = (whole((report.get("config") or {}).get(name)) for name in ("num_heads", "dim_ff"))
    heads, dims = Column("heads kept"), Column("dim_ff kept")
    table = FittedTable(Column("layer", right=True), Column("", wraps=True, rank=1), heads, Column("", rank=2), dims)
    for layer, kept, width in kept_layers(report):
        table.add(str(layer), *head_cells(kept, heads_of), *width_cells(width, dims_of))
    return table


def kept_layers(report: Mapping[str, Any]) -> list[tuple[int, Any, Any]]:
    """(layer, heads, dim_ff) in order; None is an absent sublayer, NOTHING one that nobody spoke of."""
    kept = report.get("kept") or {}
    attention, feed_forward = kept.get("attention") or {}, kept.get("feed_forward") or {}
    layers = sorted({int(layer) for layer in (*attention, *feed_forward)})
    return [(n, attention.get(str(n), NOTHING), feed_forward.get(str(n), NOTHING)) for n in layers]


def whole(value: Any) -> int | None:
    """A count, if it is one."""
    return int(value) if is_finite(value) else None


def head_cells(heads: Any, total: int | None) -> tuple[Text, Text]:
    """A small map of the heads, where it fits, and their count."""
    if heads is None or heads == NOTHING:
        return Text(), unkept(heads)
    kept = set(heads)
    cells = [("■", "green") if head in kept else ("□", "dim") for head in range(total or 0)]
    spaced = [cell for n, cell in enumerate(cells) for cell in ([(" ", "")] * (n > 0 and n % MAP_CELLS == 0) + [cell])]
    return Text.assemble(*spaced if len(cells) <= MOST_HEADS_DRAWN else ()), Text(f"{len(heads)} of {number(total)}")


def width_cells(width: Any, total: int | None) -> tuple[Text, Text]:
    """A bar, and the number of dims."""
    if width is None or width == NOTHING:
        return Text(), unkept(width)
    counted = Text(f"{number(width)} of {number(total)}")
    if not total or not is_finite(width):
        return Text(), counted
    full = round(BAR_CELLS * width / total)
    return Text.assemble(("█" * full, "green"), ("░" * (BAR_CELLS - full), "dim")), counted


def unkept(kept: str | None) -> Text:
    return Text(ABSENT if kept is None else NOTHING, style="yellow")


# ---- inspect


def waste_table(document: Mapping[str, Any], dry_run: bool) -> RenderableType:
    """What goes, and how much that is in all."""
    entries = document["entries"]
    verb = "could be" if dry_run else "are"
    head = (
        f"{document['out']}: {plural(document.get('bytes'), 'byte')} in {plural(len(entries), 'item')} {verb} removed"
    )
    if not entries:
        return Line(f"{document['out']}: nothing to remove", wraps=False)
    table = FittedTable(Column("bytes", right=True), Column("what"), Column("why", wraps=True))
    for entry in entries:
        name = re.sub("([0-9a-f]{12})[0-9a-f]{52}", r"\1", entry["path"].rpartition("/")[2])
        table.add(number(entry.get("bytes")), name, entry["reason"])
    return Group(Line(head, "bold", wraps=False), table)


def inspect_table(document: Mapping[str, Any]) -> RenderableType:
    """What is in a model, and what can be cut from it."""
    total, prunable = (document["parameters"].get(what) for what in ("total", "prunable"))
    share = percent(prunable, total)
    head = f"{document['family']}: {plural(total, 'parameter')}, {number(prunable)} prunable ({share})"
    parts: list[RenderableType] = [Line(head, "bold"), layer_table(document["layers"])]
    parts.append(site_table(document["sites"]))
    origin = document.get("origin") or {}
    words = [f"{key} {number(value)}" for key, value in origin.items() if not isinstance(value, (dict, list))]
    if words:
        parts.append(Line("origin: " + ", ".join(words), "dim"))
    return Group(*parts)


def layer_table(layers: Iterable[Mapping[str, Any]]) -> FittedTable:
    columns = ("layer", "heads x dim_head", "parameters", "dim_ff", "parameters")
    table = FittedTable(*(Column(title, right=True) for title in columns))
    for layer in layers:
        attention, feed_forward = layer["attention"], layer["feed_forward"]
        left = right = (ABSENT, NOTHING)
        if attention:
            heads, width = number(attention.get("heads")), number(attention.get("dim_head"))
            left = (f"{heads} x {width}", number(attention.get("parameters")))
        if feed_forward:
            right = (number(feed_forward.get("dim_ff")), number(feed_forward.get("parameters")))
        table.add(number(layer.get("index")), *left, *right)
    return table


def site_table(sites: Sequence[Mapping[str, Any]]) -> FittedTable:
    """One row for each kind of unit; places may differ in what one cut saves, so it can be a range."""
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
