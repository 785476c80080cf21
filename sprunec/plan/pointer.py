"""How values and places are written: JSON cut short, lists of words, and the steps of a JSON pointer."""

from __future__ import annotations

from collections.abc import Sequence

from sprunec.errors import show as show


def escape(key: object) -> str:
    """Write one step of a JSON pointer."""
    return str(key).replace("~", "~0").replace("/", "~1")


def unescape(step: str) -> str:
    return step.replace("~1", "/").replace("~0", "~")


def series(words: Sequence[str], conjunction: str) -> str:
    """Join words as in `a, b and c`."""
    return f" {conjunction} ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)
