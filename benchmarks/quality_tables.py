"""What the quality benchmark has measured, as tables and as a picture: a mean over seeds for each method."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from sprunec.show.report.plots import drawing, text, ticks

STYLE = (
    "<style>text{font:13px sans-serif;fill:#57606a}.end{text-anchor:end}.mid{text-anchor:middle}"
    ".name{fill:#24292f;text-anchor:end}.ours{font-weight:bold}line{stroke:#d0d7de}.spread{stroke:#0969da;stroke-width:2}"
    "circle{fill:#0969da}.dense{stroke:#cf222e;stroke-dasharray:4 4}</style>"
)
LEFT, WIDTH, ROW = 150, 900, 24


@dataclass(frozen=True)
class Setting:
    """What cells must share to be compared."""

    corpus: str
    target: str
    budget: str
    extras: tuple[str, ...]
    distil: float

    @classmethod
    def of(cls, cell: Mapping[str, Any]) -> Setting:
        return cls(cell["corpus"], cell["target"], cell["budget"], tuple(cell["extras"]), cell["distil"])

    def words(self) -> str:
        extras = [*self.extras, *([f"distillation {self.distil:g}"] if self.distil else [])]
        return ", ".join([self.corpus, f"target {self.target}", f"{self.budget} budget", *extras])


@dataclass(frozen=True)
class Row:
    """One method under one setting."""

    method: str
    cut: float
    loss: float
    error: float | None
    seeds: int
    share: float
    seconds: float

    @classmethod
    def of(cls, method: str, cells: Sequence[Mapping[str, Any]]) -> Row:
        losses = [cell["loss"] for cell in cells]
        error = stdev(losses) / len(losses) ** 0.5 if len(losses) > 1 else None
        cut, share, seconds = (mean(cell[key] for cell in cells) for key in ("cut", "share", "seconds"))
        return cls(method, cut, mean(losses), error, len(cells), share, seconds)

    def fields(self) -> list[str]:
        error = f"{self.error:.3f}" if self.error is not None else "-"
        numbers = [f"{self.cut:.3f}", f"{self.loss:.3f}", error, f"{self.seeds}"]
        return [self.method, *numbers, f"{self.share:.1%}", f"{self.seconds:.0f}"]


HEAD = ["method", "after the cut", "in the end", "± s.e.", "seeds", "of dense", "seconds"]


@dataclass(frozen=True)
class Table:
    """All methods under one setting, the best first."""

    setting: Setting
    dense: float
    rows: tuple[Row, ...]

    def title(self) -> str:
        return f"{self.setting.words()}; dense {self.dense:.3f}"

    def plain(self) -> str:
        lines = [HEAD, *(row.fields() for row in self.rows)]
        widths = [max(len(line[place]) for line in lines) for place in range(len(HEAD))]
        shown = [
            "  ".join(f.rjust(w) if n else f.ljust(w) for n, (f, w) in enumerate(zip(line, widths, strict=True)))
            for line in lines
        ]
        return "\n".join([self.title(), "", *shown])

    def markdown(self) -> str:
        lines = [HEAD, ["---"] + ["---:"] * (len(HEAD) - 1), *(row.fields() for row in self.rows)]
        return "\n".join([f"{self.title()}:", "", *(f"| {' | '.join(line)} |" for line in lines)])


def tables(cells: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    groups: dict[Setting, dict[str, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells.values():
        groups[Setting.of(cell)][cell["method"]].append(cell)
    found = []
    for setting in sorted(groups, key=lambda s: s.words()):
        rows = [Row.of(method, of_method) for method, of_method in groups[setting].items()]
        dense = next(iter(next(iter(groups[setting].values()))))["dense"]
        found.append(Table(setting, dense, tuple(sorted(rows, key=lambda row: row.loss))))
    return found


def picture(shown: Sequence[Table]) -> str:
    """Held-out losses as dots with their standard errors, a panel for each table, as one SVG."""
    height, parts = 0, [STYLE]
    for table in shown:
        parts += _panel(table, height)
        height += (len(table.rows) + 3) * ROW
    return drawing(WIDTH, height, "held-out loss of small models by method", *parts)


def _panel(table: Table, top: int) -> list[str]:
    low = min(table.dense, *(row.loss for row in table.rows))
    high = max(row.loss + (row.error or 0.0) for row in table.rows)
    low, high = low - 0.05 * (high - low), high + 0.05 * (high - low)

    def x(loss: float) -> float:
        return round(LEFT + (loss - low) / (high - low) * (WIDTH - LEFT - 20), 1)

    first, last = top + ROW, top + (len(table.rows) + 1) * ROW
    parts = [f'<text x="{LEFT}" y="{top + 15}">{text(table.title())}</text>']
    for tick in ticks(low, high):
        parts.append(f'<line x1="{x(tick)}" x2="{x(tick)}" y1="{first}" y2="{last}"/>')
        parts.append(f'<text class="mid" x="{x(tick)}" y="{last + 16}">{tick:g}</text>')
    dense = x(table.dense)
    parts.append(f'<line class="dense" x1="{dense}" x2="{dense}" y1="{first}" y2="{last}"/>')
    for place, row in enumerate(table.rows):
        y, error = first + place * ROW + ROW // 2, row.error or 0.0
        ours = " ours" if row.method == "train-mask" else ""
        parts.append(f'<text class="name{ours}" x="{LEFT - 12}" y="{y + 4}">{text(row.method)}</text>')
        parts.append(f'<line class="spread" x1="{x(row.loss - error)}" x2="{x(row.loss + error)}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle cx="{x(row.loss)}" cy="{y}" r="5"><title>{row.loss:.3f}</title></circle>')
    return parts
