"""Tensors times a factor, and a checkpoint by whatever names as the tensors of a CPM-Ant."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sprunec.model.config import ModelConfig
from sprunec.model.head import head_and_words
from sprunec.model.hf import Part, parts
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
    """
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


def own_head(config: ModelConfig, tensors: Mapping[str, Tensor]) -> str | None:
    """The name of a head that does not repeat its rows of words, to the byte; None where all is one table.

    As `has_own_head`, of whatever torch can open.
    """
    names = head_and_words(tensors)
    if names is None:
        return None
    count = config.vocab_size * config.dim_model
    head, words = (tensors[name].flatten()[:count] for name in names)
    same = head.dtype == words.dtype and torch.equal(head.view(torch.uint8), words.view(torch.uint8))
    return None if same else names[0]
