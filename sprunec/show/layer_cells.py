"""What a row of a picture of a model is made of: bars and sizes of a layer, or of it and of what is left of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.text import Text

from sprunec.show.numbers import ABSENT, NOTHING, is_finite, number

LEAST_CELLS, MOST_CELLS = 11, 32  # of a bar
NUMBERS = 44  # cells of a row that are none of its two bars
FEW_ALIKE = 4  # rows that are shown each, though they are alike
SUBLAYERS = (("attention", ("heads", "dim_head")), ("feed_forward", ("dim_ff",)))
Document = Mapping[str, Any]
Sublayer = Document | None
Row = tuple[str, Sequence[str | Text]]


def cells_of_bar(width: int) -> int:
    """Tell how long a bar is, of which a row has two."""
    return min(MOST_CELLS, max(LEAST_CELLS, (width - NUMBERS) // 3))


def folded(rows: Iterable[Row]) -> Iterator[Row]:
    """Fold rows that are alike but for their index into the first, how many more, and the last."""
    for _, run in groupby(rows, key=lambda row: [str(cell) for cell in row[1]]):
        alike = list(run)
        if len(alike) <= FEW_ALIKE:
            yield from alike
            continue
        blank = [""] * len(alike[0][1])
        yield from (alike[0], (f"{len(alike) - 2} more", blank), alike[-1])


def head_map(attention: Sublayer) -> str:
    """Draw every head, those of a key-value group together."""
    heads, groups = (count(attention, key) for key in ("heads", "kv_groups"))
    return " ".join(["■" * (heads // groups)] * groups) if groups else "■" * heads


def bar(sublayer: Sublayer, key: str, most: int, cells: int, dense: Sublayer = None) -> Text:
    """Draw how much a sublayer has of what the largest one has, and fainter what it had; say where it is absent."""
    size, before = count(sublayer, key), count(dense, key)
    full, drawn = (max(1, round(cells * part / most)) if part else 0 for part in (size, max(size, before)))
    if sublayer is None:
        return Text(ABSENT, "yellow")
    return Text.assemble(("█" * full, "green"), ("░" * (drawn - full), "dim"))


def count(sublayer: Sublayer, key: str) -> int:
    """Give how many there are, none where that is not known."""
    found = (sublayer or {}).get(key)
    return round(found) if is_finite(found) else 0


def sizes_words(sublayer: Sublayer, *keys: str) -> str:
    """Write its sizes as `9 x 64`; a head of several kinds of dims has no width."""
    sizes = [sublayer[key] for key in keys if key in sublayer] if sublayer else []
    return " x ".join(map(number, sizes)) or NOTHING


def parameters_of(layer: Document) -> float | None:
    """Add up its sublayers; None where one is not known."""
    sizes = [layer[kind].get("parameters") for kind, _ in SUBLAYERS if layer[kind] is not None]
    return sum(sizes) if all(map(is_finite, sizes)) else None


def most_of(layers: Iterable[Document], kind: str, key: str) -> int:
    return max((count(layer[kind], key) for layer in layers), default=0)


def is_grouped(layers: Iterable[Document]) -> bool:
    return any("kv_groups" in (layer["attention"] or {}) for layer in layers)


def sizes_change(sides: Sequence[Sublayer], keys: Sequence[str]) -> str:
    """Write `9 -> 6 x 64` where only the first size changes, else all of them twice."""
    before, after = sides
    if before is None or after is None or any(before.get(key) != after.get(key) for key in keys[1:]):
        return change(sizes_words(before, *keys), sizes_words(after, *keys))
    first = change(sizes_words(before, keys[0]), sizes_words(after, keys[0]))
    return " x ".join([first, *(number(after[key]) for key in keys[1:] if key in after)])


def change(before: str, after: str) -> str:
    return before if before == after else f"{before} -> {after}"
