"""Numbers and names, as people read them."""

from __future__ import annotations

from math import isfinite
from typing import Any

NOTHING = "-"  # what a cell shows where nothing was measured
ABSENT = "absent"
MOST_PRINTED = 1e12  # from here on digits say less than the power of ten


def number(value: Any, form: str = ".4g") -> str:
    """Whole numbers with thousands separated, other numbers by `form`, nothing as a dash."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    return format(value, form if abs(value) < MOST_PRINTED else ".4g")


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
