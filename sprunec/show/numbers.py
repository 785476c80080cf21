"""Numbers and names, as people read them."""

from __future__ import annotations

from sys import float_info
from typing import Any, TypeGuard

NOTHING = "-"  # what a cell shows where nothing was measured
UNKNOWN, NOT_FINITE = "unknown", "not finite"  # in a sentence; NaN and infinities, anywhere
ABSENT = "absent"
LARGEST = float_info.max
MOST_PRINTED = 1e12  # from here on digits say less than the power of ten


def number(value: Any, form: str = ".4g", nothing: str = NOTHING) -> str:
    """Write whole numbers with thousands separated, other numbers by `form`, nothing as a dash."""
    if value is None:
        return nothing
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    if not is_finite(value):
        return NOT_FINITE
    return f"{float(value):{form if abs(value) < MOST_PRINTED else '.4g'}}"


def percent(part: object, whole: object) -> str:
    return f"{100 * part / whole:.1f} %" if is_finite(part) and is_finite(whole) and whole else NOTHING


def powered(value: Any) -> str:
    """Write two digits and a power of ten, where the size is what matters."""
    return f"{value:.2g}" if is_finite(value) else number(value, nothing=UNKNOWN)


def is_finite(value: object) -> TypeGuard[float]:
    """Tell whether a number can be drawn or compared: a diverged run has NaN, and null in its report."""
    return isinstance(value, (int, float)) and abs(value) <= LARGEST


def plural(amount: Any, noun: str) -> str:
    return f"{number(amount, nothing=UNKNOWN)} {noun}{'' if amount == 1 else 's'}"


def printable(text: object) -> str:
    """Replace what a terminal would obey: a plan is a stranger's file."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in str(text))


def rounded(amount: Any) -> str:
    """Write three digits and a letter, where the exact number would crowd out the words."""
    return number(amount) if not is_finite(amount) or amount < 1000 else " ".join(_scaled(amount, "B"))


def byte_words(amount: Any) -> str:
    """Write three digits and a unit."""
    if not is_finite(amount):
        return number(amount)
    return plural(round(amount), "byte") if amount < 1000 else "{} {}B".format(*_scaled(amount, "G"))


def _scaled(amount: float, billion: str) -> tuple[str, str]:
    power = min(int(f"{amount:.2e}".partition("e")[2]) // 3, 4)  # of the number as rounded: 999,999 is 1 M
    return f"{amount / 1000**power:.3g}", ("k", "M", billion, "T")[power - 1]
