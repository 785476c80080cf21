"""Find the decoder blocks of a causal language model, and record what it gives them.

Nothing is known of the model but that it is called as all of `transformers` are: no name in it is looked at. A copy
without memory runs on the meta device, with a batch and lengths that are large primes, so that every size in what a
block is given, and in what it computes of that, can be told from all others.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sprunec.errors import TraceError
from sprunec.families.block_calls import CalledBlock
from sprunec.families.huggingface.arguments import Recorded, block_call
from sprunec.families.torch_modes import values_unread

BATCH, NEW, PAST = 10007, 20011, 30011
OWN_TYPE = torch.bfloat16  # nothing asks for it by name, so what has it in the copy follows the run's own type


def record_calls(model: nn.Module) -> tuple[CalledBlock, ...]:
    """List a model's decoder blocks, and how it calls them without and with past keys and values.

    Raises:
        TraceError: the model does not run without its weights, or no list of modules in it runs once for each member.
    """
    from transformers import DynamicCache

    shape = on_meta(model)
    cache = DynamicCache()
    try:
        with values_unread():
            plain = _record(shape, NEW)
            _record(shape, PAST, cache, 0)
            cached = _record(shape, NEW, cache, PAST)
    except Exception as error:
        raise TraceError(f"{type(model).__name__} does not run on the meta device: {error}") from error
    found = []
    for path in _decoder(shape, plain):
        block, past = shape.get_submodule(path), cached[path][0]
        calls = {"forward": block_call(block, plain[path][0])}
        if past.layer is not None:
            calls["forward_cached"] = block_call(block, past, PAST)
        found.append(CalledBlock(path, block, calls))
    return tuple(found)


def on_meta(model: nn.Module) -> Any:
    """Copy a model without its tensors' values."""
    tensors = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers(), *tensors):
        dtype, shape = OWN_TYPE if tensor.is_floating_point() else tensor.dtype, tensor.shape
        if dtype == torch.bool and tensor.dim() > 1 and shape[-1] == shape[-2]:
            # A table of which position sees which, for no more of them than a text may have; it is sliced.
            shape = torch.Size((*shape[:-2], PAST + NEW, PAST + NEW))
        empty = torch.empty(shape, device="meta", dtype=dtype)
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(model, memo).eval()


def past_keyword(model: nn.Module) -> str:
    """Give the name of the argument that takes past keys and values: a release of `transformers` renames it."""
    return "cache" if "cache" in inspect.signature(type(model).forward).parameters else "past_key_values"


def _record(model: Any, length: int, cache: Any = None, past: int = 0) -> dict[str, list[Recorded]]:
    """Run a model on the meta device, and list by path what the members of its module lists were given."""
    seen: dict[str, list[Recorded]] = {}
    accepted = inspect.signature(type(model).forward).parameters
    given = {
        "input_ids": torch.empty(BATCH, length, dtype=torch.long, device="meta"),
        # With a mask over positions, and not one that is left out, blocks are given theirs as a tensor.
        "attention_mask": torch.ones(BATCH, past + length, dtype=torch.long, device="meta"),
        "use_cache": cache is not None,
        past_keyword(model): cache,
    }
    with _listening(model, seen, cache):
        model(**{name: value for name, value in given.items() if name in accepted or "kwargs" in accepted})
    return seen


@contextmanager
def _listening(model: nn.Module, seen: dict[str, list[Recorded]], cache: Any) -> Iterator[None]:
    running: list[Recorded] = []

    def enter(path: str, args: Any, kwargs: Any) -> None:
        seen.setdefault(path, []).append(Recorded(args, dict(kwargs)))
        running.append(seen[path][-1])

    def leave(output: Any) -> None:
        running.pop().output = output

    handles = []
    for path, members in model.named_modules():
        for name, block in members.named_children() if isinstance(members, nn.ModuleList) else ():
            whole = f"{path}.{name}"
            handles += [
                block.register_forward_pre_hook(lambda _, a, k, path=whole: enter(path, a, k), with_kwargs=True),
                block.register_forward_hook(lambda _, __, output: leave(output)),
            ]
    if cache is not None:
        update = type(cache).update

        def noted(key: Tensor, value: Tensor, layer: int, *rest: Any, **others: Any) -> Any:
            for each in running:
                each.layer, each.past = layer, (key, value)
            return update(cache, key, value, layer, *rest, **others)

        cache.update = noted
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _decoder(model: nn.Module, seen: dict[str, list[Recorded]]) -> list[str]:
    """Find the largest module list whose members have each run once."""
    lists = []
    for path, module in model.named_modules():
        members = [f"{path}.{name}" for name, _ in module.named_children()] if isinstance(module, nn.ModuleList) else []
        if members and all(len(seen.get(member, ())) == 1 for member in members):
            lists.append((sum(parameter.numel() for parameter in module.parameters()), members))
    if not lists:
        raise TraceError(f"{type(model).__name__} has no list of modules that runs once for each of its members")
    return max(lists, key=lambda found: found[0])[1]
