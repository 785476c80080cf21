"""Text in: the documentation inside every CPython, text files, JSON lines; and what is held out of it.

Files are opened by `text_files`: a byte order mark and the system's line ends change no text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from sprunec.errors import Diagnostic, InputError
from sprunec.text_files import ANY_TEXT, MARK, read_lines
from sprunec.text_files import read_text as read_file


def read_text(source: str, paths: Sequence[Path]) -> str:
    """Read the whole text of a source, files in the order given, documents joined by a newline.

    Raises:
        InputError: a file is missing, not UTF-8, or not JSON lines with a `text` field.
    """
    if source == "python-docs":
        from pydoc_data.topics import topics

        return "\n".join(topics[key] for key in sorted(topics))
    if source == "jsonl":
        return "\n".join("\n".join(record["text"] for record in json_records(path, ("text",))) for path in paths)
    return "\n".join(read_file(path, "text", ANY_TEXT) for path in paths)


def split_text(text: str, held_out: float | Path, source: str) -> tuple[str, str]:
    """Split off the held-out part: the last share of the characters, or a file of its own."""
    if isinstance(held_out, Path):
        return text, read_text("jsonl" if source == "jsonl" else "text", [held_out])
    cut = len(text) - round(len(text) * held_out)
    return text[:cut], text[cut:]


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
