"""What stands in a GGUF file, by the package's own reader: against what was to be written, and as a model's tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGUFReader, quants
from numpy.typing import NDArray
from torch import Tensor

from sprunec.checkpoint.gguf_writer import FileTensor, quantization
from sprunec.checkpoint.reader import Tensors, runs
from sprunec.checkpoint.safetensors_file import Shape
from sprunec.durable import read_into
from sprunec.errors import ComparisonError
from sprunec.families.gguf.architecture import Order
from sprunec.families.gguf.orders import row_order
from sprunec.families.gguf.tokenizers import Field
from sprunec.families.gguf.written_tensors import Source

# How far a number may be from what is stored for it: as a share of it, and, where many share a factor, of the largest.
ROUNDING = {"f32": 0.0, "f16": 2.0**-11, "bf16": 2.0**-8, "q8_0": 0.0}
LEAST = {"f32": 0.0, "f16": 2.0**-25, "bf16": 2.0**-134, "q8_0": 2.0**-18}  # of numbers too small for that
BLOCK, STEP = 32, 0.57 / 127  # half a step, and what the factor's own float16 makes of 127 of them


class InFile(NamedTuple):
    """Where a tensor lies; nothing is mapped, see `checkpoint.reader`."""

    file: Path
    start: int
    shape: Shape
    kind: Any

    def rows(self, wanted: Sequence[int]) -> NDArray[np.float32]:
        """Read these rows, or of a list of numbers these, as float32."""
        block, size = GGML_QUANT_SIZES[self.kind]
        width = math.prod(self.shape[1:]) // block * size if len(self.shape) > 1 else size
        spans = [(self.start + first * width, self.start + last * width) for first, last in runs(wanted)]
        data = np.empty((len(wanted), width), dtype=np.uint8)
        read_into(self.file, spans, data.data.cast("B"))
        found: NDArray[np.float32] = quants.dequantize(data, self.kind).reshape(len(wanted), *self.shape[1:])
        return found


def tensors_in(file: Path, reader: GGUFReader) -> dict[str, InFile]:
    """List a file's tensors by name; shapes are as torch has them."""
    found = {}
    for tensor in reader.tensors:
        shape = tuple(int(size) for size in reversed(tensor.shape))
        found[tensor.name] = InFile(file, tensor.data_offset, shape, tensor.tensor_type)
    return found


def check_file(path: Path, fields: Iterable[Field], tensors: Mapping[str, FileTensor]) -> float:
    """Compare a file with what was to be written -> the largest difference of a number, as a share of what may be.

    Raises:
        ComparisonError: a key, a shape, a type or a number is another one.
    """
    reader = GGUFReader(path)
    for field in fields:
        found = reader.fields[field.key].contents() if field.key in reader.fields else None
        if not _same(field, found):
            raise ComparisonError(f"{path.name} says {field.key} is {found}, and it is {field.value}", {})
    there = tensors_in(path, reader)
    if there.keys() != tensors.keys():
        strange = sorted(there.keys() ^ tensors.keys())[0]
        raise ComparisonError(f"{path.name} has not the tensors that were written: {strange}", {})
    worst = 0.0
    for name, tensor in tensors.items():
        stored = there[name]
        if (stored.shape, stored.kind) != (tensor.shape, quantization(tensor.kind)):
            message = f"{name} is {stored.shape} in {stored.kind.name}, and was written as {tensor.shape}"
            raise ComparisonError(f"{path.name}: {message} in {tensor.kind}", {})
        share = max(_shares(tensor, stored), default=0.0)
        if not share <= 1.0:
            raise ComparisonError(f"{path.name}: a number of {name} is {share:.3g} times as far off as rounding is", {})
        worst = max(worst, share)
    return worst


def _same(field: Field, found: Any) -> bool:
    if field.kind == "FLOAT32":
        return found is not None and np.float32(field.value) == np.float32(found)
    return bool(found == field.value)


def _shares(tensor: FileTensor, stored: InFile) -> Iterator[float]:
    """Compare some rows at a time: the largest difference of each as a share of what may be."""
    start = 0
    for part in tensor.parts():
        wanted = part.float().numpy()
        gap = np.abs(stored.rows(range(start, start + len(wanted))) - wanted)
        start += len(wanted)
        limit = np.abs(wanted) * ROUNDING[tensor.kind] + LEAST[tensor.kind]
        if tensor.kind == "q8_0":
            blocks = np.abs(wanted).reshape(-1, BLOCK)
            limit = limit + np.repeat(blocks.max(axis=1) * STEP, BLOCK).reshape(wanted.shape)
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = np.where(gap == 0, 0.0, gap / limit)
        yield float(shares.max()) if shares.size else 0.0


class FileState(Tensors):
    """A model's tensors out of a file, by the directory's names and in its order, in float32.

    Args:
        sources: by these names, that in the file, and how the tensor has got there.
    """

    def __init__(self, path: Path, shapes: Mapping[str, Shape], sources: Mapping[str, tuple[str, Source]]) -> None:
        super().__init__({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
        self._there = tensors_in(path, GGUFReader(path))
        self._sources = sources

    def __getitem__(self, name: str) -> Tensor:
        shape = self.shape(name)
        return self.rows(name, range(shape[0])) if shape else super().__getitem__(name)

    def rows(self, name: str, kept: Sequence[int], buffer: Tensor | None = None) -> Tensor:
        (file_name, source), wanted = self._sources[name], np.asarray(kept)
        there = self._there[file_name]
        if source.order is Order.TURNED and len(there.shape) == 2:
            return torch.from_numpy(there.rows(range(there.shape[0])).T[wanted].copy())
        if source.order not in (Order.SAME, Order.PLUS_ONE):
            wanted = np.argsort(row_order(source.order, there.shape[0], source.units))[wanted]
        found = torch.from_numpy(there.rows(wanted.tolist()))
        return found / source.factor - float(source.order is Order.PLUS_ONE)

    def dtype(self, name: str) -> torch.dtype:
        return torch.float32
