"""The config that a CPM-Ant's tensors belong to, by CPM-Live's names; needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sprunec.checkpoint.safetensors_file import Shape
from sprunec.errors import InputError
from sprunec.families.cards import MOST_LAYERS
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.families.detect import TODAY, foreign_tensors, remedy


def guess_config(shapes: Mapping[str, Shape], path: str | Path) -> ModelConfig:
    """Guess the config of a bare checkpoint from its shapes; the prompt's length is CPM-Live's 32 if that can be.

    Raises:
        InputError: the names are not CPM-Ant's, or the shapes do not belong together.
    """
    try:
        vocab_size, width = shapes["input_embedding.weight"]
        segments, prompts = shapes["segment_embedding.weight"][0], shapes["prompt_embedding.weight"][0]
        rows, heads = shapes["position_bias.relative_attention_bias"]
        layers = 1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("encoder.layers."))
        # how wide all heads together, and the feed-forward, are in the first layer that has them
        inner, dim_ff = (
            next((shape[0] for name, shape in shapes.items() if name.endswith(end)), 0)
            for end in ("project_q.weight", "w_in.w_0.weight")
        )
        if min(vocab_size, width, segments, prompts, rows, heads) < 1:
            raise ValueError("a table without rows or columns")
        if layers > MOST_LAYERS:  # a name is a few bytes, whatever number is in it
            raise ValueError(f"layer {layers - 1}")
    except (KeyError, ValueError, IndexError) as error:
        if (foreign := foreign_tensors(shapes)) is not None:
            raise _no_model(path, foreign, TODAY) from None
        what = f"it has no {error.args[0]}" if isinstance(error, KeyError) else "its shapes do not belong together"
        raise _no_model(path, f"this is no CPM-Ant checkpoint: {what}", remedy(shapes)) from None
    length = 32 if prompts % 32 == 0 else prompts
    present = {".".join(name.split(".")[2:4]) for name in shapes if name.startswith("encoder.layers.")}
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
            "mask_modules": [[f"{i}.{part}" not in present for part in ("self_att", "ffn")] for i in range(layers)],
        }
    )
    for name, shape in config.tensors().items():
        if shapes.get(name) != shape:
            message = f"{name} is {shapes.get(name, 'missing')}, by the other tensors it is {shape}"
            raise _no_model(path, message, "inspect the directory of a config and its weights")
    return config


def _no_model(path: str | Path, why: str, hint: str) -> InputError:
    return InputError.at(path, why, hint, code="bad-checkpoint")
