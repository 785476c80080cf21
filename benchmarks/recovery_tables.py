"""What the benchmark of recovery has measured, as tables: means over held-out windows, and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

WINDOWS = {"book": 64, "docstrings": 192}
PLACES = {"book": slice(0, WINDOWS["book"]), "docstrings": slice(WINDOWS["book"], None)}  # a text's, in all windows
PAIRS = (
    ("scores: distilled", "scores: tuned"),
    ("gates, 5%: distilled", "gates, 5%: tuned"),
    ("gates, 30%: distilled", "gates, 30%: tuned"),
    ("scores: LoRA", "scores: tuned"),
    ("scores: LoRA, distilled", "scores: distilled"),
    ("gates, 5%: distilled", "scores: distilled"),
    ("gates, 30%: distilled", "scores: distilled"),
    ("random: distilled", "scores: distilled"),
    ("dims by torch-pruning: distilled", "scores: distilled"),
    ("dims by torch-pruning: distilled", "dims by scores: distilled"),
)


def table(results: Mapping[str, Any]) -> str:
    """Tell of all ways, the best on docstrings first, and of those that answer a question in pairs."""
    ways, dense = results["ways"], results["dense"]
    lines = ["| cut by | recovery | parameters | book | over dense | docstrings | over dense | minutes |"]
    lines += ["|---|---|---:|---:|---:|---:|---:|---:|", row("nothing: none", dense | {"seconds": 0}, dense)]
    of_docstrings = {name: mean(way["losses"][PLACES["docstrings"]]) for name, way in ways.items()}
    lines += [row(name, ways[name], dense) for name in sorted(ways, key=lambda name: of_docstrings[name])]
    lines += ["", "| this | less this | book | docstrings |", "|---|---|---:|---:|"]
    for one, other in PAIRS:
        if one in ways and other in ways:
            found = (difference(ways[one]["losses"], ways[other]["losses"], text) for text in WINDOWS)
            lines.append(f"| {one} | {other} | {' | '.join(found)} |")
    processor, clock = (sum(way[key] for way in ways.values()) / 60 for key in ("seconds", "wall"))
    spent = f"{processor:.0f} minutes of the processor in all, {clock:.0f} by the clock"
    return "\n".join([*lines, "", f"{results['machine']}, {spent}; {results['versions']}.", ""])


def row(name: str, way: Mapping[str, Any], dense: Mapping[str, Any]) -> str:
    cut, _, recovery = name.partition(": ")
    told = [cut, recovery, f"{way['parameters'] / 1e6:.1f}M"]
    for text, place in PLACES.items():
        over = difference(way["losses"], dense["losses"], text) if way["seconds"] else ""
        told += [f"{mean(way['losses'][place]):.3f}", over]
    return f"| {' | '.join([*told, str(round(way['seconds'] / 60))])} |"


def difference(losses: Sequence[float], others: Sequence[float], text: str) -> str:
    """Write how much larger losses are than others, in the windows of a text, and the standard error."""
    found = [one - other for one, other in zip(losses[PLACES[text]], others[PLACES[text]], strict=True)]
    return f"{mean(found):+.3f} ± {stdev(found) / len(found) ** 0.5:.3f}"
