"""The causal mask that a model leaves out where nothing else is masked, spelled out only where it is read."""

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
