"""A Llama whose layers differ as a DeciLM (Nemotron-NAS): what it can be, its config.json and its tensors.

`block_configs` say by layer how many query heads share keys and values, how wide the feed-forward is, and what is
absent; there is one number of query heads for all. All of it is as vLLM's loader of such models reads it: a model
enters with attention there, so that a first layer without gets one whose weights are zeros, which adds nothing.

No torch is imported to ask what it can be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprunec.checkpoint.safetensors_file import Shape
from sprunec.durable import copy_file
from sprunec.errors import FormatError
from sprunec.families.huggingface.transformers_config import TransformersConfig, TransformersLayer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sprunec.checkpoint.reader import Tensors
    from sprunec.checkpoint.writer import Output
    from sprunec.plan.export_formats import Emission

CODE = "configuration_decilm"
NAMES = {
    "model_type": "nemotron-nas",
    "architectures": ["DeciLMForCausalLM"],
    "auto_map": {"AutoConfig": f"{CODE}.DeciLMConfig"},
}
MULTIPLE, DIGITS = 256, 6  # a width that is told by a factor of so many digits is rounded up to such a multiple
ALIKE = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "initializer_range": 0.02}
# By model type that computes as Llama does, what its class takes for what a config does not say.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": {**ALIKE, "max_position_embeddings": 2048},
    "mistral": {**ALIKE, "max_position_embeddings": 131_072, "sliding_window": 4096},
}
COPIED = ("vocab_size", "hidden_size", "bos_token_id", "eos_token_id", "pad_token_id", *DEFAULTS["llama"])
ROTARY_BASE = 10_000.0
SCALED_FROM = ("llama3", "yarn", "longrope")  # ways to turn positions that ask for the length that was trained on
INSTEAD = 'emit "huggingface" instead of "deci"'


def obstacles(config: Any) -> Iterator[tuple[str, str, str]]:
    """Find code, reason and remedy of what such a model cannot be."""
    if not isinstance(config, TransformersConfig) or config.document["model_type"] not in DEFAULTS:
        yield "not-llama", f"it is for what computes as Llama: model_type {' or '.join(DEFAULTS)}", INSTEAD
        return
    about = _about(config)
    for key in (key for key in ("attention_bias", "mlp_bias") if about.get(key)):
        yield "biases", f"its linears have no biases, and {key} is true", INSTEAD
    if about["hidden_act"] != "silu":
        yield "activation", f"its feed-forward has silu gates, and hidden_act is {about['hidden_act']}", INSTEAD
    window = about.get("sliding_window") if "sliding_window" in DEFAULTS[about["model_type"]] else None
    if window is not None and window < about["max_position_embeddings"]:
        yield "window", f"its layers see all positions before, and sliding_window is {window}", INSTEAD
    heads = {layer.heads for layer in config.layers if layer.heads}
    if not heads:
        yield "no-attention", "none of its layers has attention", INSTEAD
    elif len(heads) > 1:
        problem = f"a layer has {min(heads)} query heads and another {max(heads)}, and it has one number for all"
        yield "uneven-layers", problem, f"keep as many in each layer, or {INSTEAD}"


def _about(config: TransformersConfig) -> dict[str, Any]:
    return {**DEFAULTS[config.document["model_type"]], **config.document}


def write(emission: Emission, directory: Path) -> dict[str, Any]:
    """Raise FormatError where such a model cannot be what was cut."""
    from sprunec.families.huggingface.stock_files import write_files
    from sprunec.families.model_directory import open_model_tensors

    config = emission.config
    if problems := [why for _, why, _ in obstacles(config)]:
        raise FormatError(f"the format deci cannot hold this model: {'; '.join(problems)}")
    assert isinstance(config, TransformersConfig)
    document, outputs = decilm_config(config), dict(decilm_tensors(config, open_model_tensors(emission.model)))
    dtype, code = write_files(emission, directory, document, outputs), Path(__file__).with_name(f"{CODE}.py")
    copy_file(code, directory / code.name)
    added = [] if config.layers[config.left[0]].heads else ["the first layer has attention whose weights are zeros"]
    return {"dtype": dtype, "why": added, "class": document["architectures"][0]}


def decilm_config(config: TransformersConfig) -> dict[str, Any]:
    """Say what config.json says."""
    about, layers = _about(config), _entered(config)
    document = {key: about[key] for key in COPIED if key in about}
    sizes = {"num_hidden_layers": len(layers), "num_attention_heads": layers[0].heads, "head_dim": layers[0].dim_head}
    by_layer = {"num_key_value_heads": None, "intermediate_size": None, "block_configs": _blocks(layers, config.width)}
    plain = {"attention_bias": False, "mlp_bias": False, "tie_word_embeddings": config.tie_word_embeddings}
    return NAMES | document | sizes | plain | rotary(about) | by_layer


def rotary(about: Mapping[str, Any]) -> dict[str, Any]:
    """Say how positions are turned, of a config of either release, as both read it by the config's class."""
    given = dict(about.get("rope_parameters") or about.get("rope_scaling") or {})
    kind = given.pop("type", "default")
    parameters = {"rope_type": kind, "rope_theta": about.get("rope_theta", ROTARY_BASE)} | given
    if parameters["rope_type"] in SCALED_FROM:
        parameters = {"original_max_position_embeddings": about["max_position_embeddings"]} | parameters
    return {"rope_parameters": parameters, "rope_theta": parameters["rope_theta"]}


def _blocks(layers: list[TransformersLayer], width: int) -> list[dict[str, Any]]:
    """Say what each layer has; widths by the factors that every loader reads, where these say all of them exactly."""
    by_factor, found = all(layer.dim_ff % MULTIPLE == 0 for layer in layers), []
    for layer in layers:
        shared = layer.heads // (layer.kv_groups or layer.heads) if layer.heads else None
        # Rounded down: what is told is then rounded up to the width itself.
        factor = math.floor(3 * layer.dim_ff / (2 * width) * 10**DIGITS) / 10**DIGITS
        size = {"ffn_mult": factor or None} if by_factor else {"intermediate_size": layer.dim_ff or None}
        attention, feed_forward = (
            {"no_op": not there, "replace_with_linear": False} for there in (shared, layer.dim_ff)
        )
        found.append({"attention": attention | {"n_heads_in_group": shared}, "ffn": feed_forward | size})
    return found


def _entered(config: TransformersConfig) -> list[TransformersLayer]:
    """Give the layers that are left, the first one with attention in any case: one group, that takes least."""
    first, *others = (config.layers[index] for index in config.left)
    full = next(layer for layer in (first, *others) if layer.heads)
    return [first if first.heads else replace(full, kv_groups=1, dim_ff=first.dim_ff), *others]


def decilm_tensors(config: TransformersConfig, state: Tensors) -> Iterator[tuple[str, Output]]:
    """Number the layers that are left anew; what is not there is zeros."""
    from sprunec.checkpoint.writer import Output, as_output

    there = config.left
    blocks, dtype = f"{config.layout.blocks}.", state.dtype(next(iter(state)))
    for name, shape in config.with_layers(_entered(config)).tensors().items():
        number, _, rest = name.removeprefix(blocks).partition(".")
        before = f"{blocks}{there[int(number)]}.{rest}" if name.startswith(blocks) else name
        zeros = Output(shape, dtype, partial(_zeros, shape, dtype))
        yield name, as_output(state, before) if before in state else zeros


def _zeros(shape: Shape, dtype: torch.dtype) -> list[Tensor]:
    import torch

    return [torch.zeros(shape, dtype=dtype)]
