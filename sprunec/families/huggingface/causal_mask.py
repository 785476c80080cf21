"""The causal mask that a model leaves out, spelled out only where it is read; and masks between documents of a row."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map


class CausalMask(Tensor):
    """A mask (1, 1, N, S), True where a position sees: itself, and what stands before it.

    Torch's attention is told so, and reads half of the scores; anything else reads the mask itself.
    """

    @classmethod
    def of(cls, new: int, seen: int, device: torch.device) -> CausalMask:
        """Make one for `new` positions behind others, `seen` in all; it takes no memory."""
        return torch.ones((), dtype=torch.bool, device=device).expand(1, 1, new, seen).as_subclass(cls)

    @cached_property
    def spelled(self) -> Tensor:
        *_, new, seen = self.shape
        return torch.ones(new, seen, dtype=torch.bool, device=self.device).tril(seen - new)[None, None]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        with torch._C.DisableTorchFunctionSubclass():
            if func.__name__ == "__get__":
                return func(*args, **kwargs)
            mask = kwargs.get("attn_mask")
            if func is F.scaled_dot_product_attention and isinstance(mask, cls) and mask.shape[-2] == mask.shape[-1]:
                return func(*args, **kwargs | {"attn_mask": None, "is_causal": True})
            args, kwargs = tree_map(lambda leaf: leaf.spelled if isinstance(leaf, cls) else leaf, (args, kwargs))
            return func(*args, **kwargs)


class Apart:
    """Closes masks between documents: block by block on the diagonal, each as the class makes it for one text.

    What a class masks by the distance of two positions, as a window does, is the same within each document. Blocks that
    share a mask share what is made of it.

    Args:
        position: (B, N) in its document, 0 where one begins.
    """

    def __init__(self, position: Tensor) -> None:
        document = (position == 0).cumsum(1)
        self._same = document[:, None, :, None] == document[:, None, None, :]
        self._made: dict[object, tuple[Tensor, Tensor]] = {}

    def __call__(self, given: Tensor) -> Tensor:
        """Give a mask (B or 1, H or 1, N, N) its other form; whatever else a block is given stays."""
        if len(given.shape) != 4 or given.shape[-2:] != self._same.shape[-2:]:
            return given
        key = CausalMask if isinstance(given, CausalMask) else id(given)
        if key not in self._made:  # with the mask itself, whose id is then no other's
            self._made[key] = given, self._close(given)
        return self._made[key][1]

    def _close(self, mask: Tensor) -> Tensor:
        plain = mask.spelled if isinstance(mask, CausalMask) else mask
        if plain.dtype == torch.bool:
            return plain & self._same
        return plain.masked_fill(~self._same, torch.finfo(plain.dtype).min)
