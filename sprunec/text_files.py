"""The one way to open text that a user gives: UTF-8 with or without a byte order mark, line ends of any system.

Whatever wrote a file, its text has `\\n` at the end of a line and begins with its first character. Needs no torch.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from sprunec.errors import Diagnostic, InputError, show
from sprunec.file_kinds import JSON, MARKUP, TEXT, file_kind, foreign

_TABLE = 'write it as JSON lines first, e.g. pandas.read_parquet(FILE).to_json(NEW, orient="records", lines=True)'
_TABLES = {"parquet": _TABLE, "arrow": _TABLE.replace("parquet", "feather"), "": "give a text file in UTF-8"}
Hints = Mapping[str, str]
NO_HINTS: Hints = MappingProxyType({})
MARK = "\ufeff"  # of byte order
ANY_TEXT, PACKED_LINES = TEXT | MARKUP, TEXT | {"gzip"}


def read_text(
    path: Path, wanted: str, fine: Collection[str] = TEXT, hints: Hints = NO_HINTS, largest: int | None = None
) -> str:
    """Read a whole file.

    Args:
        wanted: what the file should be, with an article, for whoever named another.
        fine: the kinds of files that it may be.
        hints: what to do about a file of another kind, as `foreign` has it.
        largest: bytes that it may have.

    Raises:
        InputError: it is missing, no UTF-8 (with line and column), or a file of another kind.
    """
    _check_kind(path, wanted, fine, hints)
    if largest is not None and path.stat().st_size > largest:
        message = f"the file is larger than {largest // 1024**2} MB"
        told = InputError.at(path, message, "is it the right file?", code="too-large")
        raise foreign(path, wanted, {"text", *JSON}, hints) or told
    return "".join(_pieces(path, whole=True))


def read_lines(path: Path, wanted: str, fine: Collection[str] = TEXT, hints: Hints = NO_HINTS) -> Iterator[str]:
    """Read lines one by one, with `\\n` at their ends; raise as `read_text` does, while they are read.

    Where `fine` has "gzip", the lines may be inside of such an archive.
    """
    _check_kind(path, wanted, fine, hints)
    packed = "gzip" in fine and file_kind(path) == "gzip"
    yield from _pieces(path, gzip.open if packed else open, whole=False)


def _pieces(path: Path, opened: Callable[..., Any] = open, *, whole: bool) -> Iterator[str]:
    """Yield a file's text or its lines; Python's universal line ends make them all `\\n`."""
    try:
        with opened(path, "rt", encoding="utf-8-sig") as stream:
            yield from [stream.read()] if whole else stream
    except UnicodeDecodeError:
        with opened(path, "rb") as raw:
            raise _not_utf8(path, raw) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError.at(path, f"the gzip archive is damaged: {error}", "copy or download it again") from None
    except OSError as error:
        raise InputError.of_disk(path, error) from None


def decode(content: bytes, file: object) -> str:
    """Do as `read_text`, of bytes that have been read from `file`; raises InputError where they are no UTF-8."""
    try:
        return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig").read()
    except UnicodeDecodeError:
        raise _not_utf8(file, io.BytesIO(content)) from None


class _Twice(Exception):  # noqa: N818
    """A key that an object has two values for."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _Twice(key)
        found[key] = value
    return found


def read_json(path: Path, wanted: str, hint: str = "", *, once: bool = False) -> Any:
    """Read the value in a JSON file; raises as `read_text`, also where it is none (with line and column).

    Args:
        once: an object may have each key once; else the last one counts.
    """
    text = read_text(path, wanted, hints={"": hint})
    try:
        return json.loads(text, object_pairs_hook=_once if once else None)
    except _Twice as error:
        raise InputError.at(path, f"an object in it has the key {show(str(error))} twice", "write it once") from None
    except json.JSONDecodeError as error:
        message = f"this is not {wanted}: from here on it is no JSON"
        finding = Diagnostic("syntax", message, hint, file=str(path), line=error.lineno, column=error.colno)
        raise foreign(path, wanted, TEXT, {"": hint}) or InputError(finding) from None
    except (ValueError, RecursionError):
        raise InputError.at(path, f"this is not {wanted}: it is nested without end", hint, code="syntax") from None


def foreign_text(path: Path, wanted: str, fine: Collection[str], hints: Hints = NO_HINTS) -> InputError | None:
    """Do as `foreign` by the first bytes of a file that should be text; leave the rest of it alone."""
    return foreign(path, wanted, {"", "empty", *fine}, {**_TABLES, **hints}, whole=False)


def _check_kind(path: Path, wanted: str, fine: Collection[str], hints: Hints) -> None:
    if not os.path.exists(path):
        raise InputError.at(path, "there is no such file", "check the path", code="missing-file")
    if os.path.isdir(path):
        raise InputError.at(path, "this is a folder", "name the file in it", code="not-a-file")
    if told := foreign_text(path, wanted, fine, hints):
        raise told


def _not_utf8(file: object, stream: BinaryIO) -> InputError:
    """Tell of the first byte that is not UTF-8; a mark at the beginning takes no column."""
    line = 1
    for raw in stream:
        try:
            raw.decode("utf-8")
        except UnicodeDecodeError as error:
            rows = decode(raw[: error.start], "").split("\n")
            message, hint = f"byte 0x{raw[error.start]:02x} is not UTF-8", "save the file as UTF-8"
            place = line + len(rows) - 1, len(rows[-1]) + 1
            return InputError(Diagnostic("not-utf8", message, hint, "error", str(file), "", *place))
        line += raw.count(b"\n") + raw.count(b"\r") - raw.count(b"\r\n")
    raise AssertionError("all of it is UTF-8")
