"""Read JSON text and note where every key and value starts.

The grammar is the standard one. NaN, Infinity, numbers beyond a float, lone surrogates and bottomless nesting stop the
reader too, with words for what people commonly write instead of JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from math import isinf
from typing import Any

from sprunec.errors import show

DEEPEST = 64
# Characters of all pointers together: long keys around many values would fill any memory.
MOST_PLACES = 64 * 1024 * 1024

_SPACE = re.compile(r"[ \t\r\n]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:[.][0-9]+)?(?:[eE][+-]?[0-9]+)?")
_OPEN_STRING = r'"(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+'
_STRING, _START = re.compile(_OPEN_STRING + '"'), re.compile(_OPEN_STRING)
_WORD = re.compile(r"[-+]?[A-Za-z_][A-Za-z0-9_]*")
_WORDS = {"true": True, "false": False, "null": None}
_MEANT = {"True": "true", "False": "false", "None": "null", "undefined": "null"}


def escape(key: object) -> str:
    """Write one step of a JSON pointer."""
    return str(key).replace("~", "~0").replace("/", "~1")


def unescape(step: str) -> str:
    return step.replace("~1", "/").replace("~0", "~")


class JsonError(Exception):
    """What stops the reader, and where."""

    def __init__(self, offset: int, message: str, hint: str = "", code: str = "syntax") -> None:
        super().__init__(message)
        self.offset, self.message, self.hint, self.code = offset, message, hint, code


class Reader:
    """A recursive-descent JSON reader that notes the offset of every key and value."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.starts: dict[str, int] = {}
        self.keys: dict[str, int] = {}
        self.repeated: list[tuple[str, int]] = []
        self._pointers = 0

    def document(self) -> Any:
        self._skip()
        value = self._value("", 0)
        self._skip()
        if self.at < len(self.text):
            raise self._unexpected("after the end of the document", "remove what follows")
        return value

    def _value(self, pointer: str, depth: int) -> Any:
        if depth > DEEPEST:
            raise JsonError(self.at, f"nested more than {DEEPEST} deep", "no plan nests so deep", "too-deep")
        self._pointers += len(pointer)
        if self._pointers > MOST_PLACES:
            message = "too many values under keys as long as these"
            raise JsonError(self.at, message, "no plan has such keys", "too-large")
        self.starts.setdefault(pointer, self.at)
        char = self.text[self.at : self.at + 1]
        if char == "{":
            return self._object(pointer, depth)
        if char == "[":
            return [self._value(f"{pointer}/{index}", depth + 1) for index, _ in enumerate(self._entries("]"))]
        return self._string() if char == '"' else self._number_or_word()

    def _object(self, pointer: str, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in self._entries("}"):
            start = self.at
            if not self.text.startswith('"', start):
                raise self._unexpected("where a key should be", 'put keys in double quotes: "key": value')
            key = self._string()
            child = f"{pointer}/{escape(key)}"
            self._skip()
            if not self._took(":"):
                raise self._unexpected('where ":" should be', f'write ":" after key {show(key)}')
            self._skip()
            if key in found:
                self.repeated.append((child, start))
            self.keys.setdefault(child, start)
            value = self._value(child, depth + 1)
            found.setdefault(key, value)
        return found

    def _entries(self, closing: str) -> Iterator[None]:
        """Go from an opening bracket to behind the closing one; stop before each entry, which the caller then reads."""
        self.at += 1
        self._skip()
        while not self._took(closing):
            yield
            self._skip()
            comma = self.at
            if self._took(","):
                self._skip()
                if self.text.startswith(closing, self.at):
                    raise JsonError(comma, f'a comma before "{closing}"', "remove the comma")
            elif not self.text.startswith(closing, self.at):
                raise self._unexpected(f'where "," or "{closing}" should be', "is a comma missing before it?")

    def _took(self, char: str) -> bool:
        if not self.text.startswith(char, self.at):
            return False
        self.at += 1
        return True

    def _skip(self) -> None:
        match = _SPACE.match(self.text, self.at)
        self.at = match.end() if match else self.at

    def _unexpected(self, where: str, hint: str = "") -> JsonError:
        if self.text.startswith(("//", "/*", "#"), self.at):
            return JsonError(self.at, "a comment, which JSON does not have", "remove it")
        if self.text.startswith("...", self.at):
            return JsonError(self.at, "three dots, which stand for something left out", "write it out, or remove them")
        if self.at >= len(self.text):
            return JsonError(self.at, f"the file ends {where}", "is the file whole?")
        char = self.text[self.at]
        return JsonError(self.at, f"""{"'" + char + "'" if char == '"' else show(char)} {where}""", hint)

    def _string(self) -> str:
        if (match := _STRING.match(self.text, self.at)) is None:
            inside = _START.match(self.text, self.at)
            stop = inside.end() if inside else self.at
            if self.text.startswith("\\", stop):
                raise JsonError(stop, f"{show(self.text[stop : stop + 2])} is no escape", 'write a backslash as "\\\\"')
            if stop >= len(self.text) or self.text[stop] in "\r\n":
                raise JsonError(self.at, "a string that does not end on its line", 'close it with "')
            raise JsonError(stop, f"a control character, {show(self.text[stop])}, in a string", "write it as an escape")
        value: str = json.loads(match.group())
        if any("\ud800" <= char <= "\udfff" for char in value):
            raise JsonError(self.at, "a string with half a surrogate pair", "write the character itself")
        self.at = match.end()
        return value

    def _number_or_word(self) -> Any:
        word, number = _WORD.match(self.text, self.at), _NUMBER.match(self.text, self.at)
        if word:
            return self._word(word.group())
        if number is None:
            hint = "put text in double quotes" if self.text.startswith("'", self.at) else ""
            raise self._unexpected("where a value should be", hint)
        text = number.group()
        if isinf(float(text)):
            message = f"{show(text)[1:-1]} is beyond the range of a number"
            raise JsonError(self.at, message, "give a finite number", "not-finite")
        self.at = number.end()
        return float(text) if re.search("[.eE]", text) else int(text)

    def _word(self, word: str) -> Any:
        if word in _WORDS:
            self.at += len(word)
            return _WORDS[word]
        if word.lstrip("+-") in ("NaN", "Infinity", "nan", "inf"):
            raise JsonError(self.at, f"{word} is not a number that JSON has", "give a finite number", "not-finite")
        hint = f"write {_MEANT[word]}" if word in _MEANT else "put text in double quotes"
        raise JsonError(self.at, f"{show(word)[1:-1]} is not a JSON value", hint)
