"""Small files that torch has saved, by anyone: nothing in them runs, and no tensor is larger than its file."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sprunec.checkpoint.unfolded import check_unfolded
from sprunec.checkpoint.unreadable import Unsafe
from sprunec.durable import naming


def load_bounded(path: Path) -> Any:
    """As `torch.load(weights_only=True)`, on the CPU.

    Raises:
        Unsafe: it is compressed, or a tensor has more entries than there are in the file; says which.
        Exception: whatever torch finds wrong with it.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
                raise Unsafe("it is compressed, which torch.save never does")
    check_unfolded(path)
    with naming(path):
        content = torch.load(path, map_location="cpu", weights_only=True)
    for tensor in tensors_in(content):
        if tensor.layout is torch.strided and not tensor.is_meta and tensor.nbytes > tensor.untyped_storage().nbytes():
            raise Unsafe(f"a tensor claims {tensor.numel():,} entries, and the file has fewer")
    return content


def tensors_in(content: Any) -> Iterator[Tensor]:
    """Every tensor of a nested state, once: what holds itself twice, and again inside, would never end."""
    waiting, seen = [content], set[int]()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
