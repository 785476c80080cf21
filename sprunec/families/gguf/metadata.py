"""What stands in front of a GGUF file's tensors, but for its tokenizer: sizes, positions, norms, windows; no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from sprunec.families.gguf.architecture import (
    ATTENTION_FACTOR,
    BY_LAYER,
    LOCAL_BASE,
    ROPE,
    ROTARY_DIMS,
    SIZES,
    WINDOW,
    WINDOWS,
    Architecture,
)
from sprunec.families.gguf.graph_fit import about, context_length, layers_of, positions, windows
from sprunec.families.gguf.tokenizers import Field
from sprunec.families.huggingface.transformers_config import TransformersConfig

UNSCALED = ("default", "llama3")  # llama3 scales by a tensor


def fields(config: TransformersConfig, row: Architecture) -> Iterator[Field]:
    """List what the graph of an architecture reads."""
    return (field._replace(key=f"{row.name}.{field.key}") for field in _own(config, row))


def _own(config: TransformersConfig, row: Architecture) -> Iterator[Field]:
    for key, value in _sizes(config, row).items():
        yield Field(key, value, "ARRAY", "INT32") if isinstance(value, list) else Field(key, value, "UINT32")
    says = about(config, row)
    for key, number in row.numbers.items():
        value = says.get(number.key, number.default)
        if key != WINDOW and value is not None:
            yield Field(key, value, "BOOL" if isinstance(number.default, bool) else "FLOAT32")
    yield from _windows(config, row)
    if row.positions:
        yield Field(ROTARY_DIMS, rotary_dims(config, row), "UINT32")
        yield from _rope(config, row)


def _sizes(config: TransformersConfig, row: Architecture) -> dict[str, Any]:
    layers = layers_of(config, row)
    by_layer = {
        "H": [layer.heads for layer in layers],
        "G": [layer.kv_groups or layer.heads for layer in layers],
        "F": [layer.dim_ff for layer in layers],
    }
    letters = {
        "P": context_length(config, row),
        "D": config.width,
        "L": len(layers),
        "E": config.layers[config.left[0]].dim_head or config.sizes["E"],
        "V": config.vocab_size,
    }
    found: dict[str, Any] = {key: letters[letter] for key, letter in SIZES.items() if key not in BY_LAYER}
    for key in BY_LAYER:
        listed = by_layer[SIZES[key]]
        found[key] = listed if row.by_layer else listed[0]
    return found


def rotary_dims(config: TransformersConfig, row: Architecture) -> int:
    """Count the dims of a head that are turned."""
    if (share := row.rotary_share) is None:
        return config.sizes["E"]
    says = about(config, row)
    own = says.get(share.key, share.default or 1.0)
    part: float = (says.get("rope_parameters") or {}).get("partial_rotary_factor", own)
    return int(config.sizes["E"] * part)


def _windows(config: TransformersConfig, row: Architecture) -> Iterator[Field]:
    """Say which layers see a window, where the graph has any."""
    if not row.pattern:
        return
    seen, usual = windows(config, row), row.numbers[WINDOW].default
    sliding = [window is not None for window in seen]
    if any(sliding) or row.tied:  # a graph that takes a window of its own where it is told none
        yield Field(WINDOW, next((window for window in seen if window), usual), "UINT32")
    if sliding != [bool((number + 1) % row.pattern) for number in range(len(sliding))]:
        yield Field(WINDOWS, sliding, "ARRAY", "BOOL")


def _rope(config: TransformersConfig, row: Architecture) -> Iterator[Field]:
    given, local = positions(config, row)
    kind = given["rope_type"]
    for key, name in ROPE.items():
        value = given.get(name)
        if value is None or (name != "rope_theta" and kind in UNSCALED):
            continue
        if name == "rope_type":
            yield Field(key, value, "STRING")
        elif name == "original_max_position_embeddings":
            yield Field(key, value, "UINT32")
        elif kind != "longrope" or name == "rope_theta":
            yield Field(key, value, "FLOAT32")
    if kind == "longrope":
        yield Field(ATTENTION_FACTOR, _attention_factor(config, row, given), "FLOAT32")
    if local is not None:
        yield Field(LOCAL_BASE, local["rope_theta"], "FLOAT32")


def _attention_factor(config: TransformersConfig, row: Architecture, given: dict[str, Any]) -> float:
    """Say what longrope multiplies cosines and sines by."""
    if given.get("attention_factor") is not None:
        return float(given["attention_factor"])
    trained = given["original_max_position_embeddings"]
    factor = given.get("factor") or about(config, row)["max_position_embeddings"] / trained
    return math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0


def frequency_factors(config: TransformersConfig, row: Architecture) -> dict[str, list[float]]:
    """Give by tensor name what each frequency is divided by, where a graph reads that as tensors."""
    if not row.positions:
        return {}
    given, _ = positions(config, row)
    if given["rope_type"] == "longrope":
        return {f"rope_factors_{kind}.weight": list(given[f"{kind}_factor"]) for kind in ("long", "short")}
    return (
        {"rope_freqs.weight": _by_wavelength(given, rotary_dims(config, row))} if given["rope_type"] == "llama3" else {}
    )


def _by_wavelength(given: dict[str, Any], dims: int) -> list[float]:
    """Divide low frequencies by a factor, high ones by none, and those between by what lies between (Llama 3.1)."""
    trained, found = given["original_max_position_embeddings"], []
    slow, fast = given["low_freq_factor"], given["high_freq_factor"]
    for number in range(0, dims, 2):
        turns = trained / (2 * math.pi) * given["rope_theta"] ** (-number / dims)  # in the length it was trained on
        share = min(1.0, max(0.0, (turns - slow) / (fast - slow)))
        found.append(1 / ((1 - share) / given["factor"] + share))
    return found
