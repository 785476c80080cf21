"""Check that a config describes a CPM-Ant, and that a CPM-Ant can be given the data of a plan; needs no torch.

Findings have no file: their pointers are those of the config, or of the plan, that was looked into.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sprunec.errors import Diagnostic, show
from sprunec.families.cpm_ant.config import PAIR_TASK, TEXT_SEGMENT, TEXT_TASK, ModelConfig

# Keys of CPM-Live's older files, with the one value that this family has; None: it says nothing about the model.
_OLDER: Mapping[str, Any] = (
    dict.fromkeys(f"{part}_init_{kind}" for part in ("emb", "pos", "att", "ffn", "proj") for kind in ("mean", "std"))
    | dict.fromkeys(("norm_init_var", "use_cache", "cls_head", "attn_scale"))
    | dict.fromkeys(("norm_bias", "att_bias", "ffn_bias", "proj_bias", "int8", "post_layer_norm"), False)
    | dict.fromkeys(("length_scale", "tied", "absolute_inner_segment"), True)
    | {"pos_bias_type": "relative", "att_mask_value": "-inf", "ffn_activate_fn": "gated_gelu"}
)
_SIZES = ("dim_model", "num_heads", "dim_head", "dim_ff", "num_layers")
# The prompt and the segment that the data of a source uses, and its shortest text; else those of plain text.
_TEXT = (TEXT_TASK, TEXT_SEGMENT, 2)
PAIRS_HINT = 'add "pairs": ["[post]encoder.output_layernorm:[post]encoder.output_layernorm"]'
STATES_HINT = 'such modules are "encoder.output_layernorm", "encoder.layers.0" and what is in it'
_SOURCES = {"pairs": (PAIR_TASK, TEXT_SEGMENT, 3), "cpm-live": (0, 0, 2)}


def older_key(key: str, value: Any) -> str | None:
    """Say how an older config's key contradicts this family; empty where it does not, None for no such key."""
    if key not in _OLDER:
        return None
    only = _OLDER[key]
    return "" if only is None or value == only else f"{key} {show(value)}; CPM-Ant has {show(only)}"


def config_findings(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[Diagnostic]:
    """Tell what disagrees in a config that its schema has nothing against, and what it leaves to `defaults`."""
    whole = {**defaults, **config}
    count, columns = int(whole["num_layers"]), int(whole["num_heads"])
    for key in ("mask_modules", "layers"):
        if whole[key] is not None and len(whole[key]) != count:
            message = f"{key} has {len(whole[key])} entries for num_layers {count}"
            yield _mismatch(f"/{key}", message, f"give {count} entries, one per layer")
    buckets, distance = int(whole["position_bias_num_buckets"]), int(whole["position_bias_max_distance"])
    if distance <= buckets // 4:
        message = f"{distance} is not above a quarter of the {buckets} buckets"
        yield _mismatch("/position_bias_max_distance", message, f"give at least {buckets // 4 + 1}")
    for index, layer in enumerate(whole["layers"] or ()):
        yield from _layer_findings(f"/layers/{index}", layer, columns)
    # `mask_modules` says again what `layers` says; where they disagree nobody knows which is meant.
    for index, (pair, layer) in enumerate(zip(whole["mask_modules"] or (), whole["layers"] or (), strict=False)):
        if pair != (absent := [layer["heads"] is None, layer["dim_ff"] is None]):
            message = f"{show(pair)} disagrees with layers, by which it is {show(absent)}"
            yield _mismatch(f"/mask_modules/{index}", message, "change one of them, or leave out mask_modules")
    yield from _sizes_left_out(config, defaults)


def _mismatch(pointer: str, message: str, hint: str) -> Diagnostic:
    return Diagnostic("config-mismatch", message, hint, pointer=pointer)


def _layer_findings(pointer: str, layer: Mapping[str, Any], columns: int) -> Iterator[Diagnostic]:
    heads, kept = layer["heads"], layer.get("kept_heads")
    if (heads is None) != (layer["dim_head"] is None):
        message = f"heads is {show(heads)} and dim_head is {show(layer['dim_head'])}"
        yield _mismatch(pointer, message, "give both, or null for both: no attention")
    elif heads is not None and heads > columns:
        message = f"{int(heads)} is above num_heads {columns}, the columns of the position-bias table"
        yield _mismatch(f"{pointer}/heads", message, f"give at most {columns}")
    elif kept is not None:
        for index, column in enumerate(kept):
            if column >= columns:
                message = f"{int(column)} is not a head of 0 to {columns - 1}"
                yield _mismatch(f"{pointer}/kept_heads/{index}", message, "give the head's index in num_heads")
        if len(kept) != (count := int(heads or 0)):
            message = f"kept_heads has {len(kept)} entries for {count} heads"
            yield _mismatch(f"{pointer}/kept_heads", message, f"give {count} entries, one per head")


def _sizes_left_out(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[Diagnostic]:
    """Tell of sizes not given: a config in other words would be taken for CPM-Live's largest defaults."""
    missing = {key: defaults[key] for key in ("vocab_size", *_SIZES) if key not in config}
    if any(key not in defaults for key in config) and missing.keys() >= {*_SIZES}:
        message = f"the config gives none of {', '.join(_SIZES)}"
        yield Diagnostic("foreign-config", message, "write it in CPM-Live's keys")
    elif missing:
        hint = f"CPM-Live's defaults are taken: {', '.join(f'{key} {size}' for key, size in missing.items())}"
        yield Diagnostic("default-size", f"the config doesn't give {', '.join(missing)}", hint, "warning")


def data_findings(config: ModelConfig, data: Mapping[str, Any]) -> Iterator[Diagnostic]:
    """Tell prompts and segments that a plan's data needs and the model lacks, and no room for a prompt and text."""
    prompt, segment, text = _SOURCES.get(data["source"], _TEXT)
    if config.prompt_types <= prompt or config.segment_types <= segment:
        least = f"prompt_types of at least {prompt + 1} and segment_types of at least {segment + 1}"
        if prompt == segment:
            least = f"prompt_types and segment_types of at least {prompt + 1}"
        needs = f"{'pairs need' if data['source'] == 'pairs' else 'text needs'} {least}"
        has = f"the model has prompt_types {config.prompt_types} and segment_types {config.segment_types}"
        yield Diagnostic("too-few-types", f"{needs}; {has}", "raise them in the model's config", pointer="/data/source")
    least_length = config.prompt_length + text
    if data.get("max_length", least_length) < least_length:
        message = f"{data['max_length']} leaves no room for text after a prompt of {config.prompt_length}"
        yield Diagnostic("prompt-too-long", message, f"give at least {least_length}", pointer="/data/max_length")
