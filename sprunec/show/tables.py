"""Documents as tables for a terminal: pure functions from a document to something rich can print."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sprunec.show.words import ABSENT, NOTHING, add_row, new_table, number, percent, plural, printable, rounded, times

MODELS = ("dense", "masked", "small")
MOST_HEADS_DRAWN = 64
BAR_CELLS = 16
MOST_MISSED = 4


# ---- run --dry-run


def graph_table(document: Mapping[str, Any]) -> RenderableType:
    """The nodes that `run` would go through, what each gives, and what all of it costs."""
    columns = ("node", "what", "from", "steps", "size", "digest")
    table = new_table(*columns, title=f"plan {document['plan']}", right=("steps", "size"), wraps=("what", "from"))
    for node in document["nodes"]:
        steps, size = number(node["steps"]), rounded(node["parameters"])
        row = (node["name"], node["about"], sources(node), steps, size, digest_words(node))
        add_row(table, *row, style="dim" if node["cached"] else "")
    return Group(table, Text(graph_caption(document), style="dim"))


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
    before, after = document["parameters"]["before"], document["parameters"]["after"]
    cached = sum(node["cached"] for node in document["nodes"])
    return (
        f"{plural(len(document['nodes']), 'node')}, {cached} already in the store\n"
        f"parameters {before:,} -> {after:,} ({percent(after, before)})\n"
        f"{document['tokens']:,} training tokens, about {float(document['flops']):.2g} floating-point operations"
        + "".join(f"\n{cost_words(row)}" for row in document.get("training", ()))
    )


def cost_words(row: Mapping[str, Any]) -> str:
    """What a training step takes of each device."""
    memory, sent = f"about {row['memory'] / 1e9:,.1f} GB", f"sends {row['traffic'] / 1e9:,.2f} GB a step"
    if row["devices"] == 1:
        return f"training takes {memory} of a device's memory"
    held = "all of the model (DDP)" if row["sharding"] == "none" else "a part of the model (FSDP2)"
    return f"each of {row['devices']} devices with {held}: {memory}, {sent}"


# ---- run


def result_table(report: Mapping[str, Any]) -> RenderableType:
    """Dense, masked and small side by side, and how far the last two are apart."""
    columns = ("model", "parameters", "of dense", "held-out loss", "perplexity", "tokens/s", "speed")
    table = new_table(*columns, right=columns[1:])
    for cells in model_rows(report):
        add_row(table, *cells, style="bold" if cells[0] == "small" else "")
    words = [comparison_words(report), *form_words(report), *missed_words(report)]
    return Group(table, *(Text(line, style="dim") for line in words))


def model_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row of seven words for each of the three models; parameters and speed also relative to dense."""
    models = report.get("models") or {}
    dense = models.get("dense") or {}
    rows: list[tuple[str, ...]] = []
    for name in MODELS:
        model = models.get(name) or {}
        size, speed = model.get("parameters"), model.get("tokens_per_second")
        share, faster = percent(size, dense.get("parameters")), times(speed, dense.get("tokens_per_second"))
        loss, perplexity = number(model.get("loss"), ".4f"), number(model.get("perplexity"), ".2f")
        rows.append((name, number(size), share, loss, perplexity, number(speed, ",.0f"), faster))
    return rows


def comparison_words(report: Mapping[str, Any]) -> str:
    found = report.get("comparison")
    if not found:
        return "masked and small were not compared"
    difference, tolerance = found["max_abs_difference"], found["tolerance"]
    over = plural(found["tokens"], "token")
    # Written this way round, so that NaN counts as outside.
    verdict = "within" if difference <= tolerance else "ABOVE"
    limit = f"{verdict} the tolerance {tolerance:.2g}"
    words = f"masked against small: max |delta logit| {difference:.2g}, {limit}, over {over}"
    if "float32_difference" in found:
        single, largest = found["float32_difference"], found["largest_logit"]
        words += f"; in float32 arithmetic {single:.2g}, on logits up to {largest:.2g}"
    return words


def form_words(report: Mapping[str, Any]) -> list[str]:
    """One line for each emitted form that was opened again."""
    lines = []
    for form, found in (report.get("formats") or {}).items():
        difference, tolerance = found["max_abs_difference"], found["tolerance"]
        inside = difference is not None and difference <= tolerance
        verdict = f"{'within' if inside else 'ABOVE'} the tolerance {tolerance:.2g} of {found['dtype']}"
        over = plural(found["tokens"], "token")
        lines.append(f"{form}, opened again: max |delta logit| {number(difference, '.2g')}, {verdict}, over {over}")
    return lines


def missed_words(report: Mapping[str, Any]) -> list[str]:
    """The budgets whose mask is not exactly of the size that was asked for, by how much."""
    rows = [row for row in report.get("budgets") or () if difference(row)]
    lines = [f"{r['pass']}, {r['name']}: asked {size(asked(r))}, got {size(r['got'])}" for r in rows[:MOST_MISSED]]
    return lines + ([f"and {plural(len(rows) - MOST_MISSED, 'budget')} more"] if len(rows) > MOST_MISSED else [])


def difference(budget: Mapping[str, Any]) -> float:
    """What a mask keeps above what was asked for; negative below."""
    return float(budget["got"]) - asked(budget)


def asked(budget: Mapping[str, Any]) -> float:
    """By the plan; reports of before it was told apart from the target have that alone."""
    return float(budget.get("asked", budget["target"]))


def size(value: float) -> str:
    """A target or what became of it: nearly always whole."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def kept_table(report: Mapping[str, Any]) -> RenderableType:
    """Layer by layer, which heads and how much of the feed-forward were kept, in the input model's numbering."""
    config = report.get("config") or {}
    table = new_table("layer", "heads kept", "", "dim_ff kept", "", right=("layer",), wraps=("heads kept",))
    for layer, heads, width in kept_layers(report):
        drawn, counted = head_cells(heads, config.get("num_heads") or 0)
        bar, wide = width_cells(width, config.get("dim_ff") or 0)
        add_row(table, str(layer), drawn, counted, bar, wide)
    return table


def kept_layers(report: Mapping[str, Any]) -> list[tuple[int, Any, Any]]:
    """(layer, heads, dim_ff) in order; None is an absent sublayer, NOTHING one that nobody spoke of."""
    kept = report.get("kept") or {}
    attention, feed_forward = kept.get("attention") or {}, kept.get("feed_forward") or {}
    layers = sorted({int(layer) for layer in (*attention, *feed_forward)})
    return [(n, attention.get(str(n), NOTHING), feed_forward.get(str(n), NOTHING)) for n in layers]


def head_cells(heads: Any, total: int) -> tuple[Text, str]:
    """A small map of the heads, where it fits, and their count."""
    if heads is None or heads == NOTHING:
        return Text(ABSENT if heads is None else NOTHING, style="yellow"), ""
    counted = f"{len(heads)} of {total}"
    if total > MOST_HEADS_DRAWN:
        return Text(counted), ""
    kept = set(heads)
    cells = (("■", "green") if head in kept else ("□", "dim") for head in range(total))
    return Text.assemble(*cells), counted


def width_cells(width: Any, total: int) -> tuple[Text, str]:
    if width is None or width == NOTHING:
        return Text(ABSENT if width is None else NOTHING, style="yellow"), ""
    full = round(BAR_CELLS * width / total) if total else 0
    return Text.assemble(("█" * full, "green"), ("░" * (BAR_CELLS - full), "dim")), f"{width:,} of {total:,}"


# ---- inspect


def waste_table(document: Mapping[str, Any], dry_run: bool) -> RenderableType:
    """What goes, and how much that is in all."""
    size, entries = number(document["bytes"]), document["entries"]
    verb = "could be" if dry_run else "are"
    head = f"{document['out']}: {size} bytes in {plural(len(entries), 'item')} {verb} removed"
    if not entries:
        return Text(printable(f"{document['out']}: nothing to remove"))
    table = new_table("bytes", "what", "why", right=("bytes",))
    for entry in entries:
        name = re.sub("([0-9a-f]{12})[0-9a-f]{52}", r"\1", entry["path"].rpartition("/")[2])
        add_row(table, number(entry["bytes"]), name, entry["reason"])
    return Group(Text(printable(head), style="bold"), table)


def inspect_table(document: Mapping[str, Any]) -> RenderableType:
    """What is in a model, and what can be cut from it."""
    total, prunable = document["parameters"]["total"], document["parameters"]["prunable"]
    head = f"{document['family']}: {total:,} parameters, {prunable:,} prunable ({percent(prunable, total)})"
    parts: list[RenderableType] = [Text(printable(head), style="bold"), layer_table(document["layers"])]
    parts.append(site_table(document["sites"]))
    origin = document.get("origin") or {}
    words = [f"{key} {number(value)}" for key, value in origin.items() if not isinstance(value, (dict, list))]
    if words:
        parts.append(Text(printable("origin: " + ", ".join(words)), style="dim"))
    return Group(*parts)


def layer_table(layers: Iterable[Mapping[str, Any]]) -> Table:
    columns = ("layer", "heads x dim_head", "parameters", "dim_ff", "parameters")
    table = new_table(*columns, right=columns)
    for layer in layers:
        attention, feed_forward = layer["attention"], layer["feed_forward"]
        left = right = (ABSENT, NOTHING)
        if attention:
            left = (f"{attention['heads']} x {attention['dim_head']}", number(attention["parameters"]))
        if feed_forward:
            right = (number(feed_forward["dim_ff"]), number(feed_forward["parameters"]))
        add_row(table, str(layer["index"]), *left, *right)
    return table


def site_table(sites: Sequence[Mapping[str, Any]]) -> Table:
    """One row for each kind of unit; places may differ in what one cut saves, so it can be a range."""
    table = new_table("what can be cut", "units", "places", "one cut saves", right=("units", "places", "one cut saves"))
    for unit in dict.fromkeys(site["unit"] for site in sites):
        same = [site for site in sites if site["unit"] == unit]
        saves = sorted({site["parameters_each"] for site in same})
        one = number(saves[0]) if len(saves) == 1 else f"{saves[0]:,} to {saves[-1]:,}"
        add_row(table, unit, number(sum(site["size"] for site in same)), number(len(same)), f"{one} parameters")
    return table
