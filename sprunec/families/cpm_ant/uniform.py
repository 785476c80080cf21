"""What CPM-Live's own classes can express: one width for all layers, and divisors that follow it; needs no torch.

There a linear divides by the root of the width that it has and the score by the root of the head's, so a cut model fits
only once the square roots of new over old are folded into its weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

from sprunec.families.cpm_ant.config import Divisors, LayerShape, ModelConfig

T = TypeVar("T")
HEAD_APART = "its head is a tensor of its own, and CPM-Live's classes have one table for words and head"
CPM_LIVE_KEYS = (
    "vocab_size",
    "dim_model",
    "num_heads",
    "dim_head",
    "dim_ff",
    "num_layers",
    "position_bias_num_buckets",
    "position_bias_max_distance",
    "eps",
    "prompt_types",
    "prompt_length",
    "segment_types",
)


def unevenness(config: ModelConfig) -> list[str]:
    """What differs from layer to layer, in words; nothing where one width can stand for all. Absent sublayers may."""
    found = []
    for what, values in (
        ("heads", _distinct(config, lambda layer: layer.heads)),
        ("dim_head", _distinct(config, lambda layer: layer.dim_head)),
        ("dim_ff", _distinct(config, lambda layer: layer.dim_ff)),
    ):
        if len(values) > 1:
            found.append(f"{what} is {min(values)} in one layer and {max(values)} in another")
    if not found and len(bias_columns(config)) > 1:
        found.append("layers keep different heads, and one column of the position-bias table serves all layers")
    return found


def bias_columns(config: ModelConfig) -> list[tuple[int, ...]]:
    """The distinct sets of columns of the bias table that layers with attention read."""
    return _distinct(config, lambda layer: layer.bias_columns)


def even_config(config: ModelConfig) -> ModelConfig:
    """The same model in one width, its divisors those that follow from it; only layers' presence is left to say.

    Raises:
        ValueError: layers differ; see `unevenness`.
    """
    problems = unevenness(config)
    if problems:
        raise ValueError("; ".join(problems))
    heads, dim_head, dim_ff = (
        next(iter(values), whole)
        for values, whole in (
            (_distinct(config, lambda layer: layer.heads), config.num_heads),
            (_distinct(config, lambda layer: layer.dim_head), config.dim_head),
            (_distinct(config, lambda layer: layer.dim_ff), config.dim_ff),
        )
    )
    return replace(
        config,
        num_heads=heads,
        dim_head=dim_head,
        dim_ff=dim_ff,
        divisors=Divisors(heads * dim_head, dim_head, dim_ff),
        layers=tuple(replace(layer, kept_heads=None) for layer in config.layers),
    )


def fold_factors(config: ModelConfig) -> Iterator[tuple[str, float]]:
    """Tensors of `config`, and what each is multiplied by to compute the same in `even_config(config)`."""
    old, new = config.divisors, even_config(config).divisors
    attention, score, feed_forward = (
        math.sqrt(new_dim / old_dim)
        for new_dim, old_dim in (
            (new.attention_out, old.attention_out),
            (new.score, old.score),
            (new.feed_forward_out, old.feed_forward_out),
        )
    )
    for index, layer in enumerate(config.layers):
        place = f"encoder.layers.{index}"
        if layer.heads:
            yield f"{place}.self_att.self_attention.project_q.weight", score
            yield f"{place}.self_att.self_attention.attention_out.weight", attention
        if layer.dim_ff:
            yield f"{place}.ffn.ffn.w_out.weight", feed_forward


def cpm_live_config(config: ModelConfig, half: bool) -> dict[str, object]:
    """The JSON that CPM-Live's own classes read, of an even config."""
    data: dict[str, object] = {key: getattr(config, key) for key in CPM_LIVE_KEYS}
    absent = [[layer.heads == 0, layer.dim_ff == 0] for layer in config.layers]
    modules = {"mask_modules": absent} if any(any(pair) for pair in absent) else {}
    return data | {"dropout_p": 0.0, "half": half} | modules


def _distinct(config: ModelConfig, value: Callable[[LayerShape], T]) -> list[T]:
    """The values that layers have, each once; those of absent sublayers are left out."""
    return [found for found in dict.fromkeys(value(layer) for layer in config.layers) if found]
