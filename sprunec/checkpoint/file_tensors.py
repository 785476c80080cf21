"""Tensors that stay in their files: a model has them as its parameters, and each operation reads what it needs.

So a class runs in the memory of one weight, whatever its size and wherever it asks for its weights. Files are opened
with the library that their users have, and not with `reader`, which has no part in what this checks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor
from torch.utils._pytree import tree_map

from sprunec.checkpoint.header import read_places
from sprunec.checkpoint.safetensors_file import Shape

CHUNK_BYTES = 32 * 2**20  # of a matrix that a linear multiplies by
DTYPE = torch.float32
# What is known without reading, and what loaders do with a tensor that leaves it what it is.
_ABOUT = ("shape", "dtype", "device", "requires_grad", "is_meta", "layout", "is_leaf", "ndim", "is_sparse", "grad")
_ASKED = {getattr(Tensor, name).__get__ for name in (*_ABOUT, "grad_fn", "is_quantized", "is_cuda")}
_ASKED |= {Tensor.dim, Tensor.size, Tensor.numel, Tensor.nelement, Tensor.stride, Tensor.element_size, Tensor.__len__}
_ASKED |= {Tensor.is_contiguous, Tensor.is_floating_point, Tensor.is_complex, torch.is_floating_point, Tensor.__hash__}
_SAME = {Tensor.to, Tensor.float, Tensor.cpu, Tensor.contiguous, Tensor.detach, Tensor.requires_grad_}
_SAME |= {Tensor.data.__get__}  # type: ignore[attr-defined]


class FileTensor(Tensor):
    """A tensor of a safetensors file, in float32; of a table only the rows that are looked up are read.

    Torch hands the operations that it takes part in to `__torch_function__`, or below that to `__torch_dispatch__`.
    """

    _file: Path
    _name: str

    @staticmethod
    def __new__(cls, file: Path, name: str, shape: Shape) -> FileTensor:
        made: FileTensor = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=DTYPE)
        made._file, made._name = file, name
        return made

    def read(self, rows: Any = ...) -> Tensor:
        """Copy it, or some of its rows; the file is mapped only meanwhile."""
        with safe_open(self._file, "pt") as file:
            found: Tensor = file.get_tensor(self._name)[rows].to(DTYPE, copy=True)
        return found

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _ASKED:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        others = (each for each in (*args[1:], *kwargs.values()) if isinstance(each, torch.dtype))
        if func in _SAME and all(dtype == DTYPE for dtype in others):
            return args[0]
        if func is Tensor.__getitem__ and args[1] is Ellipsis:
            return args[0]
        if func is F.embedding and isinstance(args[1], cls):
            wanted, places = args[0].unique(return_inverse=True)
            return F.embedding(places, args[1].read(wanted))
        if func is F.linear and isinstance(args[1], cls):
            return _linear(*args, **kwargs)
        return func(*tree_map(_whole, args), **tree_map(_whole, kwargs))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return func(*tree_map(_whole, args), **tree_map(_whole, kwargs or {}))


def _whole(value: Any) -> Any:
    return value.read() if isinstance(value, FileTensor) else value


def _linear(values: Tensor, weight: FileTensor, bias: Tensor | None = None) -> Tensor:
    """Multiply by a large matrix some rows at a time."""
    rows, width = weight.shape
    at_once, bias = max(1, CHUNK_BYTES // max(1, width * DTYPE.itemsize)), _whole(bias)
    if rows <= at_once:
        return F.linear(values, weight.read(), bias)
    parts = (slice(first, first + at_once) for first in range(0, rows, at_once))
    some = (F.linear(values, weight.read(part), None if bias is None else bias[part]) for part in parts)
    return torch.cat(list(some), dim=-1)


def file_tensors(directory: Path) -> dict[str, FileTensor]:
    """Give the tensors of a checkpoint in safetensors; raises InputError as `read_places`."""
    places = read_places(directory)
    return {name: FileTensor(place.file, name, place.shape) for name, place in places.items()}
