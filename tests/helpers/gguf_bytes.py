"""GGUF files byte by byte, right ones and wrong ones."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

KINDS = {"u8": 0, "u32": 4, "f32": 6, "bool": 7, "str": 8, "list": 9, "u64": 10}
CODES = {"u8": "B", "u32": "I", "f32": "f", "bool": "?", "u64": "Q"}


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def value(kind: str, given: Any) -> bytes:
    """Write a value; a list is given as the kind of its entries and them."""
    if kind == "list":
        of, entries = given
        return struct.pack("<IQ", KINDS[of], len(entries)) + b"".join(value(of, each) for each in entries)
    return text(given) if kind == "str" else struct.pack(f"<{CODES[kind]}", given)


def tensor(name: str | bytes, shape: Sequence[int], kind: int, start: int) -> bytes:
    """Write where a tensor lies; the shape is torch's."""
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    return text(name) + dims + struct.pack("<IQ", kind, start)


def whole(
    keys: Mapping[str, tuple[str, Any]],
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    head: bytes = b"GGUF\x03\0\0\0",
    counts: tuple[int, int] | None = None,
) -> bytes:
    """Write a file, whose header may say other counts than it has."""
    pairs = b"".join(
        text(key) + struct.pack("<I", KINDS[kind]) + value(kind, given) for key, (kind, given) in keys.items()
    )
    found = head + struct.pack("<QQ", *(counts or (len(tensors), len(keys)))) + pairs + b"".join(tensors)
    return found + b"\0" * (-len(found) % 32) + data


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
