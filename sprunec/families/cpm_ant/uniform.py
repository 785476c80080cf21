"""What CPM-Live's own classes can express: one width for all layers, and divisors that follow it; needs no torch.

There a linear divides by the root of the width that it has and the score by the root of the head's, so a cut model fits
only once the square roots of new over old are folded into its weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from sprunec.families.cpm_ant.config import CPM_LIVE_DEFAULTS, LAYER_SIZES, Divisors, ModelConfig

HEAD_APART = "its head is a tensor of its own, and CPM-Live's classes have one table for tokens and head"


def unevenness(config: ModelConfig) -> list[str]:
    """Say what differs from layer to layer; nothing where one width can stand for all those there are."""
    uneven = {size: each for size in LAYER_SIZES if len(each := _distinct(config, size)) > 1}
    found = [f"{size} is {min(each)} in one layer and {max(each)} in another" for size, each in uneven.items()]
    if not found and len(config.head_sets) > 1:
        found.append("layers keep different heads, and one column of the position-bias table serves all layers")
    return found


def even_config(config: ModelConfig) -> ModelConfig:
    """Give the same model in one width, its divisors those that follow from it; only layers' presence is left to say.

    Raises:
        ValueError: layers differ; see `unevenness`.
    """
    if problems := unevenness(config):
        raise ValueError("; ".join(problems))
    whole = (config.num_heads, config.dim_head, config.dim_ff)
    heads, dim_head, dim_ff = (
        next(iter(_distinct(config, size)), default) for size, default in zip(LAYER_SIZES, whole, strict=True)
    )
    divisors = Divisors(heads * dim_head, dim_head, dim_ff)
    layers = tuple(replace(layer, kept_heads=None) for layer in config.layers)
    return replace(config, num_heads=heads, dim_head=dim_head, dim_ff=dim_ff, divisors=divisors, layers=layers)


def fold_factors(config: ModelConfig) -> Iterator[tuple[str, float]]:
    """Give the tensors, and what each is multiplied by to compute the same in `even_config(config)`."""
    old, new = config.divisors, even_config(config).divisors
    for index, layer in enumerate(config.layers):
        path = f"encoder.layers.{index}"
        if layer.heads:
            yield f"{path}.self_att.self_attention.project_q.weight", math.sqrt(new.score / old.score)
            attention = math.sqrt(new.attention_out / old.attention_out)
            yield f"{path}.self_att.self_attention.attention_out.weight", attention
        if layer.dim_ff:
            yield f"{path}.ffn.ffn.w_out.weight", math.sqrt(new.feed_forward_out / old.feed_forward_out)


def cpm_live_config(config: ModelConfig, half: bool) -> dict[str, object]:
    """Write the JSON that CPM-Live's own classes read, of an even config."""
    keys: dict[str, object] = {key: getattr(config, key) for key in CPM_LIVE_DEFAULTS}
    return keys | {"dropout_p": 0.0, "half": half} | config.absent_sublayers()


def _distinct(config: ModelConfig, value: str) -> list[Any]:
    """List the values that layers have, each once; those of absent sublayers are left out."""
    return [found for found in dict.fromkeys(getattr(layer, value) for layer in config.layers) if found]
