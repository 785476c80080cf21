"""The arguments of a block's call, taken apart into the tensors among them and all else."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import SequenceKey, tree_flatten_with_path, tree_leaves, tree_unflatten

from sprunec.errors import TraceError
from sprunec.families.block_calls import BlockCall
from sprunec.families.huggingface.causal_mask import CausalMask

Path = tuple[Any, ...]


@dataclass
class Recorded:
    """A call of a block: what went in, what came out, and which layer of the cache it read and wrote, with what."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None
    layer: int | None = None
    past: tuple[Tensor, Tensor] | None = None


class LayerPast:
    """Stands for a cache where one block reads and writes its own layer."""

    is_compileable = False

    def __init__(self, key: Tensor, value: Tensor) -> None:
        self.key, self.value = key, value

    def update(self, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.key, self.value = torch.cat([self.key, key], -2), torch.cat([self.value, value], -2)
        return self.key, self.value

    def get_seq_length(self, *_: Any) -> int:
        return self.key.shape[-2]


def block_call(block: nn.Module, recorded: Recorded, past: int = 0) -> BlockCall:
    """Make of one recorded call how a block is called; `past` is the length of a past that it read."""
    leaves, spec = tree_flatten_with_path((recorded.args, recorded.kwargs))
    names = {path: _name(block, path) for path, leaf in leaves if isinstance(leaf, Tensor)}
    examples: dict[str, Tensor] = {names[path]: leaf for path, leaf in leaves if path in names}
    hidden = next(name for name, tensor in examples.items() if tensor.is_floating_point())
    batch, length = examples[hidden].shape[:2]
    order = sorted(names, key=lambda path: names[path] != hidden)
    inputs = {names[path]: examples[names[path]] for path in order}
    sizes: dict[int, tuple[tuple[str, int], ...]] = {batch: ((hidden, 0),), length: ((hidden, 1),)}
    if past:
        assert recorded.past is not None
        for name, new in zip(("past_key", "past_value"), recorded.past, strict=True):
            inputs[name] = torch.empty((*new.shape[:-2], past, new.shape[-1]), dtype=new.dtype, device="meta")
        sizes |= {past: (("past_key", 2),), past + length: (("past_key", 2), (hidden, 1))}

    def run(module: nn.Module, *given: Any) -> Any:
        here = dict(zip(order, given, strict=False))
        cache = LayerPast(*given[-2:]) if past else None
        filled = [here[path] if path in here else cache if _is_cache(leaf) else leaf for path, leaf in leaves]
        args, kwargs = tree_unflatten(filled, spec)
        result = module(*args, **kwargs)
        first = result[0] if isinstance(result, tuple | list) else result
        return (first, cache.key, cache.value) if cache is not None else first

    def tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, ...]:
        found = {path: leaf for path, leaf in tree_flatten_with_path((args, dict(kwargs)))[0] if leaf is not None}
        for path, leaf in found.items():
            if isinstance(leaf, Tensor) and path not in names:
                raise TraceError(f"a block is given {_name(block, path)}, which it was not when it was traced")
        cache = next((leaf for leaf in found.values() if _is_cache(leaf)), None)
        if cache is not None and not past:
            raise TraceError("a model whose blocks are graphs takes no cache: call it with use_cache=False")
        kept = () if cache is None else _layer_past(cache, recorded.layer)
        first = found[order[0]]
        seen = first.shape[1] + (kept[0].shape[-2] if kept else 0)
        given = (found[path] if path in found else _mask(inputs[names[path]], first, seen) for path in order)
        return (*given, *kept)

    def takes(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        return bool(past) == any(map(_is_cache, tree_leaves((args, dict(kwargs)))))

    constants = tuple((path, repr(leaf)) for path, leaf in leaves if path not in names and not _is_cache(leaf))
    others = len(recorded.output) - 1 if isinstance(recorded.output, tuple) else None
    return BlockCall(
        inputs, sizes, (constants, tuple(order)), run, takes, tensors,
        lambda states: states if others is None else (states, *[None] * others),
    )  # fmt: skip


def _name(block: nn.Module, path: Path) -> str:
    """Name a tensor as the block's signature does."""
    where, *keys = (key.idx if isinstance(key, SequenceKey) else key.key for key in path)
    if where == 0:
        keys[0] = list(inspect.signature(block.forward).parameters)[int(keys[0])]
    return "_".join(map(str, keys))


def _layer_past(cache: Any, layer: int | None) -> tuple[Tensor, Tensor]:
    held = cache.layers[layer] if layer is not None and layer < len(cache.layers) else None
    if held is None or held.keys is None:
        raise TraceError("a block is given a cache that has no past keys and values yet")
    return held.keys, held.values


def _is_cache(leaf: Any) -> bool:
    return hasattr(leaf, "update") and hasattr(leaf, "get_seq_length")


def _mask(example: Tensor, hidden: Tensor, length: int) -> Tensor:
    """Spell out the causal mask that a model leaves out where nothing else is to be masked."""
    if example.dim() != 4:
        raise TraceError("a block is not given all of the tensors that it was given when it was traced")
    mask = CausalMask.of(hidden.shape[1], length, hidden.device)
    if example.dtype == torch.bool:
        return mask
    lowest = torch.finfo(hidden.dtype).min
    return torch.zeros(mask.shape, dtype=hidden.dtype, device=hidden.device).masked_fill(~mask, lowest)
