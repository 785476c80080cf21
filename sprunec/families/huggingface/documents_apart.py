"""Rows of several documents, none of which sees another: what blocks are given of them, whatever their class masks."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sprunec.families.huggingface.causal_mask import CausalMask
from sprunec.families.huggingface.stock_model import called, stock_model

if TYPE_CHECKING:
    from sprunec.families.huggingface.transformers_config import TransformersConfig


def undivided(config: TransformersConfig) -> str:
    """Say why a class cannot keep the documents of a row apart; "" where it can."""
    parameters = inspect.signature(type(stock_model(config)).forward).parameters
    if "position_ids" not in parameters:
        return f"{stock_model(config).__class__.__name__} takes no position_ids"
    for block in called(config):
        hidden, *others = block.calls["forward"].inputs.values()
        if not any(len(each.shape) == 4 and {*each.shape[-2:]} == {hidden.shape[1]} for each in others):
            return f"{block.path} is given no mask of which position sees which"
    return ""


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
