"""Pickles from anyone: nothing that a file names is run, and nothing is made of it that its bytes do not hold.

An unpickler imports and calls what a file names; here a name stands for what the reader says that it stands for. But a
few bytes can also ask for any memory, or put a tuple into itself, so to say, two hundred times doubled: it takes no
memory, and no end to hash or to print. So `check_pickle` follows the opcodes first, by what `pickletools` says they
take and give, and makes nothing. Needs no torch.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

MOST = 10_000_000  # opcodes, and objects where one that is used twice is counted twice
DEEPEST = 1000  # objects within each other: Python writes no more, and hashing tuples that are deeper ends the process
FILLING = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}
PUTS, GETS = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}, {"GET", "BINGET", "LONG_BINGET"}
NAMES, FRAME_BYTES = {"GLOBAL", "STACK_GLOBAL"}, 9
Node = list[Any]
_LEAF: Node = []  # a number, a text: what has no parts
_NAME: Node = []
_BRIEF = reprlib.Repr()
_BRIEF.maxlevel = 2


class Refused(Exception):  # noqa: N818
    """What a file holds must not be made of it; says what, to stand behind "it holds"."""


class Stream(Protocol):
    """What a pickle is read from; asking for more than is left gives what is left."""

    def read(self, size: int, /) -> bytes: ...
    def readline(self) -> bytes: ...
    def tell(self) -> int: ...
    def seek(self, place: int, /) -> Any: ...


def brief(value: Any) -> str:
    """Format a value for a message: a few references to each other could else be written out without end."""
    return _BRIEF.repr(value)


def load_pickle(
    stream: Stream, names: Mapping[str, Any], persistent: Callable[[Any], Any] | None = None, most: int = MOST
) -> Any:
    """Make one pickled value, and leave the stream right behind it.

    Raises Refused where it is broken, names anything else, or stands for more than it holds.

    Args:
        names: what "module.name" stands for. What can be called may be called with anything.
        persistent: what a persistent id stands for; without it there may be none.
        most: opcodes that it may have.
    """
    begin = stream.tell()
    try:
        frames = check_pickle(stream, most)
        end = stream.tell()
        stream.seek(begin)
        data = stream.read(end - begin)
        # A frame that ends within an opcode makes C's unpickler read on behind it, unlike what has been checked; they
        # only ever save system calls.
        for frame in reversed(frames):
            data = data[: frame - begin] + data[frame - begin + FRAME_BYTES :]
        value = _Unpickler(data, names, persistent).load()
    except Refused:
        raise
    except Exception as error:  # whatever broken bytes lead to
        raise Refused(f"a broken pickle ({error})") from error
    stream.seek(end)
    return value


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, names: Mapping[str, Any], persistent: Callable[[Any], Any] | None) -> None:
        super().__init__(io.BytesIO(data))
        self._names, self._persistent = names, persistent

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in self._names:
            raise Refused(f"the name {module}.{name}")
        return self._names[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> Any:
        if self._persistent is None:
            raise Refused("a persistent id")
        return self._persistent(pid)


def check_pickle(stream: Stream, most: int = MOST) -> list[int]:
    """Follow one pickle to its end, where the stream is left; return where its frames begin.

    Raises Refused where it stands for far more than it holds, or asks for bytes, and whatever `pickletools` raises.
    """
    root, count, frames = _follow(stream, most)
    found: dict[int, tuple[int, int]] = {}  # by a node's identity: its size and depth; an empty one is of size 1
    waiting = [(root, False)]
    while waiting:  # the parts of each first; what holds itself is counted once
        node, counted = waiting.pop()
        if counted:
            parts = [found[id(part)] for part in node if part]
            size = 1 + len(node) - len(parts) + sum(size for size, _ in parts)
            found[id(node)] = size, 1 + max((depth for _, depth in parts), default=0)
        elif id(node) not in found:
            found[id(node)] = 0, 0
            waiting.append((node, True))
            waiting += [(part, False) for part in node if part]
    size, depth = found[id(root)]
    if size > max(MOST, 4 * count):
        raise Refused("few objects that stand for more than any memory holds")
    if depth > DEEPEST:
        raise Refused(f"objects within each other, more than {DEEPEST:,} deep")
    return frames


def _follow(stream: Stream, most: int) -> tuple[Node, int, list[int]]:
    """List every object that a pickle makes, as the list of its parts; count opcodes, and find where frames begin."""
    root: Node = []  # the value, and what is made and dropped
    stack: list[Node | None] = []  # None is a mark
    memo: dict[int, Node] = {}
    frames: list[int] = []
    count = 0
    for count, (opcode, argument, place) in enumerate(pickletools.genops(stream), start=1):  # type: ignore[arg-type]
        name = opcode.name
        if count > most:
            raise Refused(f"more than {most:,} opcodes")
        if name in PUTS:
            number = len(memo) if argument is None else int(argument)
            if number > (place or 0):  # C's unpickler makes an array of this length
                raise Refused("a memo larger than the pickle")
            memo[number] = _object(stack[-1])
        elif name in GETS:
            stack.append(memo[int(argument or 0)])
        elif name == "MARK":
            stack.append(None)
        elif name == "DUP":
            stack.append(_object(stack[-1]))
        elif name == "FRAME":
            frames.append(place or 0)
        elif opcode.stack_before or opcode.stack_after:
            made = _made(opcode, argument, _taken(stack, opcode.stack_before))
            (stack if opcode.stack_after else root).append(made)
    return [*root, *(node for node in stack if node is not None)], count, frames


def _made(opcode: pickletools.OpcodeInfo, argument: Any, parts: list[Node]) -> Node:
    """Make what an opcode leaves of what it takes; where it fills the first of that, this one itself."""
    if opcode.name in NAMES:
        if opcode.name == "GLOBAL" and str(argument).endswith(" bytearray"):  # torch would make one of any size
            raise Refused("bytes to be made, which are no tensor")
        if any(part is not _LEAF for part in parts):
            raise Refused("a name that is no text")
        return _NAME
    if opcode.name in FILLING:
        filled = parts.pop(0)
        if filled is _LEAF or filled is _NAME:
            raise Refused("parts for what takes none")
        filled += parts
        return filled
    return parts if opcode.stack_before or opcode.name.startswith("EMPTY_") else _LEAF


def _taken(stack: list[Node | None], before: list[Any]) -> list[Node]:
    """Take what an opcode takes: all down to the last mark where it takes a slice, and so many below."""
    parts: list[Node] = []
    if pickletools.markobject in before:
        while (part := stack.pop()) is not None:
            parts.append(part)
        before = before[: before.index(pickletools.markobject)]
    for _ in before:
        parts.append(_object(stack.pop()))
    parts.reverse()
    return parts


def _object(node: Node | None) -> Node:
    if node is None:
        raise Refused("a mark where an object should be")
    return node
