"""What tensors of a model of `transformers` are called in a GGUF file, and how they lie there; needs no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from sprunec.checkpoint.safetensors_file import Shape
from sprunec.families.gguf.architecture import FREQUENCIES, LONG, SHORT, Architecture, Order
from sprunec.families.gguf.architectures import ARCHITECTURES
from sprunec.families.huggingface.transformers_config import TransformersConfig

TABLE, HEAD = "token_embd.weight", "output.weight"
IN_CONFIG = tuple(f"{name}.weight" for name in (FREQUENCIES, LONG, SHORT))  # tensors whose numbers config.json has


class Origin(NamedTuple):
    """A tensor of a file, and how it lies there.

    Attributes:
        units: how many heads or key-value groups its rows are of.
        factor: what it is multiplied by there.
    """

    name: str
    order: Order
    units: int = 1
    factor: float = 1.0

    def turned(self, shape: Shape) -> Shape:
        """Give the file's shape of the directory's, or the other way round."""
        return shape[::-1] if self.order is Order.TURNED else shape


def of_file(names: Collection[str]) -> bool:
    """Tell whether these are a GGUF file's names."""
    return TABLE in names


def origins(config: TransformersConfig, row: Architecture | None = None) -> dict[str, Origin]:
    """Say by the model's names where its tensors are; blocks that are left are numbered anew.

    Args:
        row: None: the first one of the model's type.
    """
    row = row or next(row for row in ARCHITECTURES if row.model_type == config.document["model_type"])
    blocks, found = f"{config.layout.blocks}.", dict[str, Origin]()
    for name in config.tensors():
        module, _, what = name.rpartition(".")
        if not name.startswith(blocks):
            table = row.tables[module]
            found[name] = Origin(f"{table.name}.{what}", table.order)
            continue
        index, _, inside = module.removeprefix(blocks).partition(".")
        number, layer, part = config.left.index(int(index)), config.layers[int(index)], row.block[inside]
        units = (layer.kv_groups or layer.heads) if part.order is Order.KEYS else layer.heads
        found[name] = Origin(f"blk.{number}.{part.name}.{what}", part.order, units)
    return found


def model_shapes(config: TransformersConfig, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Call a file's shapes by the model's names; what is no part of the model keeps its own."""
    found, used = dict[str, Shape](), {HEAD, *IN_CONFIG} if config.tie_word_embeddings else set(IN_CONFIG)
    for name, origin in origins(config).items():
        if origin.name in shapes:
            found[name] = origin.turned(shapes[origin.name])
            used.add(origin.name)
    return found | {name: shape for name, shape in shapes.items() if name not in used}
