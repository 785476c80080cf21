"""CPM-Live's data sets written and read by a few plain lines, from what the format is said to be."""

from __future__ import annotations

import json
import pickle
import struct
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

MODULE = "cpm_live.dataset.distributed_dataset"


class FileInfo:
    """As CPM-Live's: what is pickled is a call of its class method."""

    def __init__(self, *state: Any) -> None:
        self.state = state

    @classmethod
    def _load_from_state(cls, version: int, state: tuple[Any, ...]) -> FileInfo:
        assert version == 1
        return cls(*state)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr(FileInfo, "_load_from_state"), (1, self.state)  # noqa: B009


FileInfo.__module__ = MODULE


@contextmanager
def cpm_live() -> Iterator[None]:
    """CPM-Live's module is importable in here."""
    names = ["cpm_live", "cpm_live.dataset", MODULE]
    modules = {name: types.ModuleType(name) for name in names}
    modules[MODULE].FileInfo = FileInfo  # type: ignore[attr-defined]
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def blocks_of(payloads: Sequence[bytes], size: int) -> list[bytes]:
    """Records one behind the other, a new block where one is full, zeros to its end."""
    blocks, block = [], b""
    for payload in payloads:
        if len(block) + 2 + len(payload) > size:
            blocks.append(block.ljust(size, b"\0"))
            block = b""
        block += b"\x1f" + payload
    return [*blocks, block.ljust(size, b"\0")]


def write_v1(folder: Path, files: dict[str, Sequence[Any]], size: int, protocol: int = 4, masked: str = "") -> None:
    folder.mkdir(parents=True)
    infos, begin = [], 0
    for name, records in files.items():
        payloads = [pickle.dumps(np.array(r, dtype=np.int64), protocol=protocol) for r in records]
        blocks = blocks_of(payloads, size)
        (folder / name).write_bytes(b"".join(blocks))
        end = begin + len(blocks)
        infos.append(FileInfo(name, begin, end, sum(map(len, payloads)), len(records), name == masked))
        begin = end
    with cpm_live():
        (folder / "meta.bin").write_bytes(pickle.dumps(infos, protocol=4))


def write_v2(folder: Path, files: dict[str, Sequence[Any]], sizes: Sequence[int], as_json: bool) -> None:
    folder.mkdir(parents=True)
    lines, begin = [], 0
    for (name, records), size in zip(files.items(), sizes, strict=True):
        dumped = [json.dumps(r).encode() if as_json else pickle.dumps(np.array(r, dtype=np.int64)) for r in records]
        blocks = blocks_of([struct.pack("@I", len(d) + 4) + d for d in dumped], size)
        (folder / name).write_bytes(b"".join(blocks))
        end = begin + len(blocks)
        keys = ("file_name", "block_begin", "block_end", "nbytes", "nlines", "mask", "block_size")
        values = (name, begin, end, sum(len(d) + 4 for d in dumped), len(records), False, size)
        lines.append(json.dumps(dict(zip(keys, values, strict=True))) + "\n")
        begin = end
    (folder / "meta.bin").write_text("".join(lines))


def read_v1(folder: Path, size: int) -> tuple[list[tuple[Any, ...]], list[list[int]]]:
    """What CPM-Live's own classes would be given: the states of the files, and the records."""
    with cpm_live():
        infos = pickle.loads((folder / "meta.bin").read_bytes())
    records = []
    for info in infos:
        content = (folder / info.state[0]).read_bytes()
        for start in range(0, len(content), size):
            block = content[start : start + size]
            while block[0] != 0:
                assert block[0] == 0x1F
                array = pickle.loads(block[1:])
                assert array.dtype == np.int64
                records.append(array.tolist())
                block = block[1 + len(pickle_at(block[1:])) :]
    return [info.state for info in infos], records


def pickle_at(content: bytes) -> bytes:
    """The pickle that `content` begins with."""
    import io

    stream = io.BytesIO(content)
    pickle.Unpickler(stream).load()
    return content[: stream.tell()]


def some_records(count: int, seed: int = 0, longest: int = 30, words: int = 90) -> list[list[int]]:
    """Documents to fill in and to go on from, every place told from every other by its tokens."""
    draw = np.random.default_rng(seed)
    records = []
    for _ in range(count):
        ids = draw.integers(10, words, int(draw.integers(2, longest))).tolist()
        records.append([1, 1, len(ids), 1, 0, *ids] if draw.random() < 0.5 else [2, 1, len(ids), 2, 1, *ids])
    return records
