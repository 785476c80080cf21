"""What every family's configs say of a model, and the one arithmetic of its sizes; needs no torch.

A sublayer has parameters for each combination of its units: `size_terms` says how many, and everything that counts
parameters comes from there.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import reduce
from operator import add, mul
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

from sprunec.checkpoint.safetensors_file import Shape
from sprunec.units import INSIDE, UNITS, Kept, Key, gate_units, sublayers_of

# Floating-point operations for each parameter and token: forward, and forward and backward (Kaplan et al. 2020).
FORWARD, TRAINING = 2, 6
LayerIndices = Mapping[str, tuple[int, ...]]  # by unit inside a sublayer; absent sublayers have none
# By combination of units. None: what a sublayer has once, such as its norm. ("head", "dim_head"): what each dim of each
# head has.
SizeTerms = Mapping[tuple[str, ...], int]


class LayerShape(Protocol):
    """What the sublayers of one layer have."""

    @property
    def counts(self) -> dict[str, int]:
        """How many units of each kind it has; absent sublayers have none."""

    @property
    def inner(self) -> dict[str, int]:
        """How wide each kind of sublayer is inside; 0 where it is absent."""

    def resized(self, counts: Mapping[str, int]) -> Self:
        """Shape the layer with so many units of these kinds; a sublayer left with none of one kind is absent."""


@runtime_checkable
class ModelConfig(Protocol):
    """A model's shape, of whatever family.

    Attributes:
        width: of the hidden states.
        tie_word_embeddings: the head is the table that tokens are looked up in, not a tensor of its own.
        overhead: how many positions of its own a model adds to a document.
        keeps_scores: its attention is spelled out, so that the scores of all pairs of positions are kept for a backward
            pass; torch's own keeps none.
        head_sets: the distinct sets of heads that layers with attention have.
    """

    def __hash__(self) -> int: ...
    @property
    def family(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def overhead(self) -> int: ...
    @property
    def keeps_scores(self) -> bool: ...
    @property
    def tie_word_embeddings(self) -> bool: ...
    @property
    def layers(self) -> Sequence[LayerShape]: ...
    @property
    def head_sets(self) -> Sequence[tuple[int, ...]]: ...

    @property
    def uncut(self) -> Self:
        """The model whose blocks its family's `build` makes, see `families.base`."""

    def with_layers(self, layers: Iterable[Any]) -> Self: ...

    def with_head(self, *, own: bool) -> Self:
        """Give the same model with a head that is not its embedding, or that is."""

    def cut(self, before: Sequence[LayerIndices], after: Sequence[LayerIndices]) -> Self:
        """Give the config once only `after` is left of `before`; both in the plan's input model's indices."""

    def to_dict(self) -> dict[str, Any]: ...

    def tensors(self) -> dict[str, Shape]:
        """Give name and shape of every tensor; absent sublayers have none."""

    def parameters(self) -> int:
        """Count all, those outside the layers with them."""

    def size_terms(self, layer: int, sublayer: str) -> SizeTerms: ...


def doubled(config: ModelConfig, unit: str) -> ModelConfig:
    """Give the same model with twice as many units of one kind: what grows is made of them."""
    return config.with_layers(layer.resized({unit: 2 * layer.counts.get(unit, 0)}) for layer in config.layers)


class Amount(NamedTuple):
    """So many units of one kind and layer, and how likely there are any: numbers, or tensors that carry gradients."""

    count: Any
    some: Any


def everything(config: ModelConfig) -> Kept:
    return Kept.all(layer.counts for layer in config.layers)


def unit_sizes(config: ModelConfig, units: Iterable[str]) -> dict[Key, int]:
    """Count the units of each kind that each layer has; layers that have none are left out."""
    sizes: dict[Key, int] = {}
    for index, layer in enumerate(config.layers):
        kinds = sublayers_of(layer.counts)
        counts = layer.counts | dict.fromkeys((*kinds, "block") if kinds else (), 1)
        sizes |= {(index, unit): counts[unit] for unit in gate_units(units) if unit in counts}
    return sizes


def unit_cost(config: ModelConfig, layer: int, unit: str) -> int:
    """Count the parameters of one unit, beside all others that the layer has; a sublayer's norm among its own."""
    counts = config.layers[layer].counts
    there = set(UNITS[unit].sublayers) & set(sublayers_of(counts))
    terms = [term for kind in there for term in config.size_terms(layer, kind).items()]
    counted = [(units, each) for units, each in terms if unit not in INSIDE or unit in units]
    own = sum(each * math.prod(counts[other] for other in units if other != unit) for units, each in counted)
    # with a key-value group go its heads
    return own + counts["head"] // counts["kv_group"] * unit_cost(config, layer, "head") if unit == "kv_group" else own


def head_groups(config: ModelConfig, key: Key) -> int:
    """Tell in how many groups a layer's units lie, each of which keeps as many: heads in key-value groups."""
    layer, unit = key
    return config.layers[layer].counts.get("kv_group", 1) if unit == "head" else 1


def layer_sizes(config: ModelConfig, units: Collection[str], kept: Mapping[Key, Amount]) -> list[Any]:
    """Count by layer the parameters that `units` can remove: whole sublayers with norms, or what is inside them.

    Args:
        kept: how much there is of units; of others there is all.
    """
    whole = sublayers_of(unit for unit in units if unit not in INSIDE)
    counted = {kind: kind in whole for kind in sublayers_of(units)}
    return [_layer_size(config, index, counted, kept) for index in range(len(config.layers))]


def _layer_size(config: ModelConfig, index: int, counted: Mapping[str, bool], kept: Mapping[Key, Amount]) -> Any:
    """Count those of some kinds of sublayers; True: with what they have once."""
    sizes, counts = [], config.layers[index].counts
    for kind in sublayers_of(counts):
        if kind in counted:
            inside = {unit: n for unit, n in counts.items() if INSIDE[unit] == kind}
            amounts = {unit: kept.get((index, unit), Amount(count, 1)) for unit, count in inside.items()}
            groups = kept.get((index, "kv_group")) if "kv_group" in inside else None
            if groups is not None and (index, "head") not in kept:
                amounts["head"] = Amount(groups.count * (counts["head"] // counts["kv_group"]), groups.some)
            parts = [
                reduce(mul, (amount.count if unit in units else amount.some for unit, amount in amounts.items())) * each
                for units, each in config.size_terms(index, kind).items()
                if units or counted[kind]
            ]
            sizes.append(_gated(reduce(add, parts), kept.get((index, kind))))
    return _gated(reduce(add, sizes), kept.get((index, "block"))) if sizes else 0


def _gated(size: Any, gate: Amount | None) -> Any:
    return size if gate is None else gate.count * size


def token_operations(config: ModelConfig, length: int, *, head: bool = False, blocks: int | None = None) -> float:
    """Count the operations of a token that sees `length` positions: in all blocks, and in the head.

    Args:
        blocks: parameters of all blocks together, where the config does not say what each has left.
    """
    if blocks is None:
        blocks = sum(unit_cost(config, index, "block") for index in range(len(config.layers)))
    scores = 2 * FORWARD * length * sum(layer.inner.get("attention", 0) for layer in config.layers)
    return FORWARD * blocks + scores + (FORWARD * config.vocab_size * config.width if head else 0)


def removable(config: ModelConfig, units: Collection[str]) -> int:
    """Count the parameters that units can remove."""
    return sum(layer_sizes(config, units, {}))


def parameters_without(config: ModelConfig, units: Iterable[str]) -> int:
    """Count what stays when every one of these units is cut; a sublayer without units goes with its norm."""
    return config.parameters() - removable(config, sublayers_of(units))
