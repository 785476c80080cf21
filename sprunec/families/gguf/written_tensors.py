"""A model's tensors as a GGUF file has them: by its names, in its order, made a few rows at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from sprunec.checkpoint.gguf_writer import FileTensor
from sprunec.checkpoint.reader import Tensors
from sprunec.checkpoint.safetensors_file import Shape
from sprunec.checkpoint.writer import CHUNK_BYTES, read_rows
from sprunec.families.gguf.architecture import Architecture, Order
from sprunec.families.gguf.file_names import HEAD, TABLE, Origin, origins
from sprunec.families.gguf.graph_fit import about, layers_of
from sprunec.families.gguf.metadata import frequency_factors
from sprunec.families.gguf.orders import row_order
from sprunec.families.huggingface.transformers_config import TransformersConfig

EXACT = "f32"  # what norms, biases and tables of positions are stored in whatever the matrices are
POSITIONS = "position_embd"
PACKED = {"q8_0": 32}  # numbers of a row that share a factor
LOOSE = {torch.bfloat16: "bf16"}  # what rows are stored in that do not part into so many; f16 for all else


def file_tensors(config: TransformersConfig, row: Architecture, state: Tensors, kind: str) -> dict[str, FileTensor]:
    """List the tensors of a file, by their names there.

    Args:
        kind: what matrices are stored in, those of them whose rows it can pack.
    """
    found, loose = dict[str, FileTensor](), LOOSE.get(state.dtype(next(iter(state))), "f16")
    shapes = _filled(config, row).tensors()
    for name, origin in placed(config, row).items():
        shape = origin.turned(shapes[name])
        parts = partial(_parts, state, name, origin) if name in state else partial(_zeros, shape)
        found[origin.name] = FileTensor(shape, _kind(origin.name, shape, kind, loose), parts)
    if row.tied is False and config.tie_word_embeddings:
        found[HEAD] = found[TABLE]
    for name, values in frequency_factors(config, row).items():
        found[name] = FileTensor((len(values),), EXACT, partial(_of, values))
    return found


def placed(config: TransformersConfig, row: Architecture) -> dict[str, Origin]:
    """Say by a directory's names where its tensors are in the file, and what they are multiplied by."""
    found = origins(_filled(config, row), row)
    if not row.score_scale:
        return found
    # Queries come through a norm, where there is one, before they are multiplied with keys.
    last = ".self_attn.q_norm." if "self_attn.q_norm" in row.block else ".self_attn.q_proj."
    factor = _score_factor(config, row)
    return {name: origin._replace(factor=factor) if last in name else origin for name, origin in found.items()}


def _filled(config: TransformersConfig, row: Architecture) -> TransformersConfig:
    """Give the config of the file's layers, by their numbers in the plan's input model."""
    there = dict(zip(config.left, layers_of(config, row), strict=True))
    return config.with_layers(there.get(index, layer) for index, layer in enumerate(config.layers))


def _kind(name: str, shape: Shape, kind: str, loose: str) -> str:
    if len(shape) < 2 or name.startswith(POSITIONS):
        return EXACT
    return loose if kind in PACKED and shape[-1] % PACKED[kind] else kind


def _score_factor(config: TransformersConfig, row: Architecture) -> float:
    """Say what queries are multiplied by so that a graph which divides scores by another number computes the model."""
    layer = config.layers[config.left[0]]
    there = config.width // layer.heads if len(config.left) == row.whole_scale else layer.dim_head
    return math.sqrt(there / about(config, row).get(row.score_scale, 256))


def _parts(state: Tensors, name: str, origin: Origin) -> Iterator[Tensor]:
    """Make its rows in order, a few at a time."""
    shape = state.shape(name)
    if origin.order is Order.TURNED and len(shape) == 2:
        whole = state[name]
        at_once = max(1, CHUNK_BYTES // (shape[0] * whole.itemsize))
        yield from (part.T.contiguous() for part in whole.split(at_once, dim=1))
        return
    for part in read_rows(state, name, row_order(origin.order, shape[0], origin.units)):
        plus = part.float() + 1 if origin.order is Order.PLUS_ONE else part
        yield plus.float() * origin.factor if origin.factor != 1.0 else plus


def _of(values: list[float]) -> list[Tensor]:
    return [torch.tensor(values)]


def _zeros(shape: Shape) -> Iterator[Tensor]:
    yield torch.zeros(shape)
