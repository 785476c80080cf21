"""Units of a model, by (layer, kind): how many there are, what each weighs, and what is left once some are masked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from sprunec.families.cpm_ant.config import LayerKept, ModelConfig

Key = tuple[int, str]
Values = Mapping[Key, Tensor]


def gate_units(units: Iterable[str]) -> tuple[str, ...]:
    """`layer` means both kinds of sublayers, gated one by one."""
    both = ("attention", "feed_forward")
    return tuple(dict.fromkeys(each for unit in units for each in (both if unit == "layer" else (unit,))))


def unit_sizes(config: ModelConfig, units: Iterable[str]) -> dict[Key, int]:
    """How many units of each kind each layer has; layers that have none are left out."""
    sizes: dict[Key, int] = {}
    for index, layer in enumerate(config.layers):
        counts = {
            "block": int(bool(layer.heads or layer.dim_ff)),
            "attention": int(bool(layer.heads)),
            "feed_forward": int(bool(layer.dim_ff)),
            "head": layer.heads,
            "dim_head": layer.dim_head,
            "dim_ff": layer.dim_ff,
        }
        sizes |= {(index, unit): counts[unit] for unit in gate_units(units) if counts[unit]}
    return sizes


def unit_keys(config: ModelConfig, units: Iterable[str]) -> tuple[Key, ...]:
    return tuple(unit_sizes(config, units))


def unit_cost(config: ModelConfig, layer: int, unit: str) -> float:
    shape, width = config.layers[layer], config.dim_model
    return {
        "block": config.attention_parameters(layer) + config.feed_forward_parameters(layer),
        "attention": config.attention_parameters(layer),
        "feed_forward": config.feed_forward_parameters(layer),
        "head": 4 * shape.dim_head * width,
        "dim_head": 4 * shape.heads * width,
        "dim_ff": 3 * width,
    }[unit]


def apply_masks(kept: tuple[LayerKept, ...], masks: Mapping[Key, Tensor]) -> tuple[LayerKept, ...]:
    """What is left of `kept` after the masks of this pass; a sublayer left with no unit becomes absent."""
    return tuple(_apply_to_layer(layer, index, masks) for index, layer in enumerate(kept))


def _apply_to_layer(layer: LayerKept, index: int, masks: Mapping[Key, Tensor]) -> LayerKept:
    def part(unit: str, before: tuple[int, ...] | None) -> tuple[int, ...] | None:
        mask = masks.get((index, unit))
        return before if before is None or mask is None else tuple(i for i, m in zip(before, mask, strict=True) if m)

    def closed(unit: str) -> bool:
        return (index, unit) in masks and not bool(masks[(index, unit)].any())

    heads, dims, inner = part("head", layer.heads), part("dim_head", layer.dim_head), part("dim_ff", layer.dim_ff)
    if closed("block") or closed("attention") or not heads or not dims:
        heads = dims = None
    if closed("block") or closed("feed_forward") or not inner:
        inner = None
    return LayerKept(heads, dims, inner)
