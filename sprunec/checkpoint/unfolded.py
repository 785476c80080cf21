"""How many objects a pickle stands for, one that is used twice counted twice.

A few bytes can put a tuple into itself, so to say, two hundred times doubled: it takes no memory, and no end to hash or
to print. Opcodes are followed by what `pickletools` says they take and give; nothing is made.
"""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

from sprunec.checkpoint.unreadable import Unsafe
from sprunec.durable import naming

MOST = 10_000_000
FILLING = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}
PUTS, GETS = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}, {"GET", "BINGET", "LONG_BINGET"}
OLD_PICKLES = 4  # of torch's older files: a number, a version, the system, and the content
Node = list[Any]


def check_unfolded(path: Path) -> None:
    """Of a file that torch has saved, before anything is made of it.

    Raises:
        Unsafe: it stands for far more than it holds, or asks for bytes.
        Exception: whatever `pickletools` finds wrong with it.
    """
    with naming(path), path.open("rb") as stream:
        if not zipfile.is_zipfile(stream):
            stream.seek(0)
            for _ in range(OLD_PICKLES):
                check_pickle(stream)
            return
        with zipfile.ZipFile(stream) as archive:
            for name in archive.namelist():
                if name.endswith("data.pkl"):
                    with archive.open(name) as record:
                        check_pickle(record)  # type: ignore[arg-type]


def check_pickle(stream: BinaryIO) -> None:
    """As `check_unfolded`, of one pickle; the stream is left behind it."""
    sizes: dict[int, int] = {}
    nodes = _nodes(stream)
    waiting = [(node, False) for node in nodes]
    while waiting:  # the parts of each first; what holds itself is counted once
        node, counted = waiting.pop()
        if counted:
            sizes[id(node)] = 1 + sum(sizes[id(part)] for part in node)
        elif id(node) not in sizes:
            sizes[id(node)] = 0
            waiting += [(node, True), *((part, False) for part in node)]
    if max(sizes.values(), default=0) > max(MOST, 4 * len(nodes)):
        raise Unsafe("its few objects stand for more than any memory holds")


def _nodes(stream: BinaryIO) -> list[Node]:
    """Every object that a pickle makes, as the list of its parts."""
    made: list[Node] = []
    stack: list[Node | None] = []  # None is a mark
    memo: dict[int, Any] = {}
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in PUTS:
            memo[len(memo) if argument is None else int(argument)] = stack[-1]
        elif opcode.name in GETS:
            stack.append(memo[int(argument)])  # type: ignore[arg-type]
        elif opcode.name == "MARK":
            stack.append(None)
        elif opcode.name == "GLOBAL" and str(argument).endswith(" bytearray"):  # torch would make one of any size
            raise Unsafe("it holds bytes to be made, which are no tensor")
        else:
            parts = _taken(stack, opcode.stack_before)
            node: Node = parts.pop(0) if opcode.name in FILLING else []
            node += parts
            made.append(node)
            stack += [node] * len(opcode.stack_after)
    return made


def _taken(stack: list[Node | None], before: list[Any]) -> list[Node]:
    """What an opcode takes: all down to the last mark where it takes a slice, and so many below."""
    parts: list[Node] = []
    if pickletools.markobject in before:
        while (part := stack.pop()) is not None:
            parts.append(part)
        before = before[: before.index(pickletools.markobject)]
    for _ in before:
        part = stack.pop()
        if part is None:
            raise Unsafe("a mark where an object should be")
        parts.append(part)
    return parts[::-1]
