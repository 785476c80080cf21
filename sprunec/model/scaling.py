"""Tensors times a factor, and a checkpoint by whatever names as the tensors of a CPM-Ant."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sprunec.model.config import ModelConfig
from sprunec.model.hf import HEAD, STOCK_PREFIX, WORDS, Part, parts
from sprunec.model.tensors import Tensors
from sprunec.model.writing import Output


def scaled(tensor: Tensor, factor: float, dtype: torch.dtype | None = None) -> Tensor:
    """`tensor` times `factor` in `dtype` (None: its own), computed in float64 and rounded once."""
    dtype = dtype or tensor.dtype
    return tensor.to(dtype) if factor == 1.0 else (tensor.double() * factor).to(dtype)


def native_outputs(config: ModelConfig, tensors: Tensors) -> dict[str, Output]:
    """The tensors of `config` out of a checkpoint that has all of them, each made when it is written.

    Weights with a factor in them come out in float32, all of the model's with them: in half precision the way there
    and back would round twice.

    Raises:
        ValueError: the head is not the table of words, which it is in CPM-Ant.
    """
    _one_table(config, tensors)
    found = parts(config, tensors)
    dtype = torch.float32 if any(part.factor != 1.0 for part in found.values()) else None

    def output(part: Part) -> Output:
        shape = part.shape(tensors.shape(part.name))
        return Output(shape, dtype or tensors.dtype(part.name), lambda: [take(part, tensors[part.name], dtype)])

    return {name: output(part) for name, part in found.items()}


def take(part: Part, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """One part of a file's tensor, in our scale."""
    if part.rows is not None:
        tensor = tensor[slice(*part.rows)]
    return scaled(tensor, part.factor, dtype)


def _one_table(config: ModelConfig, state: Mapping[str, Tensor]) -> None:
    """Hugging Face's head is a tensor of its own, and may have been trained apart."""
    head, words = state.get(HEAD), state.get(STOCK_PREFIX + WORDS)
    if (
        head is not None
        and words is not None
        and not torch.equal(head[: config.vocab_size], words[: config.vocab_size])
    ):
        raise ValueError(f"{HEAD} differs from {STOCK_PREFIX}{WORDS}, and CPM-Ant has one table for both")
