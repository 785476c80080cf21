"""Text in: the documentation inside every CPython, text files, JSON lines; and what is held out of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from sprunec.errors import Diagnostic, InputError


def read_text(source: str, paths: Sequence[Path]) -> str:
    """The whole text of a source, files in the order given, documents joined by a newline.

    Raises:
        InputError: a file is missing, not UTF-8, or not JSON lines with a `text` field.
    """
    if source == "python-docs":
        return _python_docs()
    reader = _json_lines if source == "jsonl" else _utf8
    return "\n".join(reader(path) for path in paths)


def split_text(text: str, held_out: float | Path, source: str) -> tuple[str, str]:
    """The training part and the held-out part: the last share of the characters, or a file of its own."""
    if isinstance(held_out, Path):
        return text, read_text("jsonl" if source == "jsonl" else "text", [held_out])
    cut = len(text) - round(len(text) * held_out)
    return text[:cut], text[cut:]


def _python_docs() -> str:
    from pydoc_data.topics import topics

    return "\n".join(topics[key] for key in sorted(topics))


def _utf8(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError.at(path, f"is not UTF-8 text: byte {error.start}", "convert it to UTF-8") from error
    except OSError as error:
        raise InputError.at(path, f"cannot be read: {error.strerror}", "check data.path in the plan") from error


def _json_lines(path: Path) -> str:
    documents = []
    for number, line in enumerate(_utf8(path).split("\n"), start=1):
        if line.strip():
            documents.append(_document(path, number, line))
    return "\n".join(documents)


def _document(path: Path, number: int, line: str) -> str:
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        column, why = getattr(error, "colno", 1), getattr(error, "msg", "it is nested too deeply")
        raise InputError(_at_line(path, number, column, f"is not JSON: {why}")) from error
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise InputError(_at_line(path, number, 1, "has no `text` string"))
    return text


def _at_line(path: Path, line: int, column: int, message: str) -> Diagnostic:
    hint = 'write one object a line, like {"text": "..."}'
    return Diagnostic("bad-data", f"this line {message}", hint, file=str(path), line=line, column=column)
