"""What stands in a GGUF file, where the package's own reader finds it, against what was to be written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader

from sprunec.checkpoint.gguf_file import PACKINGS, stored_at
from sprunec.checkpoint.gguf_writer import FileTensor, quantization
from sprunec.checkpoint.reader import Tensors
from sprunec.errors import ComparisonError
from sprunec.families.gguf.tokenizers import Field

# How far a number may be from what is stored for it: as a share of it, and, where many share a factor, of the largest.
ROUNDING = {"f32": 0.0, "f16": 2.0**-11, "bf16": 2.0**-8, "q8_0": 0.0}
LEAST = {"f32": 0.0, "f16": 2.0**-25, "bf16": 2.0**-134, "q8_0": 2.0**-18}  # of numbers too small for that
BLOCK, STEP = 32, 0.57 / 127  # half a step, and what the factor's own float16 makes of 127 of them


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
    there = {tensor.name: tensor for tensor in reader.tensors}
    if there.keys() != tensors.keys():
        strange = sorted(there.keys() ^ tensors.keys())[0]
        raise ComparisonError(f"{path.name} has not the tensors that were written: {strange}", {})
    worst = 0.0
    for name, tensor in tensors.items():
        shape, kind = tuple(there[name].shape.tolist()[::-1]), there[name].tensor_type
        if (shape, kind) != (tensor.shape, quantization(tensor.kind)):
            message = f"{name} is {shape} in {kind.name}, and was written as {tensor.shape}"
            raise ComparisonError(f"{path.name}: {message} in {tensor.kind}", {})
        place = stored_at(path, PACKINGS[kind], shape, there[name].data_offset)
        share = max(_shares(tensor, Tensors({name: place}), name), default=0.0)
        if not share <= 1.0:
            raise ComparisonError(f"{path.name}: a number of {name} is {share:.3g} times as far off as rounding is", {})
        worst = max(worst, share)
    return worst


def _same(field: Field, found: Any) -> bool:
    if field.kind == "FLOAT32":
        return found is not None and np.float32(field.value) == np.float32(found)
    return bool(found == field.value)


def _shares(tensor: FileTensor, stored: Tensors, name: str) -> Iterator[float]:
    """Compare some rows at a time: the largest difference of each as a share of what may be."""
    start = 0
    for part in tensor.parts():
        wanted = part.float().numpy()
        gap = np.abs(stored.rows(name, range(start, start + len(wanted))).numpy() - wanted)
        start += len(wanted)
        limit = np.abs(wanted) * ROUNDING[tensor.kind] + LEAST[tensor.kind]
        if tensor.kind == "q8_0":
            blocks = np.abs(wanted).reshape(-1, BLOCK)
            limit = limit + np.repeat(blocks.max(axis=1) * STEP, BLOCK).reshape(wanted.shape)
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = np.where(gap == 0, 0.0, gap / limit)
        yield float(shares.max()) if shares.size else 0.0
