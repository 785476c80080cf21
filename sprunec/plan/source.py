"""Read a JSON file and remember where everything in it stands.

`read_source(path)` gives the value and, for each JSON pointer, line and column of the value and of its key. What the
standard parser lets through is refused here: repeated keys, NaN and Infinity, numbers beyond a float, lone surrogates.
"""

from __future__ import annotations

import json
import os
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sprunec.errors import Diagnostic, InputError

LARGEST_FILE = 8 * 1024 * 1024
DEEPEST = 64

Place = tuple[int, int]

_SPACE = re.compile(r"[ \t\r\n]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:[.][0-9]+)?(?:[eE][+-]?[0-9]+)?")
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+"')
_WORD = re.compile(r"[-+]?[A-Za-z_][A-Za-z0-9_]*")
_WORDS = {"true": True, "false": False, "null": None}
_SLIPS = {"True": "true", "False": "false", "None": "null", "undefined": "null"}


@dataclass(frozen=True)
class Source:
    """One file's value with the places of everything in it; a place is (line, column), from 1."""

    file: str
    value: Any
    places: Mapping[str, Place] = field(default_factory=dict)
    keys: Mapping[str, Place] = field(default_factory=dict)
    problems: tuple[Diagnostic, ...] = ()

    def place(self, pointer: str, key: bool = False) -> Place:
        """Where the value (or its key) stands; for what is not written, where the nearest parent does."""
        if key and pointer in self.keys:
            return self.keys[pointer]
        while pointer and pointer not in self.places:
            pointer = pointer.rpartition("/")[0]
        return self.places.get(pointer, (0, 0))

    def find(self, code: str, pointer: str, message: str, hint: str = "", *, key: bool = False) -> Diagnostic:
        """An error at the pointer's place."""
        line, column = self.place(pointer, key)
        return Diagnostic(code, message, hint, "error", self.file, pointer, line, column)

    def warn(self, code: str, pointer: str, message: str, hint: str = "", *, key: bool = False) -> Diagnostic:
        return replace(self.find(code, pointer, message, hint, key=key), severity="warning")


def escape(key: object) -> str:
    """One step of a JSON pointer."""
    return str(key).replace("~", "~0").replace("/", "~1")


def unescape(step: str) -> str:
    return step.replace("~1", "/").replace("~0", "~")


def show(value: Any, longest: int = 60) -> str:
    """A value as it stands in JSON, cut short."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def read_source(path: str | Path) -> Source:
    """Raises InputError, with one diagnostic, when there is nothing to look into."""
    text = _read_text(path)
    source = parse_source(text, str(path))
    if not isinstance(source.value, dict):
        kind = "a list" if isinstance(source.value, list) else show(source.value)
        raise InputError(source.find("not-an-object", "", f"the file holds {kind}", "write one object: { … }"))
    return source


def parse_source(text: str, file: str) -> Source:
    """Raises InputError at the first thing that is not JSON; repeated keys are collected in `problems`."""
    if not text.strip():
        raise InputError.at(file, "the file is empty", "write one object: { … }", code="empty-file")
    reader = _Reader(text)
    starts = [0, *(match.end() for match in re.finditer("\n", text))]

    def place(offset: int) -> Place:
        line = bisect_right(starts, offset)
        return line, offset - starts[line - 1] + 1

    try:
        value = reader.document()
    except _Slip as slip:
        line, column = place(slip.offset)
        raise InputError(Diagnostic(slip.code, slip.message, slip.hint, "error", file, "", line, column)) from None
    places = {pointer: place(offset) for pointer, offset in reader.starts.items()}
    keys = {pointer: place(offset) for pointer, offset in reader.keys.items()}
    source = Source(file, value, places, keys)
    return replace(source, problems=tuple(_repeated(source, reader, place)))


def _repeated(source: Source, reader: _Reader, place: Any) -> Iterator[Diagnostic]:
    for pointer, offset in reader.repeated:
        first = source.place(pointer, key=True)[0]
        line, column = place(offset)
        message = f"key {show(unescape(pointer.rpartition('/')[2]))} is given twice, first on line {first}"
        yield Diagnostic("duplicate-key", message, "keep one of them", "error", source.file, pointer, line, column)


def _read_text(path: str | Path) -> str:
    name = str(path)
    if not os.path.lexists(name) or not os.path.exists(name):
        raise InputError.at(name, "there is no such file", "check the path", code="missing-file")
    if os.path.isdir(name):
        raise InputError.at(name, "this is a folder", "name the file in it", code="not-a-file")
    try:
        with open(name, "rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except OSError as error:
        message = f"the file cannot be read: {error.strerror}"
        raise InputError.at(name, message, "check its permissions", code="unreadable") from None
    if len(data) > LARGEST_FILE:
        message = f"the file is larger than {LARGEST_FILE // 1024**2} MB"
        raise InputError.at(name, message, "is it the right file?", code="too-large")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = len(data[data.rfind(b"\n", 0, error.start) + 1 : error.start].decode("utf-8", "replace")) + 1
        message = f"byte 0x{data[error.start]:02x} is not UTF-8"
        raise InputError(
            Diagnostic("not-utf8", message, "save the file as UTF-8", "error", name, "", line, column)
        ) from None


class _Slip(Exception):
    """What stops the reader, and where."""

    def __init__(self, offset: int, message: str, hint: str = "", code: str = "syntax") -> None:
        super().__init__(message)
        self.offset, self.message, self.hint, self.code = offset, message, hint, code


class _Reader:
    """A recursive-descent JSON reader that notes the offset of every key and value."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.starts: dict[str, int] = {}
        self.keys: dict[str, int] = {}
        self.repeated: list[tuple[str, int]] = []

    def document(self) -> Any:
        self._skip()
        value = self._value("", 0)
        self._skip()
        if self.at < len(self.text):
            raise _Slip(self.at, f"{self._here()} after the end of the document", "remove what follows")
        return value

    def _value(self, pointer: str, depth: int) -> Any:
        if depth > DEEPEST:
            raise _Slip(self.at, f"nested more than {DEEPEST} deep", "no plan or config is", "too-deep")
        self.starts.setdefault(pointer, self.at)
        char = self.text[self.at : self.at + 1]
        if char == "{":
            return self._object(pointer, depth)
        if char == "[":
            return self._list(pointer, depth)
        return self._string() if char == '"' else self._number_or_word()

    def _object(self, pointer: str, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        more = self._open("}")
        while more:
            start = self.at
            if not self.text.startswith('"', start):
                raise _Slip(start, f"{self._here()} where a key should be", 'put keys in double quotes: "key": value')
            key = self._string()
            child = f"{pointer}/{escape(key)}"
            self._take(":", f"after key {show(key)}")
            if key in found:
                self.repeated.append((child, start))
            self.keys.setdefault(child, start)
            value = self._value(child, depth + 1)
            found.setdefault(key, value)
            more = self._next("}")
        return found

    def _list(self, pointer: str, depth: int) -> list[Any]:
        found: list[Any] = []
        more = self._open("]")
        while more:
            found.append(self._value(f"{pointer}/{len(found)}", depth + 1))
            more = self._next("]")
        return found

    def _open(self, closing: str) -> bool:
        self.at += 1
        self._skip()
        return not self._took(closing)

    def _next(self, closing: str) -> bool:
        """Past the comma (True) or past the closing bracket (False)."""
        self._skip()
        if self._took(closing):
            return False
        comma = self.at
        if not self._took(","):
            raise _Slip(comma, f'{self._here()} where "," or "{closing}" should be', "is a comma missing before it?")
        self._skip()
        if self.text.startswith(closing, self.at):
            raise _Slip(comma, f'a comma before "{closing}"', "remove the comma")
        return True

    def _take(self, char: str, where: str) -> None:
        self._skip()
        if not self._took(char):
            raise _Slip(self.at, f'{self._here()} where "{char}" should be', f'write "{char}" {where}')
        self._skip()

    def _took(self, char: str) -> bool:
        if not self.text.startswith(char, self.at):
            return False
        self.at += 1
        return True

    def _skip(self) -> None:
        match = _SPACE.match(self.text, self.at)
        self.at = match.end() if match else self.at

    def _here(self) -> str:
        return show(self.text[self.at]) if self.at < len(self.text) else "the file ends"

    def _string(self) -> str:
        match = _STRING.match(self.text, self.at)
        if match is None:
            raise self._broken_string()
        value: str = json.loads(match.group())
        if any("\ud800" <= char <= "\udfff" for char in value):
            raise _Slip(self.at, "a string with half a surrogate pair", "write the character itself")
        self.at = match.end()
        return value

    def _broken_string(self) -> _Slip:
        inside = re.compile(r'"(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+').match(self.text, self.at)
        stop = inside.end() if inside else self.at
        if self.text.startswith("\\", stop):
            return _Slip(stop, f"{show(self.text[stop : stop + 2])} is no escape", 'write a backslash as "\\\\"')
        if stop >= len(self.text) or self.text[stop] in "\r\n":
            return _Slip(self.at, "a string that does not end on its line", 'close it with "')
        return _Slip(stop, f"a control character, {show(self.text[stop])}, in a string", "write it as an escape")

    def _number_or_word(self) -> Any:
        word = _WORD.match(self.text, self.at)
        if word:
            return self._word(word.group())
        match = _NUMBER.match(self.text, self.at)
        if match is None:
            raise self._no_value()
        text = match.group()
        if float(text) in (float("inf"), float("-inf")):
            raise _Slip(self.at, f"{show(text)[1:-1]} is beyond the range of a number", "", "not-finite")
        self.at = match.end()
        return float(text) if re.search("[.eE]", text) else int(text)

    def _word(self, word: str) -> Any:
        if word in _WORDS:
            self.at += len(word)
            return _WORDS[word]
        if word.lstrip("+-") in ("NaN", "Infinity", "nan", "inf"):
            raise _Slip(self.at, f"{word} is not a number that JSON has", "give a finite number", "not-finite")
        hint = f"write {_SLIPS[word]}" if word in _SLIPS else "put text in double quotes"
        raise _Slip(self.at, f"{show(word)[1:-1]} is not a JSON value", hint)

    def _no_value(self) -> _Slip:
        if self.text.startswith(("//", "/*", "#"), self.at):
            return _Slip(self.at, "a comment, which JSON does not have", "remove it")
        hint = "put text in double quotes" if self.text.startswith("'", self.at) else ""
        return _Slip(self.at, f"{self._here()} where a value should be", hint)
