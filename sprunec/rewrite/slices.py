"""Keep some entries of a tensor along a dim, as fast as memory allows on a CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
LONG_RUN = 8


@dataclass(frozen=True)
class Selection:
    """Entries to keep along a dim, made ready once for all the parts that a tensor comes in.

    Attributes:
        index: of the entries, in their order.
        unit: see `common_unit`.
    """

    index: Tensor
    unit: int

    @classmethod
    def of(cls, kept: Sequence[int], size: int) -> Selection:
        """Make ready to keep `kept` of `size` entries."""
        return cls(torch.tensor(kept, dtype=torch.long), common_unit(kept, size))

    def __call__(self, tensor: Tensor, dim: int) -> Tensor:
        """Copy the entries along `dim`; without gradients."""
        tensor = tensor.detach()
        last = dim == tensor.dim() - 1 and dim > 0
        if not last or tensor.device.type != "cpu" or not self.index.numel() or not tensor.is_contiguous():
            return tensor.index_select(dim, self.index.to(tensor.device))
        if self.unit >= LONG_RUN:
            units: Tensor = tensor.unflatten(dim, (-1, self.unit))
            return units.index_select(dim, self.index[:: self.unit] // self.unit).flatten(dim)
        # torch picks single columns entry by entry, through its slowest loop; numpy copies whole words.
        words = tensor.view(INTEGERS[tensor.element_size()]).numpy()
        return torch.from_numpy(words.take(self.index.numpy(), axis=dim)).view(tensor.dtype)


def select(tensor: Tensor, dim: int, kept: Sequence[int]) -> Tensor:
    """Copy the entries `kept` along `dim`, in their order; without gradients."""
    return Selection.of(kept, tensor.shape[dim])(tensor, dim)


def common_unit(kept: Sequence[int], size: int) -> int:
    """Find the largest width that `kept` is whole aligned pieces of: heads of a projection are, single dims are not."""
    unit = size
    for place, index in enumerate(kept):
        if place == 0 or kept[place - 1] + 1 != index:
            unit = math.gcd(unit, index, place)
        if unit == 1:
            break
    return math.gcd(unit, len(kept))
