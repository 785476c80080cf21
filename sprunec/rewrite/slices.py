"""Keep some entries of a tensor along a dim, as fast as memory allows on a CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
LONG_RUN = 8


def select(tensor: Tensor, dim: int, kept: Sequence[int]) -> Tensor:
    """A new tensor of the entries `kept` along `dim`, in their order; without gradients."""
    tensor = tensor.detach()
    index = torch.tensor(kept, dtype=torch.long, device=tensor.device)
    last = dim == tensor.dim() - 1 and dim > 0
    if not last or tensor.device.type != "cpu" or not len(kept) or not tensor.is_contiguous():
        return tensor.index_select(dim, index)
    unit = common_unit(kept, tensor.shape[dim])
    if unit >= LONG_RUN:
        units: Tensor = tensor.unflatten(dim, (-1, unit))
        return units.index_select(dim, index[::unit] // unit).flatten(dim)
    # torch picks single columns entry by entry, through its slowest loop; numpy copies whole words.
    words = tensor.view(INTEGERS[tensor.element_size()]).numpy()
    return torch.from_numpy(words.take(index.numpy(), axis=dim)).view(tensor.dtype)


def common_unit(kept: Sequence[int], size: int) -> int:
    """The largest width of which `kept` is whole aligned pieces: heads of a projection are, single dims are not."""
    unit = size
    for place, index in enumerate(kept):
        if place == 0 or kept[place - 1] + 1 != index:
            unit = math.gcd(unit, index, place)
        if unit == 1:
            break
    return math.gcd(unit, len(kept))
