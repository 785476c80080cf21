"""Traced graphs held against the modules that they were traced from, on the same inputs."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sprunec.errors import TraceError
from sprunec.families.block_calls import BlockCall
from sprunec.models.streamed import largest
from sprunec.rewrite.surgery import build
from sprunec.rewrite.trace import TracedBlock

Given = Mapping[str, tuple[str, tuple[Tensor, ...]]]  # by block path, which method is called, and its inputs
NOISE = 64  # times the arithmetic's step at the largest number that comes out


@torch.no_grad()
def given_to_blocks(model: nn.Module, blocks: Sequence[TracedBlock], **inputs: Any) -> Given:
    """Run a model, and list by path which method its call of each block is, and that method's inputs."""
    found: dict[str, tuple[str, tuple[Tensor, ...]]] = {}

    def note(block: TracedBlock, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        method = next(method for method, call in block.calls.items() if call.takes(args, kwargs))
        found[block.path] = method, block.calls[method].tensors(args, kwargs)

    handles = [
        block.module.register_forward_pre_hook(
            lambda _, args, kwargs, block=block: note(block, args, kwargs), with_kwargs=True
        )
        for block in blocks
    ]
    try:
        model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


@torch.no_grad()
def verify(blocks: Sequence[TracedBlock], given: Given) -> float:
    """Compute each block by its module and by its graph, on inputs as given and on random hidden states as large.

    Returns:
        The largest difference of all, as a part of the largest number that comes out of the block.

    Raises:
        TraceError: they are further apart than rounding explains; names the block.
    """
    worst = 0.0
    for block in blocks:
        method, inputs = given[block.path]
        graph = graph_module(block)
        hidden, *others = inputs
        random = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0)).to(hidden) * hidden.std()
        for states in (hidden, random):
            wanted = _tensors(block.calls[method].run(block.module, states, *others))
            found = _tensors(getattr(graph, method)(states, *others))
            for ours, theirs in zip(found, wanted, strict=True):
                part = largest(ours - theirs) / max(float(theirs.abs().max()), 1e-30)
                worst = max(worst, part)
                if part > NOISE * torch.finfo(theirs.dtype).eps:
                    raise TraceError(
                        f"{block.path}: its traced graph computes something else than its module: "
                        f"{part:.1e} of the largest number apart, where {torch.finfo(theirs.dtype).eps:.0e} is rounding"
                    )
    return worst


def verify_kinds(blocks: Sequence[TracedBlock]) -> None:
    """Hold one block of each kind against its graphs, on weights and inputs drawn at random, with and without a past.

    What a graph computes does not depend on the weights' values, so that those of the model need not be read for it.

    Raises:
        TraceError: see `verify`.
    """
    kinds = {id(block.forward): block for block in reversed(blocks)}
    for block in kinds.values():
        drawn = replace(block, module=_with_random_weights(block.module))
        for method, call in block.calls.items():
            verify([drawn], {block.path: (method, _random_inputs(call))})


def _with_random_weights(module: nn.Module) -> nn.Module:
    """Copy a module on the meta device: matrices around 0, vectors around 1; buffers as they are."""
    copied, generator = copy.deepcopy(module), torch.Generator().manual_seed(0)
    for owner in copied.modules():
        for name, old in owner.named_parameters(recurse=False):
            drawn = torch.randn(old.shape, generator=generator)
            setattr(owner, name, nn.Parameter(drawn * 0.1 if old.dim() > 1 else 1.0 + drawn * 0.1))
    return copied.eval()


def _random_inputs(call: BlockCall) -> tuple[Tensor, ...]:
    """Draw a few sequences of a few positions; positions and masks are what they are in a text."""
    alone = {where[0]: size for size, where in call.sizes.items() if len(where) == 1}
    small = dict(zip(alone.values(), (2, 5, 3), strict=False))  # sequences, positions, those of a past
    sums = {size: sum(small[alone[each]] for each in where) for size, where in call.sizes.items() if len(where) > 1}

    def resized(size: int) -> int:
        found = (few * (size // many) for many, few in small.items() if size % many == 0)
        return sums.get(size) or next(found, size)

    generator, drawn = torch.Generator().manual_seed(0), []
    for example in call.inputs.values():
        shape = [resized(size) for size in example.shape]
        if example.is_floating_point():
            drawn.append(torch.randn(shape, generator=generator))
        elif example.dtype == torch.bool:
            drawn.append(torch.ones(shape, dtype=torch.bool).tril(shape[-1] - shape[-2]))
        else:
            drawn.append(torch.arange(shape[-1], dtype=example.dtype).expand(shape))
    return tuple(drawn)


def graph_module(block: TracedBlock) -> Any:
    """Make a block's graphs a module over its own tensors."""
    graphs = {method: copy.deepcopy(program.graph) for method, program in block.programs.items()}
    saved = set(block.module.state_dict(keep_vars=True))
    tensors = block.tensors()
    state = {name: tensor for name, tensor in tensors.items() if name in saved}
    return build(graphs, {name: tensor for name, tensor in tensors.items() if name not in saved}, state, block)


def _tensors(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)
