"""A model's tensors as a GGUF file has them: by its names, in its order, made a few rows at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sprunec.checkpoint.gguf_writer import FileTensor
from sprunec.checkpoint.reader import Tensors
from sprunec.checkpoint.safetensors_file import Shape
from sprunec.checkpoint.writer import CHUNK_BYTES, read_rows
from sprunec.families.gguf.architecture import Architecture, Order
from sprunec.families.gguf.graph_fit import about, layers_of
from sprunec.families.gguf.metadata import frequency_factors
from sprunec.families.gguf.orders import row_order
from sprunec.families.huggingface.transformers_config import TransformersConfig, TransformersLayer

EXACT = "f32"  # what norms, biases and tables of positions are stored in whatever the matrices are
POSITIONS = "position_embd"
PACKED = {"q8_0": 32}  # numbers of a row that share a factor
LOOSE = {torch.bfloat16: "bf16"}  # what rows are stored in that do not part into so many; f16 for all else


@dataclass(frozen=True)
class Source:
    """Where a file's tensor comes from.

    Attributes:
        name: the directory's tensor.
        units: heads or key-value groups that its rows are of.
        factor: that it is multiplied by.
    """

    name: str
    order: Order = Order.SAME
    units: int = 1
    factor: float = 1.0


def file_tensors(config: TransformersConfig, row: Architecture, state: Tensors, kind: str) -> dict[str, FileTensor]:
    """List the tensors of a file, by their names there.

    Args:
        kind: what matrices are stored in, those of them whose rows it can pack.
    """
    found, loose = dict[str, FileTensor](), LOOSE.get(state.dtype(next(iter(state))), "f16")
    shapes = _filled(config, row).tensors()
    for name, (file_name, source) in placed(config, row).items():
        shape = shapes[name]
        if source.order is Order.TURNED and len(shape) == 2:
            shape = (shape[1], shape[0])
        parts = partial(_parts, state, source) if name in state else partial(_zeros, shape)
        found[file_name] = FileTensor(shape, _kind(file_name, shape, kind, loose), parts)
    if row.tied is False and config.tie_word_embeddings:
        found["output.weight"] = found["token_embd.weight"]
    for name, values in frequency_factors(config, row).items():
        found[name] = FileTensor((len(values),), EXACT, partial(_of, values))
    return found


def placed(config: TransformersConfig, row: Architecture) -> dict[str, tuple[str, Source]]:
    """Say by a directory's names what tensors are called in the file, and how they get there."""
    layers = layers_of(config, row)
    return {name: _place(config, row, layers, name) for name in _filled(config, row).tensors()}


def _filled(config: TransformersConfig, row: Architecture) -> TransformersConfig:
    """Give the config of the file's layers, by their numbers in the plan's input model."""
    there = dict(zip(config.left, layers_of(config, row), strict=True))
    return config.with_layers(there.get(index, layer) for index, layer in enumerate(config.layers))


def _kind(name: str, shape: Shape, kind: str, loose: str) -> str:
    if len(shape) < 2 or name.startswith(POSITIONS):
        return EXACT
    return loose if kind in PACKED and shape[-1] % PACKED[kind] else kind


def _place(
    config: TransformersConfig, row: Architecture, layers: Sequence[TransformersLayer], name: str
) -> tuple[str, Source]:
    blocks, (module, _, what) = f"{config.layout.blocks}.", name.rpartition(".")
    if not name.startswith(blocks):
        found = row.tables[module]
        return f"{found.name}.{what}", Source(name, found.order)
    index, _, inside = module.removeprefix(blocks).partition(".")
    number, found = config.left.index(int(index)), row.block[inside]
    layer = layers[number]
    units = (layer.kv_groups or layer.heads) if found.order is Order.KEYS else layer.heads
    factor = score_factor(config, row) if inside == _scaled(row) else 1.0
    return f"blk.{number}.{found.name}.{what}", Source(name, found.order, units, factor)


def _scaled(row: Architecture) -> str:
    """Name the last module that queries come through before they are multiplied with keys."""
    return next(name for name in ("self_attn.q_norm", "self_attn.q_proj", "") if name in row.block or not name)


def score_factor(config: TransformersConfig, row: Architecture) -> float:
    """Say what queries are multiplied by so that a graph which divides scores by another number computes the model."""
    if not row.score_scale:
        return 1.0
    layer = config.layers[config.left[0]]
    there = config.width // layer.heads if len(config.left) == row.whole_scale else layer.dim_head
    return math.sqrt(there / about(config, row).get(row.score_scale, 256))


def _parts(state: Tensors, source: Source) -> Iterator[Tensor]:
    """Make its rows in order, a few at a time."""
    shape = state.shape(source.name)
    if source.order is Order.TURNED and len(shape) == 2:
        whole = state[source.name]
        at_once = max(1, CHUNK_BYTES // (shape[0] * whole.itemsize))
        yield from (part.T.contiguous() for part in whole.split(at_once, dim=1))
        return
    for part in read_rows(state, source.name, row_order(source.order, shape[0], source.units)):
        plus = part.float() + 1 if source.order is Order.PLUS_ONE else part
        yield plus.float() * source.factor if source.factor != 1.0 else plus


def _of(values: list[float]) -> list[Tensor]:
    return [torch.tensor(values)]


def _zeros(shape: Shape) -> Iterator[Tensor]:
    yield torch.zeros(shape)
