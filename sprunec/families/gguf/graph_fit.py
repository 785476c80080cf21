"""Which architecture of llama.cpp a model is, and what none of them can hold; no torch.

A graph asks for a value where this says so, and computes the rest by what it is: keys that it does not read must have
the values that it has built in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from sprunec.errors import show
from sprunec.families.gguf.architecture import WINDOW, Architecture
from sprunec.families.gguf.architectures import ARCHITECTURES
from sprunec.families.huggingface.decilm_files import rotary
from sprunec.families.huggingface.transformers_config import TransformersConfig, TransformersLayer
from sprunec.units import INSIDE, SUBLAYERS, UNITS, sublayers_of

INSTEAD = 'emit "huggingface" instead of "gguf"'
LEAST_WIDTH = 32  # of a feed-forward that adds nothing: what the simplest quantizations pack
YARN = {"beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": None, "mscale": None, "truncate": True}
SLIDING = "sliding_attention"


def rows_of(config: TransformersConfig) -> list[Architecture]:
    """List the architectures of a model's type: the one for alike layers, then one for unlike ones if there is any."""
    kind = "" if config.traced else config.document["model_type"]
    return sorted((row for row in ARCHITECTURES if row.model_type == kind), key=lambda row: row.by_layer)


def row_of(config: TransformersConfig) -> Architecture | None:
    """Choose the first that holds a model's layers, or, where none does, the last; None for another family."""
    rows = rows_of(config)
    fits = (row for row in rows if row.by_layer or not any(unlike(config, row)))
    return next(fits, rows[-1] if rows else None)


def about(config: TransformersConfig, row: Architecture) -> dict[str, Any]:
    """Read config.json as the class does that it is for."""
    return {**row.defaults, **config.layout.defaults, **config.document}


def obstacles(config: Any) -> Iterator[tuple[str, str, str]]:
    """Find code, reason and remedy of what no architecture can hold."""
    row = row_of(config) if isinstance(config, TransformersConfig) else None
    if row is None:
        kinds = ", ".join(dict.fromkeys(each.model_type for each in ARCHITECTURES))
        yield "no-architecture", f"it is for what llama.cpp computes: model_type {kinds}", INSTEAD
        return
    says, key, known = about(config, row), row.activation[0], row.activation[1:]
    if (activation := says.get(key, known[0])) not in known:
        yield "activation", f"the graph of {row.name} has {known[0]}, and {key} is {activation}", INSTEAD
    for key in (key for key, value in row.needs.items() if (says.get(key) or None) != (value or None) and key in says):
        has = f"the graph of {row.name} has {key} {show(row.needs[key])}"
        yield "arithmetic", f"{has}, and it is {show(says[key])}", INSTEAD
    for number in row.numbers.values():
        if number.default is not None and says.get(number.key, number.default) is None:
            yield "arithmetic", f"the graph of {row.name} has {number.key}, and it is null", INSTEAD
    yield from (("rotary", why, INSTEAD) for why in _turned(config, row, says))
    if row.tied and not config.tie_word_embeddings:
        yield "head-apart", f"the head of {row.name} is its embedding, and here it has weights of its own", INSTEAD
    if not row.by_layer:
        yield from (("uneven-layers", why, f"keep all layers alike, or {INSTEAD}") for why in unlike(config, row))


def _turned(config: TransformersConfig, row: Architecture, says: dict[str, Any]) -> Iterator[str]:
    """Say why positions cannot be turned as the model does it."""
    if not row.positions:
        return
    given, local = positions(config, row)
    kind = given["rope_type"]
    if kind not in row.scalings:
        yield f"the graph of {row.name} turns positions by {', '.join(row.scalings)}, and rope_type is {kind}"
    if kind == "yarn" and (other := [key for key, value in YARN.items() if given.get(key, value) not in (value, None)]):
        yield f"the graph of {row.name} has {other[0]} {show(YARN[other[0]])}, and it is {show(given[other[0]])}"
    if local is not None and local["rope_type"] != "default":
        yield f"the graph of {row.name} scales no positions in a window, and rope_type is {local['rope_type']}"
    if row.rotary_share is None and given.get("partial_rotary_factor", says.get("partial_rotary_factor", 1.0)) != 1.0:
        yield f"the graph of {row.name} turns whole heads, and partial_rotary_factor says less"


def positions(config: TransformersConfig, row: Architecture) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Say how positions are turned, as `rope_parameters`; and how in layers with a window, where that differs."""
    says = about(config, row)
    given = says.get("rope_parameters") or says.get("rope_scaling") or {}
    by_kind = isinstance(given.get("full_attention"), dict)
    whole, base = given["full_attention"] if by_kind else given, says.get("rotary_emb_base", says.get("rope_theta"))
    trained = "original_max_position_embeddings"
    whole = {trained: says[trained]} | whole if says.get(trained) is not None else whole
    found = rotary(says | {"rope_theta": base, "rope_parameters": whole})["rope_parameters"]
    if row.model_type == "phi3" and found["rope_type"] in ("su", "yarn"):  # as older files call it
        found["rope_type"] = "longrope"
    if row.pattern and by_kind:
        return found, {"rope_type": "default", **given[SLIDING]}
    local = says.get("rope_local_base_freq", row.local_base)
    return found, {"rope_type": "default", "rope_theta": local} if local else None


def unlike(config: TransformersConfig, row: Architecture) -> Iterator[str]:
    """Say how layers differ from what an architecture with one size for all has."""
    layers = [config.layers[index] for index in config.left]
    for kind in SUBLAYERS:
        if lacking := [index for index in config.left if kind not in sublayers_of(config.layers[index].counts)]:
            yield f"layer {lacking[0]} has no {kind.replace('_', '-')}"
            return
    for unit in (unit for unit in INSIDE if unit in layers[0].counts):
        if len(each := {layer.counts[unit] for layer in layers}) > 1:
            yield f"its layers have {min(each)} to {max(each)} {UNITS[unit].several}"
    if not row.free_heads and (width := layers[0].heads * layers[0].dim_head) != config.width:
        yield f"the heads of {row.name} are as wide as the model, {config.width}, and {width} are left"


def layers_of(config: TransformersConfig, row: Architecture) -> list[TransformersLayer]:
    """Give the layers that are left as the graph has them: what it cannot do without is there, and adds nothing.

    `deci` passes by a layer that has attention and no feed-forward, and takes a head's width from its first layer.
    """
    found = [config.layers[index] for index in config.left]
    if row.by_layer:
        found = [replace(layer, dim_ff=layer.dim_ff or LEAST_WIDTH) if layer.heads else layer for layer in found]
        if not found[0].heads:
            found[0] = replace(found[0], heads=1, kv_groups=1, dim_head=config.sizes["E"])
    return found


def added(config: TransformersConfig, row: Architecture) -> list[str]:
    """Say what is there that adds nothing."""
    filled = zip(config.left, layers_of(config, row), strict=True)
    pairs = [(number, layer, config.layers[index]) for number, (index, layer) in enumerate(filled)]
    found = [
        f"layer {number} has attention whose weights are zeros"
        for number, new, old in pairs
        if not old.heads and new.heads
    ]
    widths = [str(number) for number, new, old in pairs if not old.dim_ff and new.dim_ff]
    if widths:
        found.append(f"layer {', '.join(widths)} has {LEAST_WIDTH} feed-forward dims whose weights are zeros")
    return found


def windows(config: TransformersConfig, row: Architecture) -> list[int | None]:
    """Give for each layer that is left how many positions it sees; None for all."""
    says = about(config, row)
    window, kinds = says.get("sliding_window"), says.get("layer_types")
    if row.pattern:
        window = window or row.numbers[WINDOW].default
        every = says.get("sliding_window_pattern") or row.pattern
        kinds = kinds or [SLIDING if (index + 1) % every else "" for index in range(len(config.layers))]
    elif not kinds and "use_sliding_window" in says:
        window = window if says["use_sliding_window"] else None
    return [window if not kinds or kinds[index] == SLIDING else None for index in config.left]


def context_length(config: TransformersConfig, row: Architecture) -> int:
    """Say up to what length the graph computes the model: no further than a window that it does not have."""
    longest: int = config.sizes.get("P") or about(config, row)["max_position_embeddings"]
    return longest if row.pattern else min([longest, *(window for window in windows(config, row) if window)])
