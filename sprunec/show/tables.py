"""Documents as tables for a terminal: pure functions from a document to something rich can print."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from sprunec.show.fitted import Column, FittedTable, Line
from sprunec.show.words import ABSENT, NOTHING, number, percent, plural, rounded, times

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
        sizes = number(node["steps"]), rounded(node["parameters"])
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
    before, after = document["parameters"]["before"], document["parameters"]["after"]
    nodes = document["nodes"]
    cached, lacking = sum(node["cached"] for node in nodes), sum(node["digest"] is None for node in nodes)
    return (
        f"{plural(len(nodes), 'node')}, {cached} already in the store"
        + (f", {lacking} lacking input\n" if lacking else "\n")
        + f"parameters {before:,} -> {after:,} ({percent(after, before)})\n"
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
    table = FittedTable(*(Column(title, right=title != "model", rank=int(title == "perplexity")) for title in columns))
    for cells in model_rows(report):
        table.add(*cells, style="bold" if cells[0] == "small" else "")
    words = [comparison_words(report), *form_words(report), *missed_words(report)]
    return Group(table, *(Line(each, "dim") for each in words))


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
    lines = [f"{r['pass']}, {r['name']}: asked {size(r['target'])}, got {size(r['got'])}" for r in rows[:MOST_MISSED]]
    return lines + ([f"and {plural(len(rows) - MOST_MISSED, 'budget')} more"] if len(rows) > MOST_MISSED else [])


def difference(budget: Mapping[str, Any]) -> float:
    """What a mask keeps above what was asked for; negative below."""
    return float(budget["got"]) - float(budget["target"])


def size(value: float) -> str:
    """A target or what became of it: nearly always whole."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def kept_table(report: Mapping[str, Any]) -> RenderableType:
    """Layer by layer, which heads and how much of the feed-forward were kept, in the input model's numbering."""
    config = report.get("config") or {}
    heads, dims = Column("heads kept"), Column("dim_ff kept")
    table = FittedTable(Column("layer", right=True), Column("", wraps=True, rank=1), heads, Column("", rank=2), dims)
    for layer, kept, width in kept_layers(report):
        table.add(
            str(layer), *head_cells(kept, config.get("num_heads") or 0), *width_cells(width, config.get("dim_ff") or 0)
        )
    return table


def kept_layers(report: Mapping[str, Any]) -> list[tuple[int, Any, Any]]:
    """(layer, heads, dim_ff) in order; None is an absent sublayer, NOTHING one that nobody spoke of."""
    kept = report.get("kept") or {}
    attention, feed_forward = kept.get("attention") or {}, kept.get("feed_forward") or {}
    layers = sorted({int(layer) for layer in (*attention, *feed_forward)})
    return [(n, attention.get(str(n), NOTHING), feed_forward.get(str(n), NOTHING)) for n in layers]


def head_cells(heads: Any, total: int) -> tuple[Text, Text]:
    """A small map of the heads, where it fits, and their count."""
    if heads is None or heads == NOTHING:
        return Text(), unkept(heads)
    kept = set(heads)
    cells = [("■", "green") if head in kept else ("□", "dim") for head in range(total)]
    spaced = [cell for n, cell in enumerate(cells) for cell in ([(" ", "")] * (n > 0 and n % MAP_CELLS == 0) + [cell])]
    return Text.assemble(*spaced if total <= MOST_HEADS_DRAWN else ()), Text(f"{len(heads)} of {total}")


def width_cells(width: Any, total: int) -> tuple[Text, Text]:
    """A bar, and the number of dims."""
    if width is None or width == NOTHING:
        return Text(), unkept(width)
    full = round(BAR_CELLS * width / total) if total else 0
    return Text.assemble(("█" * full, "green"), ("░" * (BAR_CELLS - full), "dim")), Text(f"{width:,} of {total:,}")


def unkept(kept: str | None) -> Text:
    return Text(ABSENT if kept is None else NOTHING, style="yellow")


# ---- inspect


def waste_table(document: Mapping[str, Any], dry_run: bool) -> RenderableType:
    """What goes, and how much that is in all."""
    size, entries = number(document["bytes"]), document["entries"]
    verb = "could be" if dry_run else "are"
    head = f"{document['out']}: {size} bytes in {plural(len(entries), 'item')} {verb} removed"
    if not entries:
        return Line(f"{document['out']}: nothing to remove")
    table = FittedTable(Column("bytes", right=True), Column("what"), Column("why", wraps=True))
    for entry in entries:
        name = re.sub("([0-9a-f]{12})[0-9a-f]{52}", r"\1", entry["path"].rpartition("/")[2])
        table.add(number(entry["bytes"]), name, entry["reason"])
    return Group(Line(head, "bold"), table)


def inspect_table(document: Mapping[str, Any]) -> RenderableType:
    """What is in a model, and what can be cut from it."""
    total, prunable = document["parameters"]["total"], document["parameters"]["prunable"]
    head = f"{document['family']}: {total:,} parameters, {prunable:,} prunable ({percent(prunable, total)})"
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
            left = (f"{attention['heads']} x {attention['dim_head']}", number(attention["parameters"]))
        if feed_forward:
            right = (number(feed_forward["dim_ff"]), number(feed_forward["parameters"]))
        table.add(str(layer["index"]), *left, *right)
    return table


def site_table(sites: Sequence[Mapping[str, Any]]) -> FittedTable:
    """One row for each kind of unit; places may differ in what one cut saves, so it can be a range."""
    numbers = (Column(title, right=True) for title in ("units", "places", "one cut saves"))
    table = FittedTable(Column("what can be cut"), *numbers)
    for unit in dict.fromkeys(site["unit"] for site in sites):
        same = [site for site in sites if site["unit"] == unit]
        saves = sorted({site["parameters_each"] for site in same})
        one = number(saves[0]) if len(saves) == 1 else f"{saves[0]:,} to {saves[-1]:,}"
        table.add(unit, number(sum(site["size"] for site in same)), number(len(same)), f"{one} parameters")
    return table
