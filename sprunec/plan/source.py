"""Read a JSON file and remember where everything in it stands.

`read_source(path)` gives the value and, for each JSON pointer, line and column of the value and of its key. What the
standard parser lets through is refused here: repeated keys, NaN and Infinity, numbers beyond a float, lone surrogates.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from sprunec.errors import Diagnostic, InputError, show
from sprunec.plan.json_reader import JsonError, Reader, unescape
from sprunec.text_files import read_text

LARGEST_FILE = 1024 * 1024
_WEIGHTS = 'name it as "checkpoint" in a plan\'s "model", or look into it with sprunec inspect'
HINTS = {"a plan": dict.fromkeys(("safetensors", "torch", "old torch"), _WEIGHTS)}

Place = tuple[int, int]
T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """One file's value with the places of everything in it; a place is (line, column), from 1.

    Attributes:
        problems: what the reader found besides.
        origins: by pointer, where what was not read from this file comes from; of a plan that was made from another
            file "", too.
        folder: where relative paths start.
        assumed: pointers of paths that nobody has given.
    """

    file: str
    value: Any
    places: Mapping[str, Place] = field(default_factory=dict)
    keys: Mapping[str, Place] = field(default_factory=dict)
    problems: tuple[Diagnostic, ...] = ()
    origins: Mapping[str, tuple[Source, str]] = field(default_factory=dict)
    folder: Path = Path()
    assumed: frozenset[str] = frozenset()

    @property
    def is_made(self) -> bool:
        """Whether the whole value was made from another file: a plan, from BMCook's."""
        return "" in self.origins

    def place(self, pointer: str, key: bool = False) -> Place:
        """Find where the value (or its key) stands; for what is not written, where the nearest parent does."""
        return self.keys[pointer] if key and pointer in self.keys else _nearest(self.places, pointer) or (0, 0)

    def find(self, code: str, pointer: str, message: str, hint: str = "", *, key: bool = False) -> Diagnostic:
        """Make an error at the pointer's place, or at the place that the value comes from."""
        if origin := _nearest(self.origins, pointer):
            return origin[0].find(code, origin[1], message, hint, key=key)
        line, column = self.place(pointer, key)
        return Diagnostic(code, message, hint, "error", self.file, pointer, line, column)

    def locate(self, finding: Diagnostic, prefix: str = "") -> Diagnostic:
        """Give a finding that has no file yet its place, at its pointer below `prefix`."""
        found = self.find(finding.code, prefix + finding.pointer, finding.message, finding.hint)
        return replace(found, severity=finding.severity)

    def warn(self, code: str, pointer: str, message: str, hint: str = "", *, key: bool = False) -> Diagnostic:
        return replace(self.find(code, pointer, message, hint, key=key), severity="warning")


def _nearest(known: Mapping[str, T], pointer: str) -> T | None:
    """Look up a pointer, or the nearest thing around it."""
    while pointer and pointer not in known:
        pointer = pointer.rpartition("/")[0]
    return known.get(pointer)


def read_source(path: str | Path, wanted: str = "a plan", hint: str = "name a plan, a JSON file") -> Source:
    """Read one object in a JSON file.

    Args:
        wanted: what the file should be, with an article, and `hint` what to do where it is something else.

    Raises:
        InputError: with one diagnostic, when there is nothing to look into.
    """
    text = read_text(Path(path), wanted, hints=HINTS.get(wanted, {}) | {"": hint}, largest=LARGEST_FILE)
    source = parse_source(text, str(path))
    if not isinstance(source.value, dict):
        kind = "a list" if isinstance(source.value, list) else show(source.value)
        raise InputError(source.find("not-an-object", "", f"the file holds {kind}", "write one object: {...}"))
    return source


def parse_source(text: str, file: str) -> Source:
    """Parse text; raise InputError at the first thing that is not JSON, collect repeated keys in `problems`."""
    if not text.strip():
        raise InputError.at(file, "the file is empty", "write one object: {...}", code="empty-file")
    reader = Reader(text)
    starts = [0, *(match.end() for match in re.finditer("\n", text))]

    def place(offset: int) -> Place:
        line = bisect_right(starts, offset)
        return line, offset - starts[line - 1] + 1

    try:
        value = reader.document()
    except JsonError as stop:
        line, column = place(stop.offset)
        raise InputError(Diagnostic(stop.code, stop.message, stop.hint, "error", file, "", line, column)) from None
    places = {pointer: place(offset) for pointer, offset in reader.starts.items()}
    keys = {pointer: place(offset) for pointer, offset in reader.keys.items()}
    repeated = []
    for pointer, offset in reader.repeated:
        key, (line, column) = show(unescape(pointer.rpartition("/")[2])), place(offset)
        message = f"key {key} is given twice, first on line {keys[pointer][0]}"
        repeated.append(Diagnostic("duplicate-key", message, "keep one of them", "error", file, pointer, line, column))
    return Source(file, value, places, keys, tuple(repeated), folder=Path(file).parent)
