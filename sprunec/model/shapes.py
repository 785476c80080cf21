"""The tensors of a CPM-Ant checkpoint, by CPM-Live's names, and a look into a safetensors file; needs no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sprunec.errors import InputError
from sprunec.model.config import ModelConfig

Shape = tuple[int, ...]
LARGEST_HEADER = 100 * 1024 * 1024


def expected_tensors(config: ModelConfig) -> dict[str, Shape]:
    """Name and shape of every tensor; absent sublayers have none. V vocabulary, D width, N heads, H head width, F."""
    width = config.dim_model
    tensors: dict[str, Shape] = {
        "prompt_embedding.weight": (config.prompt_types * config.prompt_length, width),
        "segment_embedding.weight": (config.segment_types, width),
        "input_embedding.weight": (config.vocab_size, width),
        "position_bias.relative_attention_bias": (config.bias_rows, config.num_heads),
        "encoder.output_layernorm.weight": (width,),
    }
    for index in range(config.num_layers):
        tensors.update(_attention(config, index))
        tensors.update(_feed_forward(config, index))
    return tensors


def _attention(config: ModelConfig, index: int) -> Iterator[tuple[str, Shape]]:
    layer, width = config.layers[index], config.dim_model
    if layer.heads:
        place = f"encoder.layers.{index}.self_att"
        inner = layer.heads * layer.dim_head
        yield f"{place}.layernorm_before_attention.weight", (width,)
        for name in ("project_q", "project_k", "project_v"):
            yield f"{place}.self_attention.{name}.weight", (inner, width)
        yield f"{place}.self_attention.attention_out.weight", (width, inner)


def _feed_forward(config: ModelConfig, index: int) -> Iterator[tuple[str, Shape]]:
    layer, width = config.layers[index], config.dim_model
    if layer.dim_ff:
        place = f"encoder.layers.{index}.ffn"
        yield f"{place}.layernorm_before_ffn.weight", (width,)
        yield f"{place}.ffn.w_in.w_0.weight", (layer.dim_ff, width)
        yield f"{place}.ffn.w_in.w_1.weight", (layer.dim_ff, width)
        yield f"{place}.ffn.w_out.weight", (width, layer.dim_ff)


def guess_config(shapes: Mapping[str, Shape], path: str | Path) -> ModelConfig:
    """The config of a bare checkpoint, as far as shapes tell; the prompt's length is CPM-Live's 32 if that can be.

    Raises:
        InputError: the names are not CPM-Ant's, or the shapes do not belong together.
    """
    try:
        vocab_size, width = shapes["input_embedding.weight"]
        segments, prompts = shapes["segment_embedding.weight"][0], shapes["prompt_embedding.weight"][0]
        rows, heads = shapes["position_bias.relative_attention_bias"]
        layers = 1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("encoder.layers."))
        inner, dim_ff = _sublayer_widths(shapes)
        if min(vocab_size, width, segments, prompts, rows, heads) < 1:
            raise ValueError("a table without rows or columns")
    except (KeyError, ValueError, IndexError) as error:
        raise _unusable(path, f"it is no CPM-Ant checkpoint: {error} is not as CPM-Live names it") from None
    length = 32 if prompts % 32 == 0 else prompts
    present = [(f"encoder.layers.{i}.self_att.", f"encoder.layers.{i}.ffn.") for i in range(layers)]
    config = ModelConfig.from_dict(
        {
            "vocab_size": vocab_size,
            "dim_model": width,
            "num_heads": heads,
            "dim_head": inner // heads,
            "dim_ff": dim_ff,
            "num_layers": layers,
            "position_bias_num_buckets": rows - segments**2,
            "prompt_types": prompts // length,
            "prompt_length": length,
            "segment_types": segments,
            "mask_modules": [[not any(n.startswith(p) for n in shapes) for p in pair] for pair in present],
        }
    )
    for name, shape in expected_tensors(config).items():
        if shapes.get(name) != shape:
            raise _unusable(path, f"{name} is {shapes.get(name)}, not {shape}; inspect the config that belongs to it")
    return config


def _sublayer_widths(shapes: Mapping[str, Shape]) -> tuple[int, int]:
    """Width of all heads together, and of the feed-forward, of the first layer that has one."""
    inner = next((shape[0] for name, shape in shapes.items() if name.endswith("project_q.weight")), 0)
    dim_ff = next((shape[0] for name, shape in shapes.items() if name.endswith("w_in.w_0.weight")), 0)
    return inner, dim_ff


def read_header(path: str | Path) -> dict[str, Shape]:
    """Name and shape of every tensor in a safetensors file, from its header alone; InputError when it has none."""
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, LARGEST_HEADER):
                raise _unusable(path, f"its header would be {length:,} bytes long and the file has {size:,}")
            header = json.loads(file.read(length).decode("utf-8"))
    except OSError as error:
        raise _unusable(path, f"it cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise _unusable(path, "its header is not JSON") from None
    if not isinstance(header, dict):
        raise _unusable(path, "its header is not an object")
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    if any(not _has_end(entry) or entry["data_offsets"][1] > size - 8 - length for entry in entries.values()):
        raise _unusable(path, "its header names bytes that the file does not have")
    return {name: _shape(path, name, entry) for name, entry in entries.items()}


def _has_end(entry: Any) -> bool:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    return isinstance(offsets, list) and len(offsets) == 2 and all(type(offset) is int for offset in offsets)


def _shape(path: str | Path, name: str, entry: dict[str, Any]) -> Shape:
    shape = entry.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise _unusable(path, f"tensor {name} has no shape")
    return tuple(shape)


def _unusable(path: str | Path, why: str) -> InputError:
    message = f"this is no whole safetensors file: {why}"
    return InputError.at(path, message, "copy or convert it again", code="bad-checkpoint")
