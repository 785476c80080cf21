"""Hugging Face's names for a CPM-Ant: config keys, tensors, and the factors between its weights and ours; no torch.

`CpmAntForCausalLM` (model type `cpmant`) has plain linears, so 1 / sqrt(width) is part of its weights, and one table
for tokens and prompts. The form that this package writes (`sprunec-cpm-ant`) has our weights as they are.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from sprunec.checkpoint.safetensors_file import Shape
from sprunec.families.cards import Part
from sprunec.families.cpm_ant.config import TEXT_SEGMENT, TEXT_TASK, ModelConfig
from sprunec.families.cpm_ant.uniform import unevenness
from sprunec.families.detect import type_family

STOCK, OWN = "cpmant", "sprunec-cpm-ant"
OWN_SECTION, OWN_PREFIX, STOCK_PREFIX = "cpm_ant", "model.", "cpmant."
HEAD, EMBEDDING, PROMPTS = "lm_head.weight", "input_embedding.weight", "prompt_embedding.weight"
STOCK_TASK, STOCK_SEGMENT = TEXT_TASK, TEXT_SEGMENT
# our key: theirs, and what it is where their file does not say
KEYS = {
    "vocab_size": ("vocab_size", 30720),
    "dim_model": ("hidden_size", 4096),
    "num_heads": ("num_attention_heads", 32),
    "dim_head": ("dim_head", 128),
    "dim_ff": ("dim_ff", 10240),
    "num_layers": ("num_hidden_layers", 48),
    "position_bias_num_buckets": ("position_bias_num_buckets", 512),
    "position_bias_max_distance": ("position_bias_max_distance", 2048),
    "eps": ("eps", 1e-6),
    "prompt_types": ("prompt_types", 32),
    "prompt_length": ("prompt_length", 32),
    "segment_types": ("segment_types", 32),
}


def native_keys(data: Mapping[str, Any]) -> dict[str, Any]:
    """Translate a Hugging Face config into CPM-Live's keys.

    Raises:
        ValueError: it is another family's.
    """
    kind, classes = data.get("model_type"), data.get("architectures") or []
    if kind == OWN and isinstance(data.get(OWN_SECTION), dict):
        return dict(data[OWN_SECTION])
    if kind == STOCK or (kind is None and classes and all(str(name).startswith("CpmAnt") for name in classes)):
        found = {ours: data.get(theirs, default) for ours, (theirs, default) in KEYS.items()}
        return found | ({"dropout_p": data["dropout_p"]} if data.get("dropout_p") else {})
    name = type_family(kind) or str(kind or ", ".join(map(str, classes)) or "no known model")
    raise ValueError(f"this is {name}'s config")


def stock_keys(config: ModelConfig) -> dict[str, Any]:
    """Translate a uniform config into the keys of `CpmAntConfig`."""
    return {theirs: getattr(config, ours) for ours, (theirs, _) in KEYS.items()}


def stock_obstacles(config: ModelConfig) -> list[str]:
    """List why Hugging Face's own classes cannot be this model; nothing where they can."""
    found = unevenness(config)
    if absent := [i for i, layer in enumerate(config.layers) if not layer.heads or not layer.dim_ff]:
        found.append(f"layer {absent[0]} lacks a sublayer")
    if config.prompt_types <= STOCK_TASK or config.segment_types <= STOCK_SEGMENT:
        found.append(f"it has no prompt {STOCK_TASK} or no segment {STOCK_SEGMENT}")
    return found


def parts(config: ModelConfig, names: Collection[str]) -> dict[str, Part]:
    """Find where every tensor of `config` is in a file with these tensor names; in our own files as it is."""
    wanted = config.tensors()
    if any(name.startswith(STOCK_PREFIX) for name in names):
        return dict(_stock_parts(config))
    if any(name.startswith(f"{OWN_PREFIX}encoder.") for name in names):
        return {name: Part(OWN_PREFIX + name) for name in wanted}
    return {name: Part(name) for name in wanted}


def native_shapes(config: ModelConfig, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Call a file's shapes by our names; what is no part of the model keeps its own, but for a copy of the table."""
    found = parts(config, shapes)
    named = {name: part.shape(shapes[part.name]) for name, part in found.items() if part.name in shapes}
    used = {part.name for part in found.values()}
    if config.tie_word_embeddings:
        used |= {HEAD, OWN_PREFIX + HEAD}
    return named | {name: shape for name, shape in shapes.items() if name not in used}


def _stock_parts(config: ModelConfig) -> Iterator[tuple[str, Part]]:
    tokens, prompts = config.vocab_size, config.prompt_types * config.prompt_length
    rows = {EMBEDDING: (0, tokens), PROMPTS: (tokens, tokens + prompts)}
    for name, shape in config.tensors().items():
        factor = math.sqrt(shape[1]) if is_scaled(name) else 1.0
        if name in rows:
            yield name, Part(STOCK_PREFIX + EMBEDDING, factor, rows[name])
        elif name == HEAD:
            yield name, Part(name, factor, rows[EMBEDDING])
        else:
            yield name, Part(STOCK_PREFIX + name, factor)


def is_scaled(name: str) -> bool:
    """Tell whether Hugging Face's tensor is ours over the root of its width; norms and the bias table are not."""
    return "layernorm" not in name and not name.startswith("position_bias.")


def head_names(names: Collection[str]) -> tuple[str, str] | None:
    """Find the names of a file's head and of its embedding; None where it has no head."""
    pairs = [(HEAD, STOCK_PREFIX + EMBEDDING), (OWN_PREFIX + HEAD, OWN_PREFIX + EMBEDDING), (HEAD, EMBEDDING)]
    return next((pair for pair in pairs if all(name in names for name in pair)), None)
