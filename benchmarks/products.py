"""The matrix products of a training step, recorded once, and made again alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Products(TorchDispatchMode):
    """Record the matrix products of what runs under it, those of fused attention as what they stand for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        if func in (aten.mm.default, aten.bmm.default):
            self.found.append((func, [alike(each) for each in args]))
        elif func == aten.addmm.default:
            self.found.append((aten.mm.default, [alike(each) for each in args[1:3]]))
        elif func == aten._scaled_dot_product_flash_attention_for_cpu.default:
            self._attention(*args[:3], times=1)
        elif func == aten._scaled_dot_product_flash_attention_for_cpu_backward.default:
            self._attention(*args[1:4], times=2)  # each product has two gradients
        return func(*args, **(kwargs or {}))

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, times: int) -> None:
        query, key, value = (torch.rand(each.shape).flatten(0, 1) for each in (query, key, value))
        scores = torch.rand(query.size(0), query.size(1), key.size(1))
        self.found += [(torch.bmm, [query, key.mT]), (torch.bmm, [scores, value])] * times

    def again(self) -> None:
        for product, factors in self.found:
            product(*factors)


def alike(tensor: Tensor) -> Tensor:
    """Draw numbers that lie in memory as a tensor's do."""
    return torch.empty_strided(tensor.shape, tensor.stride()).uniform_()
