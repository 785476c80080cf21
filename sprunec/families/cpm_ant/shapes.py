"""The tensors of a CPM-Ant checkpoint, by CPM-Live's names, and the config of a bare checkpoint; needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from sprunec.checkpoint.safetensors_file import Shape as Shape
from sprunec.errors import InputError
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.families.detect import TODAY, foreign_tensors, remedy

MOST_LAYERS = 4096  # as the schema has it


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
    if not config.tie_word_embeddings:
        tensors["lm_head.weight"] = (config.vocab_size, width)
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
        if layers > MOST_LAYERS:  # a name is a few bytes, whatever number is in it
            raise ValueError(f"layer {layers - 1}")
    except (KeyError, ValueError, IndexError) as error:
        foreign = foreign_tensors(shapes)
        if foreign is not None:
            raise _no_model(path, foreign, TODAY) from None
        what = f"it has no {error.args[0]}" if isinstance(error, KeyError) else "its shapes do not belong together"
        raise _no_model(path, f"this is no CPM-Ant checkpoint: {what}", remedy(shapes)) from None
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
            message = f"{name} is {shapes.get(name, 'missing')}, by the other tensors it is {shape}"
            raise _no_model(path, message, "inspect the directory of a config and its weights")
    return config


def _sublayer_widths(shapes: Mapping[str, Shape]) -> tuple[int, int]:
    """Width of all heads together, and of the feed-forward, of the first layer that has one."""
    inner = next((shape[0] for name, shape in shapes.items() if name.endswith("project_q.weight")), 0)
    dim_ff = next((shape[0] for name, shape in shapes.items() if name.endswith("w_in.w_0.weight")), 0)
    return inner, dim_ff


def _no_model(path: str | Path, why: str, hint: str) -> InputError:
    return InputError.at(path, why, hint, code="bad-checkpoint")
