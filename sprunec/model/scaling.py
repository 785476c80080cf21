"""Tensors times a factor, and a checkpoint by whatever names as the tensors of a CPM-Ant."""

from __future__ import annotations

import torch
from torch import Tensor

from sprunec.model.config import ModelConfig
from sprunec.model.head import head_and_words
from sprunec.model.hf import Part, parts
from sprunec.model.tensors import Tensors
from sprunec.model.writing import Output, rows_at_once


def scaled(tensor: Tensor, factor: float, dtype: torch.dtype | None = None) -> Tensor:
    """`tensor` times `factor` in `dtype` (None: its own), computed in float64 and rounded once."""
    dtype = dtype or tensor.dtype
    return tensor.to(dtype) if factor == 1.0 else (tensor.double() * factor).to(dtype)


def native_outputs(config: ModelConfig, tensors: Tensors) -> dict[str, Output]:
    """The tensors of `config` out of a checkpoint that has all of them, each made when it is written.

    Weights with a factor in them come out in float32, all of the model's with them: in half precision the way there
    and back would round twice.
    """
    found = parts(config, tensors)
    dtype = torch.float32 if any(part.factor != 1.0 for part in found.values()) else None

    def output(part: Part) -> Output:
        shape = part.shape(tensors.shape(part.name))
        return Output(shape, dtype or tensors.dtype(part.name), lambda: [_take(part, tensors, dtype)])

    return {name: output(part) for name, part in found.items()}


def _take(part: Part, tensors: Tensors, dtype: torch.dtype | None) -> Tensor:
    """One part of a file's tensor, in our scale."""
    whole = tensors[part.name] if part.rows is None else tensors.rows(part.name, range(*part.rows))
    return scaled(whole, part.factor, dtype)


def own_head(config: ModelConfig, tensors: Tensors) -> str | None:
    """The name of a head that does not repeat its rows of words, to the byte; None where all is one table.

    As `has_own_head`, of whatever torch can open.
    """
    names = head_and_words(tensors)
    if names is None:
        return None
    return None if _same_rows(tensors, *names, config.vocab_size) else names[0]


def _same_rows(tensors: Tensors, one: str, other: str, count: int) -> bool:
    """Whether the first rows of two tables are the same bytes; tables of other shapes or dtypes differ."""
    shapes = [tensors.shape(name) for name in (one, other)]
    if tensors.dtype(one) != tensors.dtype(other) or any(len(shape) != 2 or shape[0] < count for shape in shapes):
        return False
    if shapes[0][1:] != shapes[1][1:]:
        return False
    rows = rows_at_once(shapes[0], tensors.dtype(one))
    parts = (range(first, min(first + rows, count)) for first in range(0, count, rows))
    return all(_bytes(tensors.rows(one, part)).equal(_bytes(tensors.rows(other, part))) for part in parts)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)
