"""Numbers of a GGUF file's tensors as float32: halves as they are, quantised ones as the package `gguf` has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sprunec.checkpoint.dtypes import FIX_NUMBERS
from sprunec.checkpoint.gguf_file import Packed
from sprunec.durable import read_into
from sprunec.errors import InputError

INSTALL = "pip install 'sprunec[gguf]'"


def read_packed(place: Packed, name: str, spans: list[tuple[int, int]] | None = None) -> Tensor:
    """Read a tensor, or of its rows those from each first to behind each last one, as float32.

    Raises:
        InputError: a number is not finite, or the package that knows how it is stored is not installed.
    """
    whole = spans is None
    parts = [(0, place.extent)] if spans is None else [(a * place.row_bytes, b * place.row_bytes) for a, b in spans]
    raw = np.empty(sum(last - first for first, last in parts), np.uint8)
    read_into(place.file, [(place.start + first, place.start + last) for first, last in parts], raw.data)
    found = _numbers(place, raw)
    if not np.isfinite(found).all():
        message = f"{name} has numbers that are not finite"
        raise InputError.at(place.file, message, FIX_NUMBERS, code="not-finite")
    return torch.from_numpy(found).view(place.shape if whole else (-1, *place.shape[1:]))


def _numbers(place: Packed, raw: NDArray[Any]) -> NDArray[Any]:
    kind = place.packing.name
    if kind == "F16":
        return raw.view(np.float16).astype(np.float32)
    if kind == "BF16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    try:
        from gguf import GGMLQuantizationType, quants
    except ImportError as error:
        message = f"its weights are stored as {kind}, which needs the package gguf"
        raise InputError.at(place.file, message, INSTALL, "missing-package") from error
    blocks = raw.reshape(-1, place.shape[-1] // place.packing.entries * place.packing.nbytes)
    with np.errstate(all="ignore"):  # factors of a hostile file; what comes out is checked
        found: NDArray[Any] = quants.dequantize(blocks, GGMLQuantizationType[kind])
    return found.astype(np.float32, copy=False)
