"""How a model calls its blocks: which of their arguments are tensors, and so inputs of a block's graph."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sprunec.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class BlockCall:
    """A way that a block is called.

    Attributes:
        inputs: by name, examples on the meta device, the hidden states (B, N, D) first; of a call with past keys and
            values, those last.
        sizes: numbers so large and odd that each stands for one thing: the sum of the named inputs' dims.
        constants: what else the block is given.
        run: (block, *inputs) -> hidden states, or with a past (hidden states, keys, values).
        takes: (args, kwargs) -> whether the model calls it this way.
        tensors: (args, kwargs) of such a call by the model -> the inputs.
        result: hidden states -> what the block gives to the model.
    """

    inputs: Mapping[str, Tensor]
    sizes: Mapping[int, tuple[tuple[str, int], ...]]
    constants: Hashable
    run: Callable[..., Any]
    takes: Callable[[tuple[Any, ...], Mapping[str, Any]], bool]
    tensors: Callable[[tuple[Any, ...], Mapping[str, Any]], tuple[Tensor, ...]]
    result: Callable[[Tensor], Any]


@dataclass(frozen=True)
class CalledBlock:
    """A block of a model, as a module without memory, and by method how the model calls it.

    `calls` has "forward", and of a block that takes past keys and values "forward_cached".
    """

    path: str
    module: nn.Module
    calls: Mapping[str, BlockCall]


def hand_on(block: nn.Module, other: nn.Module) -> None:
    """Let what takes a block's place answer as it does: models ask their blocks for such as the kind of attention."""
    for name, value in vars(block).items():
        if not name.startswith("_") and isinstance(value, int | float | str) and not hasattr(other, name):
            setattr(other, name, value)


Terms = tuple[tuple[int, tuple[str, ...]], ...]  # a dim: the sum of numbers times units


@dataclass(frozen=True)
class BlockUnits:
    """What a block's tensors are made of, as its graph says.

    Attributes:
        counts: how many units of each kind it has.
        tensors: by kind of sublayer, and "" for what several share: names, and of each dim the terms.
        fixed: units that cannot be cut, and why.
    """

    counts: Mapping[str, int]
    tensors: Mapping[str, Mapping[str, tuple[Terms, ...]]]
    fixed: Mapping[str, str]


@dataclass(frozen=True)
class UnitReader:
    """How units are found in blocks that nothing is known of."""

    name: str
    read: Callable[[Sequence[CalledBlock]], tuple[BlockUnits, ...]]


UNIT_READERS = Registry(UnitReader, "sprunec.rewrite.block_units")
