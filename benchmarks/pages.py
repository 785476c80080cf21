"""Tables of what was measured, between their marks in the pages of docs/."""

from __future__ import annotations


def with_table(text: str, name: str, table: str) -> str:
    """Put a table between `<!-- name -->` and `<!-- /name -->` -> the page's text."""
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, mark, rest = text.partition(start)
    assert mark, f"no {start}"
    return before + start + table + end + rest.partition(end)[2]
