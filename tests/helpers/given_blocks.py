"""What a model gives its blocks, and their graphs held against their modules on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sprunec.models.verify import verify
from sprunec.rewrite.trace import TracedBlock

Calls = Mapping[str, tuple[str, tuple[Tensor, ...]]]  # by block path, which method is called, and its inputs


@torch.no_grad()
def given_to_blocks(model: nn.Module, blocks: Sequence[TracedBlock], **inputs: Any) -> Calls:
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


def verify_all(blocks: Sequence[TracedBlock], given: Calls) -> float:
    return max(verify(block, *given[block.path]) for block in blocks)
