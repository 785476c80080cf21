"""Text in: the documentation inside every CPython, text files, JSON lines, tables; and what is held out of it.

Files are opened by `text_files`: a byte order mark and the system's line ends change no text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from sprunec.data.parquet import read_column
from sprunec.errors import Diagnostic, InputError
from sprunec.text_files import ANY_TEXT, MARK, read_lines
from sprunec.text_files import read_text as read_file


def read_documents(source: str, paths: Sequence[Path], column: str = "") -> Iterator[str]:
    """Read the documents of a source one by one, files in the order given.

    A file of text is one, a line of JSON lines, a row of a Parquet table, and all of the documentation.

    Args:
        column: of Parquet tables.

    Raises:
        InputError: a file is missing, not UTF-8, or has no such texts.
    """
    if source == "python-docs":
        from pydoc_data.topics import topics

        yield "\n".join(topics[key] for key in sorted(topics))
    for path in paths:
        if source == "jsonl":
            yield from (record["text"] for record in json_records(path, ("text",)))
        elif source == "parquet":
            yield from read_column(path, column)
        else:
            yield read_file(path, "text", ANY_TEXT)


def read_text(source: str, paths: Sequence[Path], column: str = "") -> str:
    """Read the whole text of a source, its documents joined by a newline; raises as `read_documents`."""
    return "\n".join(read_documents(source, paths, column))


def held_out_source(source: str) -> str:
    """Say as which source a file of its own is read that is held out."""
    return source if source in ("jsonl", "parquet") else "text"


def split_text(text: str, held_out: float | Path, source: str, column: str = "") -> tuple[str, str]:
    """Split off the held-out part: the last share of the characters, or a file of its own."""
    if isinstance(held_out, Path):
        return text, read_text(held_out_source(source), [held_out], column)
    cut = len(text) - round(len(text) * held_out)
    return text[:cut], text[cut:]


def part_of(documents: Iterable[str], first: int, last: int | None = None) -> Iterator[str]:
    """Yield what lies between two places of documents one behind the other, counted in characters; nothing empty."""
    start = 0
    for document in documents:
        piece = document[max(first - start, 0) : None if last is None else max(last - start, 0)]
        start += len(document)
        if piece:
            yield piece
        if last is not None and start >= last:
            return


def json_records(path: Path, keys: Sequence[str]) -> Iterator[dict[str, str]]:
    """Read the objects of a file of JSON lines; each has a string under every one of `keys`."""
    hint = "write one object a line, like " + json.dumps(dict.fromkeys(keys, "..."))
    for number, line in enumerate(read_lines(path, "JSON lines"), start=1):
        line = line.removeprefix(MARK)  # where files were joined, each may have had one
        if not line.strip():
            continue
        try:
            record, column = json.loads(line), 1
            missing = [key for key in keys if not isinstance(record, dict) or not isinstance(record.get(key), str)]
            why = f"has no `{missing[0]}` string" if missing else ""
        except (json.JSONDecodeError, RecursionError) as error:
            why = "is nested too deeply" if isinstance(error, RecursionError) else "is not JSON from here on"
            column = getattr(error, "colno", 1)
        if why:
            told = Diagnostic("bad-data", f"this line {why}", hint, file=str(path), line=number, column=column)
            raise InputError(told)
        yield {key: record[key] for key in keys}
