"""Tables that never break a word: where there is no room, columns are given up whole."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from sprunec.show.numbers import printable

GAP = 2  # between two columns


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        title: its heading, which may wrap between words.
        right: whether its cells are set to the right.
        wraps: whether its cells may wrap between words.
        readable: how wide a column that wraps should be at least, as long as there is another to give up for it.
        rank: where there is no room for every word, columns are given up, the highest rank first; those of 0 stay.
    """

    title: str
    right: bool = False
    wraps: bool = False
    readable: int = 0
    rank: int = 0


numeric = partial(Column, right=True)


class FittedTable:
    """Rows under columns, in the width that there is when it is printed.

    A row that does not fit in any way runs over the edge unbroken, if the console prints it with `crop=False`.
    """

    def __init__(self, *columns: Column) -> None:
        self.columns, self.rows = columns, list[tuple[tuple[Text, ...], str]]()

    def add(self, *cells: str | Text, style: str = "") -> None:
        """Add one row; plain strings are shown as they are, never read as rich's markup."""
        assert len(cells) == len(self.columns)
        self.rows.append((tuple(c if isinstance(c, Text) else Text(printable(c)) for c in cells), style))

    def fit(self, room: int) -> dict[int, int]:
        """Choose the columns that are shown in so many cells of a terminal, by number, and the width of each.

        The first to be given up goes as soon as others would wrap too often, the rest only where a word has no room.
        """
        widths, full, wanted = dict[int, int](), dict[int, int](), dict[int, int]()
        for n, column in enumerate(self.columns):
            title, cells = Text(column.title), [cells[n] for cells, _ in self.rows]
            # The least width at which no word is broken, and that at which nothing wraps.
            widths[n] = max([_longest_word(title), *map(_longest_word if column.wraps else _width, cells)])
            full[n] = max(map(_width, (title, *cells)))
            wanted[n] = min(full[n], max(widths[n], column.readable))
        for n in sorted((n for n in widths if self.columns[n].rank), key=lambda n: -self.columns[n].rank):
            if _total(wanted) > room:
                del widths[n]
            wanted = widths
        left = max(room - _total(widths), 0)
        for n in sorted(widths, key=lambda n: full[n] - widths[n]):
            more = min(full[n] - widths[n], left)
            widths[n], left = widths[n] + more, left - more
        return widths

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = self.fit(options.max_width - 2)  # an empty cell at both edges
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, width=_total(widths) + 2)
        for number, width in widths.items():
            column = self.columns[number]
            table.add_column(column.title, justify="right" if column.right else "left", width=width, overflow="fold")
        for cells, style in self.rows:
            table.add_row(*(cells[number] for number in widths), style=style or None)
        yield table


class Line:
    """Words of a stranger that wrap between words and nowhere else; lines in them stay lines.

    Args:
        wraps: False for a line with a path in it, which people copy, or search for.
    """

    def __init__(self, words: str, style: str = "", *, wraps: bool = True) -> None:
        self.text, self.wraps = Text(printable(words), style=style), wraps

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        needed = (_longest_word if self.wraps else _width)(self.text)
        yield from console.render(self.text, options.update(width=max(options.max_width, needed)))


def _total(widths: dict[int, int]) -> int:
    return sum(widths.values()) + GAP * (len(widths) - 1)


def _width(text: Text) -> int:
    return max(map(cell_len, text.plain.splitlines()), default=0)


def _longest_word(text: Text) -> int:
    return max(map(cell_len, text.plain.split()), default=0)
