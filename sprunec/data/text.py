"""Text in: the documentation inside every CPython, text files, JSON lines, tables; and what is held out of it.

Files are opened by `text_files`: a byte order mark and the system's line ends change no text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sprunec.data.datasets_files import read_rows
from sprunec.data.parquet import read_column
from sprunec.errors import Diagnostic, InputError
from sprunec.text_files import ANY_TEXT, MARK, PACKED_LINES, read_lines
from sprunec.text_files import read_text as read_file

COLUMN = "text"  # of JSON lines and tables that name no other


def read_documents(source: str, paths: Sequence[Path], column: str = COLUMN) -> Iterator[str]:
    """Read the documents of a source one by one, files in the order given.

    A file of text is one, a line of JSON lines, a row of a Parquet table, and all of the documentation.

    Args:
        column: of tables, and the key of JSON lines, that has the texts.

    Raises:
        InputError: a file is missing, not UTF-8, or has no such texts.
    """
    if source == "python-docs":
        from pydoc_data.topics import topics

        yield "\n".join(topics[key] for key in sorted(topics))
    for path in paths:
        if source == "jsonl":
            yield from (record[column] for record in json_records(path, (column,)))
        elif source == "parquet":
            yield from read_column(path, column)
        elif source == "datasets":
            yield from read_rows([path], column)
        else:
            yield read_file(path, "text", ANY_TEXT)


def read_text(source: str, paths: Sequence[Path], column: str = COLUMN) -> str:
    """Read the whole text of a source, its documents joined by a newline; raises as `read_documents`."""
    return "\n".join(read_documents(source, paths, column))


def held_out_source(source: str) -> str:
    """Say as which source a file of its own is read that is held out."""
    return source if source in ("jsonl", "parquet", "datasets") else "text"


def split_text(text: str, held_out: float | Sequence[Path], source: str, column: str = COLUMN) -> tuple[str, str]:
    """Split off the held-out part: the last share of the characters, or files of its own."""
    if not isinstance(held_out, float):
        return text, read_text(held_out_source(source), held_out, column)
    cut = len(text) - round(len(text) * held_out)
    return text[:cut], text[cut:]


class Piece(NamedTuple):
    """A document, or the part of one that lies in the training part (0) or is held out (1); `ends`: its end does."""

    part: int
    text: str
    ends: bool = True


def split_documents(
    source: str, paths: Sequence[Path], held_out: float | Sequence[Path], column: str = COLUMN
) -> Iterator[Piece]:
    """Read documents one by one, those of the training part first; nothing empty.

    Args:
        held_out: the last share of the characters, for which they are counted first; or files of their own.

    Raises:
        InputError: as `read_documents`.
    """
    cut = None
    if isinstance(held_out, float):
        size = sum(map(len, read_documents(source, paths, column)))
        cut = size - round(size * held_out)
    yield from pieces(read_documents(source, paths, column), cut)
    if not isinstance(held_out, float):
        yield from (Piece(1, text) for text in read_documents(held_out_source(source), held_out, column) if text)


def pieces(documents: Iterable[str], cut: int | None) -> Iterator[Piece]:
    """Cut documents in two at a place, counted in characters over all of them; None: behind them."""
    start = 0
    for document in documents:
        place = len(document) if cut is None else min(max(cut - start, 0), len(document))
        start += len(document)
        if place:
            yield Piece(0, document[:place], place == len(document))
        if place < len(document):
            yield Piece(1, document[place:])


def json_lines(path: Path, example: Any) -> Iterator[tuple[int, Any]]:
    """Read the values of a file of JSON lines, which gzip may have packed, with the number of each line.

    Args:
        example: of a line, for whoever gave something else.
    """
    for number, line in enumerate(read_lines(path, "JSON lines", PACKED_LINES), start=1):
        line = line.removeprefix(MARK)  # where files were joined, each may have had one
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            why = "is nested too deeply" if isinstance(error, RecursionError) else "is not JSON from here on"
            raise bad_line(path, number, why, example, getattr(error, "colno", 1)) from None
        yield number, found


def json_records(path: Path, keys: Sequence[str]) -> Iterator[dict[str, str]]:
    """Read the objects of a file of JSON lines; each has a string under every one of `keys`."""
    example = dict.fromkeys(keys, "...")
    for number, record in json_lines(path, example):
        missing = [key for key in keys if not isinstance(record, dict) or not isinstance(record.get(key), str)]
        if missing:
            raise bad_line(path, number, f"has no `{missing[0]}` string", example)
        yield {key: record[key] for key in keys}


def bad_line(path: Path, number: int, why: str, example: Any, column: int = 1) -> InputError:
    """Make the error for a line, of which an example says what it should be."""
    hint = f"write one object a line, like {json.dumps(example)}"
    return InputError(Diagnostic("bad-data", f"this line {why}", hint, file=str(path), line=number, column=column))
