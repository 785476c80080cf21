"""How large the models are that nodes give: what is left of them, in parameters and in bytes; needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from sprunec.families.base_config import LayerShape, ModelConfig, unit_cost
from sprunec.plan.targets import Left


@dataclass(frozen=True)
class ModelSize:
    """A model that a node gives: at most what is left of it, and how many bytes a stored number of it has.

    Attributes:
        widest: parameters that a block may have which keeps more than others.
        sure: it has no less than that, as far as its shapes are known.
    """

    left: Left
    item: float
    widest: int = 0
    sure: bool = True

    @property
    def config(self) -> ModelConfig:
        return self.left.config

    @property
    def parameters(self) -> int:
        return self.left.parameters

    @property
    def nbytes(self) -> float:
        return self.item * self.parameters

    @property
    def largest_block(self) -> int:
        return max(self.widest, *blocks_of(self.config), 0)

    @property
    def in_blocks(self) -> int:
        """Count the parameters of all blocks."""
        return self.parameters - (self.config.parameters() - sum(blocks_of(self.config)))

    def stored_as(self, other: ModelSize) -> ModelSize:
        return replace(self, item=other.item)

    def certain(self, size: float) -> float:
        """Give a size that follows from the model's where its own is known, else nothing."""
        return size if self.sure and self.left.known else 0.0


@lru_cache
def blocks_of(config: ModelConfig) -> tuple[int, ...]:
    """Count the parameters of each block."""
    alike: dict[LayerShape, int] = {}
    return tuple(alike.setdefault(layer, unit_cost(config, n, "block")) for n, layer in enumerate(config.layers))
