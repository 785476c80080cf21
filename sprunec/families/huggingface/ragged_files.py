"""A model of `transformers` whose layers are unlike: its own class builds every one by sizes that config.json has.

The directory brings `modeling_pruned.py`, some sixty lines for all families, and opens with `trust_remote_code=True`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from string import Template
from typing import Any

import torch

from sprunec.checkpoint.safetensors_file import Shape
from sprunec.errors import FormatError
from sprunec.families.block_calls import CalledBlock
from sprunec.families.huggingface.stock_model import build_block, called, stock_model
from sprunec.families.huggingface.tensor_layouts import KEYS
from sprunec.families.huggingface.transformers_config import TransformersConfig
from sprunec.families.own_code import MODULES
from sprunec.units import SUBLAYERS, sublayers_of

MODELING = "modeling_pruned"
CLASSES = {"AutoConfig": "PrunedConfig", "AutoModelForCausalLM": "PrunedForCausalLM"}


def ragged_config(config: TransformersConfig, document: Mapping[str, Any]) -> dict[str, Any]:
    """Add to a config.json, which is right for the blocks that are left, what each of them has.

    Raises:
        FormatError: the class cannot build a layer of such sizes.
    """
    there = config.left
    attending = [bool(config.layers[index].heads) for index in there]
    before, after = config.uncut.tensors(), config.tensors()
    layers = [_layer(config, index, before, after) for index in there]
    for about, slot in zip(layers, cache_slots(attending), strict=True):
        about["cache"] = slot
    changed = dict(document)
    if isinstance(types := document.get("layer_types"), list):
        changed["layer_types"] = [types[place] for place in kinds_of_cache(attending)]
    return changed | {
        "model_type": f"pruned-{document['model_type']}",
        "architectures": [CLASSES["AutoModelForCausalLM"]],
        "auto_map": {auto: f"{MODELING}.{name}" for auto, name in CLASSES.items()},
        "pruned": {"blocks": config.layout.blocks, "layers": layers},
    }


def modeling_source(config: TransformersConfig) -> str:
    """Fill in the template beside this file what differs from family to family: the class that is changed."""
    whole = stock_model(config)
    module = type(whole).__module__
    if module.startswith(f"{MODULES}."):  # its file goes along
        module = f".{module.rpartition('.')[2]}"
    words = {"module": module, "model": type(whole).__name__, "config": type(whole.config).__name__}
    text = Path(__file__).with_name(f"{MODELING}.txt").read_text(encoding="utf-8")
    return Template(text).substitute(words, title=config.layout.title, kind=config.document["model_type"])


def head_name(config: TransformersConfig) -> str:
    """Give the head's name in its class, which may have another one on disk."""
    whole = stock_model(config)
    found: list[str] = [name for name, module in whole.named_modules() if module is whole.get_output_embeddings()]
    return f"{found[0]}.weight"


def kinds_of_cache(attending: Sequence[bool]) -> list[int]:
    """Give for each layer the one whose kind of attention its place in the cache is made for.

    The layers of a cache are made by the config's list of kinds, and its length is asked of its first layer, or of the
    first one of a kind. One without attention therefore takes the kind of the next one that has it.
    """
    found, last = [], len(attending) - 1 - list(reversed(attending)).index(True)
    for index in range(len(attending)):
        found.append(next((later for later in range(index, last + 1) if attending[later]), last))
    return found


def cache_slots(attending: Sequence[bool]) -> list[int]:
    """Give each layer its place in the cache: one behind layers without attention takes the first of theirs."""
    kinds = kinds_of_cache(attending)
    return [kinds.index(index) if has else index for index, has in enumerate(attending)]


def _layer(
    config: TransformersConfig, index: int, before: Mapping[str, Shape], after: Mapping[str, Shape]
) -> dict[str, Any]:
    """Say how the class builds one layer; `before` and `after` are the model's tensors, uncut and cut."""
    block, blocks = called(config)[index], config.layout.blocks
    names = {name: f"{blocks}.{index}.{name}" for name in dict(block.module.named_parameters())}
    wanted = {name: after[whole] for name, whole in names.items() if whole in after}
    changed = [
        (name, dim)
        for name in wanted.keys() & {each.partition("?")[0] for each in config.layout.attention}
        for dim, size in enumerate(wanted[name])
        if size != before[names[name]][dim]
    ]
    for sizes in _attempts(config, index):
        layer = build_block(stock_model(config).config, block, index, sizes)
        built = {} if layer is None else {name: tuple(tensor.shape) for name, tensor in layer.named_parameters()}
        if built and all(built[name][dim] == wanted[name][dim] for name, dim in changed):
            others = {name: list(shape) for name, shape in wanted.items() if built[name] != shape}
            return {"config": sizes, "shapes": others, "absent": _absent(config, block, index)}
    raise FormatError(f"{config.layout.title}'s class cannot build layer {index} with {config.layers[index].counts}")


def _attempts(config: TransformersConfig, index: int) -> Iterator[dict[str, int]]:
    """Give the values of a config that a layer may be built by; where its heads are D / H wide, of another width D."""
    layer, before, known = config.layers[index], config.uncut.layers[index], stock_model(config).config
    sizes = {"F": layer.dim_ff} if layer.dim_ff not in (0, before.dim_ff) else {}
    if layer.heads and layer != replace(before, dim_ff=layer.dim_ff):
        sizes |= {"H": layer.heads, "G": layer.kv_groups or layer.heads}
        yield _keyed(config, known, sizes | ({"E": layer.dim_head} if layer.dim_head else {}))
        sizes["D"] = layer.heads * layer.dim_head
    yield _keyed(config, known, sizes)


def _keyed(config: TransformersConfig, known: Any, sizes: Mapping[str, int]) -> dict[str, int]:
    keys = {**KEYS, **config.layout.keys}
    named = {letter: next((key for key in keys[letter] if hasattr(known, key)), None) for letter in sizes}
    return {key: sizes[letter] for letter, key in named.items() if key is not None}


def _absent(config: TransformersConfig, block: CalledBlock, index: int) -> dict[str, int]:
    """List the modules of sublayers that are gone, with how many things each gives besides hidden states."""
    gone = [kind for kind in SUBLAYERS if kind not in sublayers_of(config.layers[index].counts)]
    modules = dict.fromkeys(name.partition(".")[0] for kind in gone for name in getattr(config.layout, kind))
    found: dict[str, int] = {}
    handles = [
        block.module.get_submodule(name).register_forward_hook(
            lambda *its, name=name: found.update({name: len(its[-1]) - 1 if isinstance(its[-1], tuple) else 0})
        )
        for name in modules
    ]
    call = block.calls["forward"]
    with torch.no_grad():
        call.run(block.module, *call.inputs.values())
    for handle in handles:
        handle.remove()
    return found
