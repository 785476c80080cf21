"""Read JSON text and note where every key and value stands.

The grammar is the standard one. NaN, Infinity, numbers beyond a float, lone surrogates and bottomless nesting stop the
reader too, with words for what people commonly write instead of JSON.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterator
from math import isinf
from typing import Any

from sprunec.errors import Diagnostic, InputError, show

DEEPEST = 64
# Characters of all pointers together: long keys around many values would fill any memory.
MOST_PLACES = 64 * 1024 * 1024

_SPACE = re.compile(r"[ \t\r\n]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:[.][0-9]+)?(?:[eE][+-]?[0-9]+)?")
_OPEN_STRING = r'"(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+'
_STRING, _START = re.compile(_OPEN_STRING + '"'), re.compile(_OPEN_STRING)
_WORD = re.compile(r"[-+]?[A-Za-z_][A-Za-z0-9_]*")
_WORDS = ("true", "false", "null")
_MEANT = {"True": "true", "False": "false", "None": "null", "undefined": "null"}
# what people write where JSON has nothing of the kind
_NOT_JSON = dict.fromkeys(("//", "/*", "#"), ("a comment, which JSON does not have", "remove it"))
_NOT_JSON["..."] = "three dots, which stand for something left out", "write it out, or remove them"

Place = tuple[int, int]


def escape(key: object) -> str:
    """Write one step of a JSON pointer."""
    return str(key).replace("~", "~0").replace("/", "~1")


def unescape(step: str) -> str:
    return step.replace("~1", "/").replace("~0", "~")


class Reader:
    """A recursive-descent JSON reader.

    Attributes:
        at: the offset of the next token, never of space before it.
        places, keys: line and column of every value and of its key, by JSON pointer.
        problems: keys that are given twice, of which the first counts.
    """

    def __init__(self, text: str, file: str) -> None:
        self.text, self.file = text, file
        self.places: dict[str, Place] = {}
        self.keys: dict[str, Place] = {}
        self.problems: list[Diagnostic] = []
        self._lines = [0, *(match.end() for match in re.finditer("\n", text))]
        self._pointers = 0
        self._go(0)

    def document(self) -> Any:
        """Read the whole text; raise InputError at the first thing that is not JSON."""
        value = self._value("", 0)
        if self.at < len(self.text):
            raise self._unexpected("after the end of the document", "remove what follows")
        return value

    def _value(self, pointer: str, depth: int) -> Any:
        if depth > DEEPEST:
            raise self._stop(self.at, f"nested more than {DEEPEST} deep", "no plan nests so deep", "too-deep")
        self._pointers += len(pointer)
        if self._pointers > MOST_PLACES:
            message = "too many values under keys as long as these"
            raise self._stop(self.at, message, "no plan has such keys", "too-large")
        self.places.setdefault(pointer, self._place(self.at))
        if self._take("{"):
            return self._object(pointer, depth)
        if self._take("["):
            return [self._value(f"{pointer}/{index}", depth + 1) for index, _ in enumerate(self._entries("]"))]
        return self._string() if self.text.startswith('"', self.at) else self._number_or_word()

    def _object(self, pointer: str, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in self._entries("}"):
            place = self._place(self.at)
            if not self.text.startswith('"', self.at):
                raise self._unexpected("where a key should be", 'put keys in double quotes: "key": value')
            key = self._string()
            child = f"{pointer}/{escape(key)}"
            if not self._take(":"):
                raise self._unexpected('where ":" should be', f'write ":" after key {show(key)}')
            first = self.keys.setdefault(child, place)
            if key in found:
                message = f"key {show(key)} is given twice, first on line {first[0]}"
                told = Diagnostic("duplicate-key", message, "keep one of them", "error", self.file, child, *place)
                self.problems.append(told)
            found.setdefault(key, self._value(child, depth + 1))
        return found

    def _entries(self, closing: str) -> Iterator[None]:
        """Stop before each entry, which the caller then reads, and go behind the closing bracket."""
        while not self._take(closing):
            yield
            comma = self.at
            if self._take(","):
                if self.text.startswith(closing, self.at):
                    raise self._stop(comma, f'a comma before "{closing}"', "remove the comma")
            elif not self.text.startswith(closing, self.at):
                raise self._unexpected(f'where "," or "{closing}" should be', "is a comma missing before it?")

    def _take(self, char: str) -> bool:
        taken = self.text.startswith(char, self.at)
        if taken:
            self._go(self.at + 1)
        return taken

    def _go(self, offset: int) -> None:
        match = _SPACE.match(self.text, offset)
        self.at = match.end() if match else offset

    def _place(self, offset: int) -> Place:
        line = bisect_right(self._lines, offset)
        return line, offset - self._lines[line - 1] + 1

    def _stop(self, offset: int, message: str, hint: str = "", code: str = "syntax") -> InputError:
        return InputError(Diagnostic(code, message, hint, "error", self.file, "", *self._place(offset)))

    def _unexpected(self, where: str, hint: str = "") -> InputError:
        for start, told in _NOT_JSON.items():
            if self.text.startswith(start, self.at):
                return self._stop(self.at, *told)
        if self.at >= len(self.text):
            return self._stop(self.at, f"the file ends {where}", "is the file whole?")
        char = self.text[self.at]
        return self._stop(self.at, f"""{"'" + char + "'" if char == '"' else show(char)} {where}""", hint)

    def _string(self) -> str:
        if (match := _STRING.match(self.text, self.at)) is None:
            inside = _START.match(self.text, self.at)
            end = inside.end() if inside else self.at
            if self.text.startswith("\\", end):
                raise self._stop(end, f"{show(self.text[end : end + 2])} is no escape", 'write a backslash as "\\\\"')
            if end >= len(self.text) or self.text[end] in "\r\n":
                raise self._stop(self.at, "a string that does not end on its line", 'close it with "')
            raise self._stop(end, f"a control character, {show(self.text[end])}, in a string", "write it as an escape")
        value: str = json.loads(match.group())
        if any("\ud800" <= char <= "\udfff" for char in value):
            raise self._stop(self.at, "a string with half a surrogate pair", "write the character itself")
        self._go(match.end())
        return value

    def _number_or_word(self) -> Any:
        match = _WORD.match(self.text, self.at) or _NUMBER.match(self.text, self.at)
        if match is None:
            hint = "put text in double quotes" if self.text.startswith("'", self.at) else ""
            raise self._unexpected("where a value should be", hint)
        text, finite = match.group(), ("give a finite number", "not-finite")
        if match.re is _WORD and text not in _WORDS:
            if text.lstrip("+-") in ("NaN", "Infinity", "nan", "inf"):
                raise self._stop(self.at, f"{text} is not a number that JSON has", *finite)
            hint = f"write {_MEANT[text]}" if text in _MEANT else "put text in double quotes"
            raise self._stop(self.at, f"{show(text)[1:-1]} is not a JSON value", hint)
        if match.re is _NUMBER and isinf(float(text)):
            raise self._stop(self.at, f"{show(text)[1:-1]} is beyond the range of a number", *finite)
        self._go(match.end())
        return json.loads(text)
