"""A small model's weights for classes whose divisors follow the widths: what the widths change is folded in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from sprunec.checkpoint.reader import Tensors
from sprunec.checkpoint.writer import Output, as_output
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.families.cpm_ant.huggingface_names import is_scaled
from sprunec.families.cpm_ant.scaling import scaled
from sprunec.families.cpm_ant.uniform import fold_factors

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TABLE = "position_bias.relative_attention_bias"


def folded(config: ModelConfig, state: Tensors, dtype: str, plain_linears: bool = False) -> dict[str, Output]:
    """Make the tensors for `even_config(config)`, each when it is written, in our names.

    Args:
        dtype: what they are stored in; "keep": what they are.
        plain_linears: fold 1 / sqrt(width) in as well, for linears that do not divide.
    """
    factors, columns = dict(fold_factors(config)), config.head_sets
    outputs = {}
    for name, shape in state.shapes().items():
        factor, kept = factors.get(name, 1.0), None
        if plain_linears and is_scaled(name):
            factor *= 1.0 / math.sqrt(shape[1])
        if name == TABLE and columns:
            kept, shape = torch.tensor(columns[0]), (shape[0], len(columns[0]))
        parts = partial(_parts, state, name, factor, kept, DTYPES.get(dtype))
        outputs[name] = Output(shape, DTYPES.get(dtype, state.dtype(name)), parts)
    return outputs


def _parts(
    state: Tensors, name: str, factor: float, columns: Tensor | None, dtype: torch.dtype | None
) -> Iterator[Tensor]:
    """Scale some rows of a tensor at a time: their float64 products need not all be in memory."""
    for part in as_output(state, name).parts():
        yield scaled(part if columns is None else part.index_select(1, columns), factor, dtype)


def stored_dtype(state: Tensors, dtype: str) -> torch.dtype:
    """Choose what the folded weights are stored in: where tensors differ, the coarsest."""
    if dtype in DTYPES:
        return DTYPES[dtype]
    return max((state.dtype(name) for name in state), key=lambda kind: torch.finfo(kind).eps)
