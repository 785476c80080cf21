"""Read the little of pickle that data sets are written in; no name in a file is ever looked up, imported or called.

`pickletools` cuts the bytes into opcodes, and a machine with the few that lists, tuples and arrays need does the rest.
Names stand for what the caller says they stand for. What is read is never larger than a few times the bytes it is in.
"""

from __future__ import annotations

import pickletools
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
LITERALS |= {"SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"}
CONSTANTS: Mapping[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
PUTS, GETS, SILENT = {"BINPUT", "LONG_BINPUT", "MEMOIZE"}, {"BINGET", "LONG_BINGET"}, {"PROTO", "FRAME"}
BROKEN = (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError)


class Refused(Exception):  # noqa: N818
    """What a pickle holds is not what it may hold; says what."""


def brief(value: Any) -> str:
    """A value for a message: a few references to each other could else be written out without end."""
    return _BRIEF.repr(value)


_BRIEF = reprlib.Repr()
_BRIEF.maxlevel = 2


class Built:
    """Something a pickle makes by a call and then fills; `state` is what it was filled with."""

    def __init__(self, *made_of: Any) -> None:
        self.made_of: tuple[Any, ...] = made_of
        self.state: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Known:
    """What a name in a pickle stands for."""

    call: Callable[..., Any]


class Window:
    """A part of a buffer as a file to read from; asking for more than is left gives what is left."""

    def __init__(self, buffer: Any, start: int, end: int) -> None:
        self.buffer, self.at, self.end = buffer, start, end

    def read(self, size: int) -> bytes:
        stop = min(self.at + max(size, 0), self.end)
        part = bytes(self.buffer[self.at : stop])
        self.at = stop
        return part

    def readline(self) -> bytes:
        """A line of a name: nobody's is longer than this."""
        head = bytes(self.buffer[self.at : min(self.at + 256, self.end)])
        return self.read(head.find(b"\n") + 1)

    def tell(self) -> int:
        return self.at


def load(stream: Window, names: Mapping[str, Any], most: int | None = None) -> Any:
    """One pickled value.

    Args:
        stream: left right behind the value.
        names: what "module name" stands for: a `Known` may be called, anything else only passed on.
        most: refuse a pickle of more opcodes.

    Raises:
        Refused: it is broken, or holds anything but lists, tuples, numbers, text, bytes and `names`.
    """
    machine = _Machine(names)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):  # type: ignore[arg-type]
            if most is not None and count > most:
                raise Refused(f"more than {most} opcodes")
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.do(opcode.name, argument)
    except BROKEN as error:
        raise Refused(f"a broken pickle ({error})") from error
    raise Refused("a pickle without an end")


@dataclass
class _Machine:
    names: Mapping[str, Any]
    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def do(self, opcode: str, argument: Any) -> None:
        if opcode in LITERALS:
            self.stack.append(argument)
        elif opcode in CONSTANTS:
            self.stack.append(CONSTANTS[opcode])
        elif opcode in PUTS:
            self.memo[len(self.memo) if opcode == "MEMOIZE" else argument] = self.stack[-1]
        elif opcode in GETS:
            self.stack.append(self.memo[argument])
        elif opcode in TUPLES:
            self.stack.append(tuple(self._take(len(self.stack) - TUPLES[opcode])))
        elif opcode not in SILENT:
            method = getattr(self, f"_{opcode.lower()}", None)
            if method is None:
                raise Refused(f"the pickle opcode {opcode}")
            method(argument)

    def _take(self, start: int) -> list[Any]:
        if start < (self.marks[-1] if self.marks else 0):
            raise IndexError("stack underflow")
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def _mark(self, _: None) -> None:
        self.marks.append(len(self.stack))

    def _tuple(self, _: None) -> None:
        self.stack.append(tuple(self._take(self.marks.pop())))

    def _empty_list(self, _: None) -> None:
        self.stack.append([])

    def _appends(self, _: None) -> None:
        items = self._take(self.marks.pop())
        self._list().extend(items)

    def _append(self, _: None) -> None:
        item = self.stack.pop()
        self._list().append(item)

    def _list(self) -> list[Any]:
        if not isinstance(self.stack[-1], list):
            raise TypeError("items for what is no list")
        return self.stack[-1]

    def _global(self, name: str) -> None:
        if name not in self.names:
            raise Refused(f"the name {name.replace(' ', '.')}")
        self.stack.append(self.names[name])

    def _stack_global(self, _: None) -> None:
        module, name = self._take(len(self.stack) - 2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a name that is no text")
        self._global(f"{module} {name}")

    def _reduce(self, _: None) -> None:
        function, arguments = self._take(len(self.stack) - 2)
        if not isinstance(function, Known) or not isinstance(arguments, tuple):
            raise Refused("a call of what is no function")
        self.stack.append(function.call(*arguments))

    def _build(self, _: None) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], Built) or not isinstance(state, tuple):
            raise Refused("a state for what takes none")
        self.stack[-1].state = state
