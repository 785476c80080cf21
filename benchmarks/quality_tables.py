"""What the quality benchmark has measured, as tables: a mean over seeds for each method, the best first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from statistics import mean, stdev
from typing import Any


def show(cells: Mapping[str, Mapping[str, Any]]) -> str:
    groups: dict[tuple[Any, ...], dict[str, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells.values():
        extras = ", ".join(cell["extras"]) or "as it is by default"
        group = (cell["corpus"], cell["target"], cell["budget"], extras, cell["distil"])
        groups[group][cell["method"]].append(cell)
    return "\n\n".join(_table(group, methods) for group, methods in sorted(groups.items()))


def _table(group: tuple[Any, ...], methods: Mapping[str, list[Mapping[str, Any]]]) -> str:
    corpus, target, budget, extras, distil = group
    one = next(iter(methods.values()))[0]
    words = f"{corpus}, target {target}, {budget} budget, {extras}" + (f", distillation {distil:g}" if distil else "")
    lines = [f"{words}; dense {one['dense']:.3f}", "", "method           cut     loss     +-    seeds   of dense     s"]
    rows = sorted(methods.items(), key=lambda item: mean(cell["loss"] for cell in item[1]))
    return "\n".join([*lines, *(_row(name, found) for name, found in rows)])


def _row(name: str, cells: list[Mapping[str, Any]]) -> str:
    losses = [cell["loss"] for cell in cells]
    error = stdev(losses) / len(losses) ** 0.5 if len(losses) > 1 else float("nan")
    share, seconds = mean(cell["share"] for cell in cells), mean(cell["seconds"] for cell in cells)
    numbers = f"{mean(cell['cut'] for cell in cells):8.3f} {mean(losses):8.3f} {error:6.3f} {len(cells):6d}"
    return f"{name:14s} {numbers} {share:10.1%} {seconds:5.0f}"
