"""Write a GGUF file as a stream: what stands in front first, then every tensor's bytes, a few rows at a time.

The package `gguf` lays out what stands in front, and quantizes; see its `GGUFWriter` and `quants`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sprunec.checkpoint.safetensors_file import Shape
from sprunec.checkpoint.writer import Output, check_room, write_tensor
from sprunec.durable import naming
from sprunec.errors import FormatError

FLOATS = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


class FileTensor(NamedTuple):
    """A tensor that is to be written; `parts()` gives its rows in order, a few at a time, of any float dtype.

    Attributes:
        kind: what it is stored in: f32, f16, bf16, q8_0.
    """

    shape: Shape
    kind: str
    parts: Callable[[], Iterable[Tensor]]


def write_gguf(
    path: Path, architecture: str, fields: Iterable[tuple[str, Any, str, str]], tensors: Mapping[str, FileTensor]
) -> None:
    """Write the file; what is not whole has no name that anybody opens, as the folder it stands in.

    Args:
        fields: key, value, GGUF's type of it, and of a list's entries.

    Raises:
        PassError: the disk has no room; nothing has been written.
        FormatError: a number is beyond what it is to be stored in.
    """
    from gguf import GGUFValueType, GGUFWriter

    total = sum(stored_bytes(tensor) for tensor in tensors.values())
    check_room(path.parent, total)
    writer = GGUFWriter(path, architecture)
    for key, value, kind, of in fields:
        writer.add_key_value(key, value, GGUFValueType[kind], GGUFValueType[of] if of else None)
    for name, tensor in tensors.items():
        kind = quantization(tensor.kind)
        writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), stored_bytes(tensor), raw_dtype=kind)
    with naming(path, total), ThreadPoolExecutor(1) as reader:
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            assert writer.fout is not None
            file = writer.fout[0]
            for name, tensor in tensors.items():
                writer.write_padding(file, file.tell())
                size = stored_bytes(tensor)
                write_tensor(file, reader, name, Output((size,), torch.uint8, partial(stored_parts, name, tensor)))
            writer.write_padding(file, file.tell())
        finally:
            writer.close()


def quantization(kind: str) -> Any:
    """Give the package's name of a type."""
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType[kind.upper()]


def stored_bytes(tensor: FileTensor) -> int:
    from gguf import GGML_QUANT_SIZES

    block, size = GGML_QUANT_SIZES[quantization(tensor.kind)]
    count: int = math.prod(tensor.shape) // block * size
    return count


def stored_parts(name: str, tensor: FileTensor) -> Iterator[Tensor]:
    """Make the bytes of its rows, a few at a time.

    Raises:
        FormatError: a number is beyond the type.
    """
    from gguf import quants

    for part in tensor.parts():
        if tensor.kind not in FLOATS:
            packed = quants.quantize(part.float().numpy(), quantization(tensor.kind))
            yield torch.from_numpy(packed).flatten()
            continue
        found = part.to(FLOATS[tensor.kind])
        if tensor.kind == "f16" and not torch.isfinite(found).all():
            raise FormatError(f"{name} has numbers above 65504, which f16 does not hold; write another type")
        yield found.contiguous().flatten().view(torch.uint8)
