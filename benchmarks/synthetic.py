"""Weights of any size that nobody trained, as safetensors: drawn at random some megabytes at a time, or mostly holes.

Of a sparse file one row in so many is drawn, and the others are zeros that take no room on the disk; reading and
computing treat them as any number. Nothing here imports torch: what is measured is started from this process.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Shapes = Mapping[str, tuple[int, ...]]
AT_ONCE = 2**22  # numbers
BYTES = 2  # of a number, in all dtypes that are written here
SHARD_BYTES = 5 * 10**9


def write_shards(folder: Path, shapes: Shapes, shard_bytes: int = SHARD_BYTES, **drawn: Any) -> int:
    """Write a model's tensors as transformers names its files, with an index where there are several -> bytes.

    Args:
        drawn: see `write_weights`.
    """
    shards, room = [dict[str, tuple[int, ...]]()], shard_bytes
    for name, shape in shapes.items():
        size = BYTES * math.prod(shape)
        if shards[-1] and size > room:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = tuple(shape)
        room -= size
    if len(shards) == 1:
        return write_weights(folder / "model.safetensors", shapes, **drawn)
    names, total = dict[str, str](), 0
    for number, part in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        total += write_weights(folder / file, part, **drawn, seed=number)
        names |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": BYTES * sum(map(math.prod, shapes.values()))}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return total


def write_weights(
    path: Path,
    shapes: Shapes,
    *,
    dtype: str,
    std: Callable[[str], float],
    one_in: int = 1,
    seed: int = 0,
) -> int:
    """Write one safetensors file -> its size in bytes. Vectors are ones, as norms are in a fresh model.

    Args:
        dtype: F16 or BF16.
        std: of a matrix's numbers, by its name.
        one_in: of so many rows of a matrix one is drawn, and each time another of them; 0: none.
    """
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + BYTES * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    draw, store = np.random.Generator(np.random.SFC64(seed)), as_bfloat16 if dtype == "BF16" else np.float16
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        base = file.tell()
        file.truncate(base + end)
        for name, (first, _) in ((name, entry["data_offsets"]) for name, entry in header.items()):
            shape = shapes[name]
            if len(shape) == 1:
                file.seek(base + first)
                file.write(store(np.ones(shape, np.float32)).tobytes())
                continue
            for row, rows in _drawn(shape[0], one_in, math.prod(shape[1:])):
                numbers = draw.standard_normal((rows, *shape[1:]), np.float32) * np.float32(std(name))
                file.seek(base + first + BYTES * row * math.prod(shape[1:]))
                file.write(store(numbers).tobytes())
    return base + end


def _drawn(rows: int, one_in: int, width: int) -> Iterator[tuple[int, int]]:
    """List which rows are drawn, as the first one and how many."""
    if one_in > 1:
        yield from (((row + row // one_in % one_in) % rows, 1) for row in range(0, rows, one_in))
    elif one_in:
        step = max(1, AT_ONCE // width)
        yield from ((first, min(step, rows - first)) for first in range(0, rows, step))


def as_bfloat16(numbers: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round to the nearest number that has the upper half of the bits."""
    return ((numbers.view(np.uint32) + 0x8000) >> 16).astype(np.uint16)
