"""A model as a picture for a terminal: layers as rows, what is in them as bars; two models beside each other.

Bars take the width that there is. Where that is little, columns are given up, and the numbers that say most stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from sprunec.show.fitted import Column, FittedTable, Line, numeric
from sprunec.show.layer_cells import (
    SUBLAYERS,
    Document,
    bar,
    cells_of_bar,
    change,
    folded,
    head_map,
    is_grouped,
    most_of,
    parameters_of,
    sizes_change,
    sizes_words,
)
from sprunec.show.numbers import byte_words, is_finite, number, percent, plural, rounded


@dataclass(frozen=True)
class ModelPicture:
    """A model, by the document of `compiler.shape`, or of `schemas/inspect.schema.json`."""

    document: Document

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.drawn(options.max_width)

    def drawn(self, width: int) -> Group:
        """Draw it for so many cells of a terminal."""
        found = self.document
        outside = [Line(_outside_words(found))] if "outside" in found else []
        return Group(
            Line(f"{found.get('title', found['family'])}: {_size_words(found)}", "bold"),
            Line(_cache_words(found)),
            _layers(found, cells_of_bar(width)),
            *outside,
            site_table(found["sites"]),
            *(Line(text, "dim") for text in _notes(found)),
        )


@dataclass(frozen=True)
class TwoModels:
    """A dense model and a smaller one of it, layer beside layer by their numbers."""

    dense: Document
    small: Document

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.drawn(options.max_width)

    def drawn(self, width: int) -> Group:
        """Draw them for so many cells of a terminal."""
        models = {"dense": self.dense, "small": self.small}
        heads = [f"{which}: {_named(found)}, {_size_words(found)}" for which, found in models.items()]
        totals = [found["parameters"].get("total") for found in models.values()]
        caches = [found.get("cache_bytes_per_token") for found in models.values()]
        lines = [
            f"parameters {' -> '.join(map(number, totals))} ({percent(totals[1], totals[0])})",
            f"key-value cache {' -> '.join(map(number, caches))} bytes a token ({percent(caches[1], caches[0])})",
        ]
        counts = [len(found["layers"]) for found in models.values()]
        if counts[0] != counts[1]:
            lines.append(f"{counts[0]} layers against {counts[1]}: those that are left are numbered anew")
        table = _layers_beside(self.dense, self.small, cells_of_bar(width))
        return Group(*(Line(text, "bold", wraps=False) for text in heads), table, *map(Line, lines))


def _layers(found: Document, cells: int) -> FittedTable:
    """Draw each layer; of a long run of layers that are alike the first and the last."""
    layers, grouped = found["layers"], is_grouped(found["layers"])
    table = FittedTable(
        numeric("layer"),
        Column("heads in groups" if grouped else "heads"),
        *([numeric("groups", rank=1)] if grouped else []),
        numeric("heads x dim_head"),
        Column("feed-forward"),
        numeric("dim_ff"),
        numeric("parameters", rank=3),
        numeric("of all"),
        numeric("of cache", rank=2),
    )
    heads, dims = (most_of(layers, *where) for where in (("attention", "heads"), ("feed_forward", "dim_ff")))
    maps = all(len(head_map(layer["attention"])) <= cells for layer in layers if layer["attention"])
    total, cache = found["parameters"].get("total"), found.get("cache_bytes_per_token")
    rows = []
    for layer in layers:
        attention = layer["attention"]
        size = parameters_of(layer)
        drawn = Text(head_map(attention), "green") if maps and attention else bar(attention, "heads", heads, cells)
        row: list[str | Text] = [drawn]
        row += [number((attention or {}).get("kv_groups"))] if grouped else []
        row += [sizes_words(attention, "heads", "dim_head")]
        row += [bar(layer["feed_forward"], "dim_ff", dims, cells), sizes_words(layer["feed_forward"], "dim_ff")]
        row += [rounded(size), percent(size, total)]
        rows.append((number(layer.get("index")), [*row, percent(layer.get("cache_bytes_per_token"), cache)]))
    for name, texts in folded(rows):
        table.add(name, *texts)
    return table


def _layers_beside(dense: Document, small: Document, cells: int) -> FittedTable:
    """Draw what is left of each layer, what has gone fainter."""
    pairs = zip_longest(dense["layers"], small["layers"], fillvalue=dict.fromkeys(kind for kind, _ in SUBLAYERS))
    both, grouped = [*dense["layers"], *small["layers"]], is_grouped(dense["layers"])
    table = FittedTable(
        numeric("layer"),
        Column("heads", rank=3),
        *([numeric("groups")] if grouped else []),
        numeric("heads x dim_head"),
        Column("feed-forward", rank=2),
        numeric("dim_ff"),
        numeric("parameters", rank=4),
        numeric("left", rank=1),
    )
    rows = []
    for index, (before, after) in enumerate(pairs):
        row: list[str | Text] = []
        for kind, keys in SUBLAYERS:
            sides, most = (before[kind], after[kind]), most_of(both, kind, keys[0])
            row += [bar(sides[1], keys[0], most, cells, dense=sides[0])]
            row += [change(*(sizes_words(side, "kv_groups") for side in sides))] if grouped and len(keys) > 1 else []
            row += [sizes_change(sides, keys)]
        sizes = [parameters_of(side) for side in (before, after)]
        rows.append((str(index), [*row, change(*map(rounded, sizes)), percent(sizes[1], sizes[0])]))
    for name, texts in folded(rows):
        table.add(name, *texts)
    return table


# ---- words


def _named(found: Document) -> str:
    return ", ".join(str(found[key]) for key in ("name", "title") if key in found) or str(found["family"])


def _size_words(found: Document) -> str:
    total, prunable = (found["parameters"].get(what) for what in ("total", "prunable"))
    return f"{plural(total, 'parameter')}, {number(prunable)} prunable ({percent(prunable, total)})"


def _cache_words(found: Document) -> str:
    words = f"key-value cache: {plural(found.get('cache_bytes_per_token'), 'byte')} a token"
    if (long := found.get("long_text")) is not None:
        words += f", {byte_words(long['cache_bytes'])} for a text of {long['tokens']:,}"
    return words


def _outside_words(found: Document) -> str:
    total, outside = found["parameters"].get("total"), found["outside"]
    head = f"head {_share(outside['head'], total)}" if outside["head"] else "the head is the same table"
    embedding, others = (_share(outside[name], total) for name in ("embedding", "others"))
    return f"outside of the layers: embedding {embedding}, {head}, others {others}"


def _share(part: int, total: Any) -> str:
    return f"{rounded(part)} ({percent(part, total)})"


def _notes(found: Document) -> Iterator[str]:
    yield from found.get("fixed", ())
    for note in found.get("notes", ()):
        yield f"{note['text']} ({plural(len(note['layers']), 'layer')})"
    origin = (found.get("origin") or {}).items()
    if words := [f"{key} {number(value)}" for key, value in origin if not isinstance(value, (dict, list))]:
        yield f"origin: {', '.join(words)}"


def site_table(sites: Sequence[Mapping[str, Any]]) -> RenderableType:
    """List each kind of unit; places may differ in what one cut saves, so it can be a range."""
    table = FittedTable(Column("what can be cut"), *map(numeric, ("units", "places", "one cut saves")))
    for unit in dict.fromkeys(site["unit"] for site in sites):
        same = [site for site in sites if site["unit"] == unit]
        sizes: list[Any] = [site.get("size") for site in same]
        saves: list[Any] = [site.get("parameters_each") for site in same]
        units = sum(sizes) if all(map(is_finite, sizes)) else None
        # Of what is not known there is no range.
        span = dict.fromkeys((min(saves), max(saves))) if all(map(is_finite, saves)) else [None]
        table.add(unit, number(units), number(len(same)), f"{' to '.join(map(number, span))} parameters")
    return table
