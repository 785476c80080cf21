"""Tensors times a factor, and a checkpoint by whatever names as the tensors of a CPM-Ant."""

from __future__ import annotations

import torch
from torch import Tensor

from sprunec.checkpoint.reader import Tensors
from sprunec.checkpoint.writer import Output
from sprunec.families.cards import Part
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.families.cpm_ant.huggingface_names import parts


def scaled(tensor: Tensor, factor: float, dtype: torch.dtype | None = None) -> Tensor:
    """Multiply `tensor` by `factor` into `dtype` (None: its own), in float64 and rounded once."""
    dtype = dtype or tensor.dtype
    return tensor.to(dtype) if factor == 1.0 else (tensor.double() * factor).to(dtype)


def native_outputs(config: ModelConfig, tensors: Tensors) -> dict[str, Output]:
    """Make the tensors of `config` out of a checkpoint that has all of them, each when it is written.

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
    """Read one part of a file's tensor, in our scale."""
    whole = tensors[part.name] if part.rows is None else tensors.rows(part.name, range(*part.rows))
    return scaled(whole, part.factor, dtype)
