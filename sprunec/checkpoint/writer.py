"""Write safetensors as a stream: the header from shapes and dtypes first, then every tensor's bytes, a few rows a time.

So what is written need never be in memory as a whole, and a file that was not finished is too short for its header:
nobody opens it by mistake. Shards come before the index that makes a model of them.
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from sprunec.checkpoint.layouts import (
    BIN_INDEX,
    INDEX,
    PT_WEIGHTS,
    SAFETENSORS,
    WEIGHTS,
    is_index,
    superseded,
    weight_files,
    weight_map,
)
from sprunec.checkpoint.reader import DTYPES, Tensors, open_tensors
from sprunec.checkpoint.safetensors_file import Shape, Stored, read_safetensors
from sprunec.checkpoint.torch_file import tensors_in
from sprunec.durable import link_file, naming, write_new
from sprunec.errors import PassError

SHARD_BYTES = 5 * 2**30
CHUNK_BYTES = 4 * 2**20
ROOM_TO_SPARE = 16 * 2**20
WORDS = {dtype: word for word, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Output:
    """A tensor that is to be written; `parts()` gives its rows in order, a few at a time.

    Each is made while the one before is written, and may lie where the one before that did.

    Attributes:
        place: where a file has just these numbers.
    """

    shape: Shape
    dtype: torch.dtype
    parts: Callable[[], Iterable[Tensor]]
    place: Stored | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def as_outputs(state: Mapping[str, Tensor]) -> dict[str, Output]:
    """Make outputs of a state as it is; a tensor of a lazy one is read chunk by chunk."""
    return {name: as_output(state, name) for name in state}


def as_output(state: Mapping[str, Tensor], name: str) -> Output:
    """Make an output of one tensor of a state as it is."""
    if isinstance(state, Tensors):
        place = state.places[name]
        stored = place if type(place) is Stored else None
        return Output(state.shape(name), state.dtype(name), lambda: read_rows(state, name), stored)
    whole = state[name]
    at_once = _rows_at_once(whole.shape, whole.dtype)
    return Output(tuple(whole.shape), whole.dtype, lambda: whole.split(at_once) if whole.dim() else [whole])


def read_rows(tensors: Tensors, name: str, rows: Sequence[int] | None = None) -> Iterator[Tensor]:
    """Read a tensor, or these of its rows, in chunks; only the last two are there at a time.

    Fresh memory for each would be cleared by the kernel first.
    """
    shape, dtype = tensors.shape(name), tensors.dtype(name)
    if not shape:
        yield tensors[name]
        return
    at_once, rows = _rows_at_once(shape, dtype), range(shape[0]) if rows is None else rows
    buffers = itertools.cycle(torch.empty((2, min(at_once, len(rows)), *shape[1:]), dtype=dtype))
    for first in range(0, len(rows), at_once):
        yield tensors.rows(name, rows[first : first + at_once], next(buffers))


def _rows_at_once(shape: Shape, dtype: torch.dtype) -> int:
    return max(1, CHUNK_BYTES // max(1, math.prod(shape[1:]) * dtype.itemsize))


def write_state(state: Mapping[str, Tensor], directory: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write a state into `directory`: one file, or shards with an index above `shard_bytes`."""
    write_outputs(as_outputs(state), directory, shard_bytes)


def write_outputs(outputs: Mapping[str, Output], directory: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Do as `write_state`, with tensors that are made while they are written.

    Raises PassError where the disk has no room, before anything is written, and OSError, where what is there is no
    whole file.
    """
    total, size, shards = sum(output.nbytes for output in outputs.values()), 0, [list[str]()]
    check_room(directory, total)
    for name, output in outputs.items():
        if shards[-1] and size + output.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += output.nbytes
    if len(shards) == 1:
        _write_file(outputs, directory / WEIGHTS)
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file({name: outputs[name] for name in names}, directory / file)
        weight_map |= dict.fromkeys(names, file)
    _write_index(weight_map, outputs, directory)


def _write_index(weight_map: Mapping[str, str], outputs: Mapping[str, Output], directory: Path) -> None:
    total = sum(output.nbytes for output in outputs.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_new(directory / INDEX, json.dumps(index, indent=1))


def link_or_write(outputs: Mapping[str, Output], directory: Path) -> None:
    """Do as `write_outputs`, and write nothing where an artifact has files of just these tensors, by these names.

    They get second names then, as shards of any size. A user's own file, which an artifact links to, is written anew.
    """
    places = {name: output.place for name, output in outputs.items()}
    files = {place.file: place.file.name for place in places.values() if place is not None}
    own = [file for file in files if file.suffix in SAFETENSORS and not file.is_symlink()]
    if places != {name: place for file in own for name, place in read_safetensors(file).items()}:
        write_outputs(outputs, directory)
        return
    if len(files) == 1:
        files = dict.fromkeys(files, WEIGHTS)
    for file, name in files.items():
        link_file(file, directory / name)
    if len(files) > 1:
        _write_index(
            {name: files[place.file] for name, place in places.items() if place is not None}, outputs, directory
        )


def save_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a state as one safetensors file, of any name."""
    _write_file(as_outputs(state), path)


def save_pt(content: Any, path: Path) -> None:
    """Do as `torch.save`, through a file of Python's: a disk that fails is then an OSError that says how."""
    with naming(path, nbytes_in(content)), path.open("wb") as stream:
        torch.save(content, stream)


def nbytes_in(content: Any) -> int:
    """Count the bytes of all tensors in a nested state."""
    return sum(tensor.nbytes for tensor in tensors_in(content))


def check_room(directory: Path, needed: int) -> None:
    """Raises PassError unless the disk under `directory` has `needed` bytes, and a little more."""
    free = shutil.disk_usage(directory).free
    if needed + ROOM_TO_SPARE > free:
        sizes = f"the weights need {needed / 1e9:.2f} GB and this disk has {free / 1e9:.2f} GB left"
        raise PassError(f"{directory}: {sizes}; make room, or give --out on another disk")


def _write_file(outputs: Mapping[str, Output], path: Path) -> None:
    # Wide dtypes first, so that every tensor starts at a multiple of its own width.
    order = dict(sorted(outputs.items(), key=lambda item: -item[1].dtype.itemsize))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, output in order.items():
        start, end = end, end + output.nbytes
        header[name] = {"dtype": WORDS[output.dtype], "shape": list(output.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with naming(path, 8 + len(text) + end), path.open("wb") as file, ThreadPoolExecutor(1) as reader:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, output in order.items():
            write_tensor(file, reader, name, output)


def write_tensor(file: IO[bytes], reader: Executor, name: str, output: Output) -> None:
    """Write its bytes, and make the next of its parts meanwhile."""
    written, parts = 0, iter(output.parts())
    coming = reader.submit(next, parts, None)
    while (part := coming.result()) is not None:
        coming = reader.submit(next, parts, None)
        assert part.dtype == output.dtype, f"{name} is {part.dtype}, its header says {output.dtype}"
        plain = part.detach().cpu().contiguous()
        if plain.numel():
            written += file.write(plain.flatten().view(torch.uint8).numpy().data)
    assert written == output.nbytes, f"{name} has {written} bytes, its header says {output.nbytes}"


def adopt_weights(path: Path, directory: Path) -> None:
    """Give `directory` the user's own checkpoint: links to its files, by the names that a model's weights have."""
    files = weight_files(path)
    safe = files[-1].name.endswith(SAFETENSORS)
    first = (INDEX if safe else BIN_INDEX) if is_index(files[0]) else WEIGHTS if safe else PT_WEIGHTS
    for file in files:
        (directory / (first if file is files[0] else file.name)).symlink_to(file.resolve())


def link_weights(source: Path, directory: Path) -> None:
    """Give `directory` an artifact's weights: links to what are the user's files, second names for the store's own."""
    for file in weight_files(source):
        _link(file, directory / file.name)


def overlay_weights(source: Path, newer: Sequence[Path], directory: Path) -> None:
    """Give `directory` an artifact's weights as `link_weights` does, but for the tensors that newer files have."""
    older = weight_files(source)
    said = weight_map(older[0]) if is_index(older[0]) else dict.fromkeys(open_tensors(source), older[0].name)
    links = {file.name: f"earlier-{number:05d}{file.suffix}" for number, file in enumerate(older) if not is_index(file)}
    for file in older:
        if file.name in links:
            _link(file, directory / links[file.name])
    weights, old = {name: links[shard] for name, shard in said.items()}, set[str]()
    for file in newer:
        _link(file, directory / file.name)
        new = dict.fromkeys(read_safetensors(file), file.name)
        old |= weights.keys() & new.keys()
        weights |= new
    old |= superseded(older[0]) if is_index(older[0]) else set()
    index = {"metadata": {"superseded": sorted(old)}, "weight_map": weights}
    write_new(directory / INDEX, json.dumps(index, indent=1))


def _link(file: Path, target: Path) -> None:
    if file.is_symlink():
        target.symlink_to(file.resolve())
    else:
        link_file(file, target)
