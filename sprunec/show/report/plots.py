"""What drawings of a page are made of: frames with ticks, curves and marks that tell their values; plain SVG.

A mark has its value in words (`data-tip`), a curve its points as numbers (`data-points`): `page.js` shows them under
the pointer, and by the arrow keys. Without it drawings are the same, and tables beside them have the numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from math import floor, log10
from typing import Any

from sprunec.show.numbers import is_finite

Points = list[tuple[float, float]]

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 640, 58, 16, 30, 28  # of every drawing, and its margins


def text(value: object) -> str:
    """Write a value as HTML text; control characters, which XML forbids, are replaced."""
    return escape("".join(c if c >= " " or c in "\n\t" else "\ufffd" for c in str(value)))


def drawing(width: float, height: float, label: str, *parts: str) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img"'
    return f'{head} aria-label="{text(label)}">{"".join(parts)}</svg>'


def figure(drawn: str, caption: str, numbers: str = "") -> str:
    """Set a drawing with what it shows below it, and a table of its numbers to open."""
    more = f"<details><summary>Numbers</summary>{numbers}</details>" if numbers else ""
    return f'<figure><div class="drawing">{drawn}</div><figcaption>{text(caption)}</figcaption>{more}</figure>'


def beside(*figures: str) -> str:
    """Set figures side by side where there is room."""
    made = "".join(figures)
    return f'<div class="figures">{made}</div>' if made else ""


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[str]) -> str:
    """Set columns right, as numbers, unless they are named in `left`; the first column heads its row.

    Args:
        rows: a row may begin with what its element has besides its cells, and is then one cell longer.
    """
    align = [' class="w"' if column in left else ' class="n"' for column in columns]
    head = "".join(f'<th scope="col"{a}>{text(c)}</th>' for a, c in zip(align, columns, strict=True))
    body = []
    for row in rows:
        own, cells = ("", row) if len(row) == len(columns) else (row[0], row[1:])
        first, *rest = (f"{a}>{text(c)}" for a, c in zip(align, cells, strict=True))
        body.append(f'<tr{own}><th scope="row"{first}</th>{"".join(f"<td{cell}</td>" for cell in rest)}</tr>')
    if not body:
        return ""
    made = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f'<div class="scrolls">{made}</div>'


def words(x: float, y: float, content: str, kind: str = "") -> str:
    """Set `content`, which is HTML text already; its `kind` says on which side of it the place is."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:g}">{content}</text>'


def bar(kind: str, x: float, y: float, width: float, more: str = "") -> str:
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:g}" width="{width:.1f}" height="18"{more}/>'


def tip(words: str) -> str:
    """Give the attribute of a mark that says what is shown of it."""
    return f' data-tip="{text(words)}"'


def of_run(number: int) -> str:
    """Give the attributes of what belongs to one of several runs: its colour, and that it can be left out."""
    return f' class="of-run r{number % 8}" data-run="{number}"'


@dataclass(frozen=True)
class Axes:
    """Where numbers lie in a drawing: `0..right` and `low..high` fill the frame inside the margins."""

    right: float
    low: float
    high: float
    height: int = 300

    def x(self, value: float) -> float:
        return round(LEFT + value / (self.right or 1.0) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / ((self.high - self.low) or 1.0)
        return round(self.height - BOTTOM - share * (self.height - TOP - BOTTOM), 1)

    def line(self, points: Points, kind: str, more: str = "") -> str:
        places = " ".join(f"{self.x(x)},{self.y(y)}" for x, y in points)
        return f'<polyline class="{kind}" points="{places}"{more}/>'

    def curve(self, points: Points, name: str) -> str:
        """Draw a line that tells its numbers, by a name."""
        numbers = " ".join(f"{x:.6g}:{y:.4g}" for x, y in points)
        return self.line(points, "curve", f' data-name="{text(name)}" data-points="{numbers}"')

    def dot(self, x: float, y: float, told: str, kind: str = "dot") -> str:
        return f'<circle class="{kind}" cx="{self.x(x)}" cy="{self.y(y)}" r="5"{tip(told)}/>'

    def name(self, x: float, y: float, content: str) -> str:
        """Write beside a point what it is, on the side where there is room."""
        kind, aside = ("end", -9) if x > 0.7 * self.right else ("", 9)
        return words(self.x(x) + aside, self.y(y) + 4, text(content), kind)

    def svg(self, label: str, *parts: str, unit: str = "") -> str:
        """Draw the frame with its ticks and what it counts, and the parts over it."""
        frame = [words(4, 14, text(unit))] if unit else []
        for tick in ticks(self.low, self.high):
            y = self.y(tick)
            frame.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
            frame.append(words(LEFT - 8, y + 4, short(tick), "end"))
        frame += [words(self.x(tick), self.height - 6, short(tick), "mid") for tick in ticks(0.0, self.right)]
        return drawing(WIDTH, self.height, label, *frame, *parts)


def short(value: float) -> str:
    """Write a round number in few letters: `20k` for 20,000."""
    for power, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= power:
            return f"{value / power:g}{letter}"
    return f"{value:g}"


def ticks(low: float, high: float) -> list[float]:
    """Choose about five round numbers between two."""
    if high <= low:
        return [low]
    rough = (high - low) / 5
    power = 10.0 ** floor(log10(rough))
    step = power * next(m for m in (1, 2, 2.5, 5, 10) if rough <= m * power * 1.0001)
    first = -floor(-low / step * 0.999999)
    return [round(n * step, 10) for n in range(first, floor(high / step * 1.000001) + 1)]


def thinned(points: Points, steps: int, most: int) -> Points:
    """Take means of neighbours, `most` points for so many steps: a drawing has no room for a million."""
    size = max(1, -(-steps // most))
    groups = (points[i : i + size] for i in range(0, len(points), size))
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def series(pairs: Iterable[tuple[object, tuple[Any, Any]]]) -> dict[str, Points]:
    """Collect points by name, of those pairs of which both numbers are known and finite."""
    found: dict[str, Points] = {}
    for name, (x, y) in pairs:
        if is_finite(x) and is_finite(y):
            found.setdefault(str(name), []).append((float(x), float(y)))
    return found
