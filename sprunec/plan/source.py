"""A JSON file with where everything in it stands, and the objects in it that findings are told about.

What the standard parser lets through is refused here: repeated keys, NaN and Infinity, numbers beyond a float, lone
surrogates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from sprunec.errors import Diagnostic, InputError, show
from sprunec.plan.json_reader import Place, Reader
from sprunec.text_files import read_text

LARGEST_FILE = 1024 * 1024
_WEIGHTS = 'name it as "checkpoint" in a plan\'s "model", or look into it with sprunec inspect'
HINTS = {"a plan": dict.fromkeys(("safetensors", "torch", "old torch"), _WEIGHTS)}

T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """One file's value with the places of everything in it; a place is (line, column), from 1.

    Attributes:
        places, keys: of each value and of its key, by JSON pointer.
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

    def find(
        self, code: str, pointer: str, message: str, hint: str = "", *, severity: str = "error", key: bool = False
    ) -> Diagnostic:
        """Make a finding at the pointer's place, or at the place that the value comes from."""
        if origin := _nearest(self.origins, pointer):
            return origin[0].find(code, origin[1], message, hint, severity=severity, key=key)
        return Diagnostic(code, message, hint, severity, self.file, pointer, *self.place(pointer, key))


@dataclass(eq=False)
class Section:
    """One object of a file, and the list of what is found in it.

    Keys such as `a/b` are paths from the object, `/a` is one from the top of the file, and an empty one the object.
    """

    source: Source
    found: list[Diagnostic]
    pointer: str = ""

    @cached_property
    def written(self) -> Mapping[str, Any]:
        """The object as it stands in the file; empty where there is none."""
        value = self.source.value
        for step in self.pointer.split("/")[1:]:
            value = (
                value[int(step)] if isinstance(value, list) else value.get(step) if isinstance(value, dict) else None
            )
        return value if isinstance(value, dict) else {}

    def section(self, key: str) -> Section:
        """Take an object in this one; what is found there is found here."""
        return Section(self.source, self.found, self.at(key))

    def at(self, key: str) -> str:
        return key if key.startswith("/") else f"{self.pointer}/{key}" if key else self.pointer

    def error(
        self, code: str, key: str, message: str, hint: str = "", *, at_key: bool = False, severity: str = "error"
    ) -> None:
        """Tell of an error at a value, or at its key."""
        self.found.append(self.source.find(code, self.at(key), message, hint, severity=severity, key=at_key))

    def warn(self, code: str, key: str, message: str, hint: str = "", *, at_key: bool = False) -> None:
        self.error(code, key, message, hint, at_key=at_key, severity="warning")

    def unused(self, key: str, message: str, hint: str = "remove it") -> None:
        """Warn of a key that nothing reads."""
        self.warn("unused-option", key, message, hint, at_key=True)

    def locate(self, finding: Diagnostic) -> None:
        """Tell of a finding that has no file yet, at its pointer in the object."""
        key = finding.pointer.removeprefix("/")
        self.error(finding.code, key, finding.message, finding.hint, severity=finding.severity)


def has_errors(found: Iterable[Diagnostic]) -> bool:
    return any(finding.severity == "error" for finding in found)


def _nearest(known: Mapping[str, T], pointer: str) -> T | None:
    """Look up a pointer, or the nearest thing around it."""
    while pointer and pointer not in known:
        pointer = pointer.rpartition("/")[0]
    return known.get(pointer)


def read_source(path: str | Path, wanted: str = "a plan", hint: str = "name a plan, a JSON file") -> Source:
    """Read one object in a JSON file; raise InputError, with one diagnostic, when there is nothing to look into.

    Args:
        wanted: what the file should be, with an article, and `hint` what to do where it is something else.
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
    reader = Reader(text, file)
    return Source(file, reader.document(), reader.places, reader.keys, tuple(reader.problems), folder=Path(file).parent)
