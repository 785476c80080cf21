"""Numbers, names and cells of tables, as people read them."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any, Literal

from rich import box
from rich.table import Table
from rich.text import Text

NOTHING = "-"  # what a cell shows where nothing was measured
ABSENT = "absent"


def number(value: Any, form: str = ".4g") -> str:
    """Whole numbers with thousands separated, other numbers by `form`, nothing as a dash."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return format(value, form) if isinstance(value, float) else str(value)


def percent(part: float | None, whole: float | None) -> str:
    return f"{100 * part / whole:.1f} %" if part is not None and whole else NOTHING


def times(part: float | None, whole: float | None) -> str:
    return f"{part / whole:.2f} x" if part is not None and whole else NOTHING


def is_finite(value: Any) -> bool:
    """True for a number that can be drawn or compared; a diverged run writes NaN."""
    return isinstance(value, (int, float)) and isfinite(value)


def plural(amount: int, noun: str) -> str:
    return f"{amount:,} {noun}" if amount == 1 else f"{amount:,} {noun}s"


def printable(text: object) -> str:
    """The text without what a terminal would obey: a plan is a stranger's file."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in str(text))


def rounded(amount: int | None) -> str:
    """Three digits and a letter, where the exact number would crowd out the words."""
    if amount is None or amount < 1000:
        return number(amount)
    power = min(int(f"{amount:.2e}".partition("e")[2]) // 3, 4)  # of the number as rounded: 999,999 is 1 M
    return f"{amount / 1000**power:.3g} {'kMBT'[power - 1]}"


def new_table(*columns: str, title: str = "", right: Sequence[str] = (), wraps: Sequence[str] = ()) -> Table:
    """A table whose columns keep their width, but for those in `wraps`."""
    heading = Text(printable(title), style="bold") if title else None  # a Text: a plain string would be read as markup
    table = Table(box=box.SIMPLE_HEAD, title=heading, title_justify="left", padding=(0, 1, 0, 0))
    for column in columns:
        justify: Literal["left", "right"] = "right" if column in right else "left"
        table.add_column(column, justify=justify, overflow="fold", no_wrap=column not in wraps)
    return table


def add_row(table: Table, *cells: str | Text, style: str = "") -> None:
    """One row; plain strings are shown as they are, never read as rich's markup."""
    table.add_row(*(c if isinstance(c, Text) else Text(printable(c)) for c in cells), style=style or None)
