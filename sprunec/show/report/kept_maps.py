"""Maps of layers by units: what was kept, and how likely each gate was kept while masks learned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from sprunec.show.numbers import ABSENT, is_finite, number
from sprunec.show.report.plots import LEFT, WIDTH, bar, drawing, figure, table, text, tip, words
from sprunec.show.report.runs import GATES, Events
from sprunec.show.report_words import unit_totals

ROW, WIDEST_CELL = 22, 30.0
MOST_MOMENTS, MOST_CELLS = 6, 4000  # of a mask while it learns, side by side, and of a map
TITLES = {"attention": ("heads", "head"), "feed_forward": ("feed-forward dims", "dim")}
START = LEFT + 14
Moment = tuple[Any, Mapping[str, Sequence[Any]]]  # a step, and by layer how likely gates are kept then


def kept_figures(report: Mapping[str, Any]) -> list[str]:
    """Draw units that are told one by one as a grid of layers by units, others as bars; say what was not cut."""
    totals = dict(zip(TITLES, unit_totals(report), strict=True))
    found = []
    for kind, layers in (report.get("kept") or {}).items():
        units, unit = TITLES.get(kind, (kind.replace("_", " "), kind.rstrip("s").replace("_", " ")))
        if not isinstance(layers, Mapping) or not layers:
            continue
        kept = {int(layer): layers[layer] for layer in sorted(layers, key=int)}
        total = totals.get(kind) or _most(kept.values())
        if total and all((len(k) if isinstance(k, list) else k) == total for k in kept.values()):
            found.append(f"<p>All {number(total)} {text(units)} in every layer.</p>")
            continue
        rows = [_row(layer, left, total, unit, y * ROW) for y, (layer, left) in enumerate(kept.items())]
        drawn = drawing(WIDTH, ROW * len(kept), f"kept {units}", *rows)
        caption = f"{units.capitalize()} kept in each layer, of {number(total, nothing='unknown')}"
        found.append(figure(drawn, caption, _kept_table(kept, units)))
    return found


def _most(kept: Iterable[Any]) -> float:
    counts = (max(filter(is_finite, k), default=-1) + 1 if isinstance(k, list) else k for k in kept)
    return max((count for count in counts if is_finite(count)), default=0)


def _kept_table(kept: Mapping[int, Any], units: str) -> str:
    rows = [(str(layer), _count(left), _listed(left)) for layer, left in kept.items()]
    if all(not isinstance(left, list) for left in kept.values()):
        return table(("layer", units), [row[:2] for row in rows], ())
    return table(("layer", "kept", "which"), rows, ("which",))


def _count(left: Any) -> str:
    return ABSENT if left is None else number(len(left) if isinstance(left, list) else left)


def _listed(left: Any) -> str:
    return ", ".join(map(number, left)) if isinstance(left, list) else ""


def _row(layer: int, left: Any, total: float, unit: str, y: float) -> str:
    name = words(LEFT + 4, y + 14, f"layer {layer}", "end")
    if left is None:
        return name + words(START, y + 14, ABSENT, "word")
    room = WIDTH - START - 60
    if isinstance(left, list) and total <= MOST_CELLS:
        wide = min(WIDEST_CELL, room / max(total, 1))
        cells = ""
        for index in range(int(total)):
            kind, done = ("on", "kept") if index in left else ("off", "cut")
            cells += bar(kind, START + index * wide, y, wide * 0.9, tip(f"layer {layer}, {unit} {index}: {done}"))
        return name + cells + words(START + 8 + total * wide, y + 14, number(len(set(left))))
    count = len(left) if isinstance(left, list) else left
    full = room * count / total if total and is_finite(count) else 0
    told = tip(f"layer {layer}: {number(count)} of {number(total, nothing='unknown')} {unit}s kept")
    return (
        name
        + bar("off", START, y, room)
        + bar("on", START, y, full, told)
        + words(START + room + 8, y + 14, number(count))
    )


def gate_figures(events: Events) -> list[str]:
    """Draw, for each pass that learns a mask and each kind of unit, how likely gates are kept, at some of its steps."""
    moments: dict[tuple[str, str, bool], list[Moment]] = {}
    for event in events:
        for name, many in zip(GATES, (False, True), strict=True):
            for unit, layers in (event.get(name) or {}).items():
                moments.setdefault((str(event["node"]), str(unit), many), []).append((event.get("step"), layers))
    return [gate_figure(*key, found) for key, found in moments.items()]


def gate_figure(node: str, unit: str, many: bool, moments: Sequence[Moment]) -> str:
    """Draw maps of the first step, of the last, and of some between.

    Args:
        many: they are quantiles, from the least likely to the most.
    """
    cells = max(1, sum(map(len, moments[0][1].values())))
    wanted = min(len(moments), max(2, min(MOST_MOMENTS, MOST_CELLS // cells)))
    chosen = [moments[round(i * (len(moments) - 1) / max(wanted - 1, 1))] for i in range(wanted)]
    maps = [
        f'<div class="moment"><h4>step {number(step)}</h4>{_gate_map(layers, unit, many)}</div>'
        for step, layers in chosen
    ]
    order = "; in each layer from the least likely to the most" if many else ""
    caption = f"{node}: how likely each {unit} is kept, layer by layer{order}"
    name = unit.replace("_", " ")
    rows = [(str(layer), *_shares(first), *_shares(last)) for layer, first, last in _both(chosen[0][1], chosen[-1][1])]
    head = ("layer", *(f"{when}: {what}" for when in ("first", "last") for what in ("mean", "above 50 %")))
    drawn = f'<div class="moments" role="group" aria-label="{text(name)} gates of {text(node)}">{"".join(maps)}</div>'
    return figure(drawn, caption, table(head, rows, ()))


def _both(first: Mapping[str, Any], last: Mapping[str, Any]) -> Iterator[tuple[str, Sequence[Any], Sequence[Any]]]:
    for layer in first:
        if layer in last:
            yield layer, first[layer], last[layer]


def _shares(percents: Sequence[Any]) -> tuple[str, str]:
    known = [each for each in percents if is_finite(each)]
    mean = number(sum(known) / len(known), ".0f") if known else ""
    return f"{mean} %", f"{sum(each > 50 for each in known)} of {len(percents)}"


def _gate_map(layers: Mapping[str, Sequence[Any]], unit: str, many: bool) -> str:
    width, left = 300.0, 30
    rows = []
    for y, (layer, percents) in enumerate(layers.items()):
        rows += [words(left - 6, ROW * y + 14, text(layer), "end"), bar("off", left, ROW * y, width - left)]
        wide, place = (width - left) / max(len(percents), 1), 0
        gap = 0.0 if many else min(1.5, wide / 6)
        # Neighbours of one shade are one mark where they have no order of their own.
        parts = [list(found) for _, found in groupby(percents, _shade)] if many else [[each] for each in percents]
        for part in parts:
            which = f"{place + 1} to {place + len(part)} of {len(percents)}" if many else str(place)
            told = f"layer {layer}, {unit} {which}: {_percent(part)}"
            shade = f' fill-opacity="{_shade(part[0]):.1f}"'
            rows.append(bar("on", left + place * wide, ROW * y, wide * len(part) - gap, shade + tip(told)))
            place += len(part)
    return drawing(width, ROW * max(len(layers), 1), f"how likely each {unit} is kept", *rows)


def _shade(percent: Any) -> float:
    """Round to ten shades, so that a map's neighbours can be one mark."""
    return round(percent / 10) / 10 if is_finite(percent) else 0.0


def _percent(part: Sequence[Any]) -> str:
    found = dict.fromkeys(number(each) for each in (part[0], part[-1]))
    return " to ".join(found) + " %"
