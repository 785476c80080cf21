"""Decoding with past keys and values, block by block."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sprunec.families.base import Family, Inputs


class Decoding:
    """The last positions of a row, decoded one by one with past keys and values, beside one full forward.

    Args:
        model: of the family, with the weights of its embedding and of its shared parts.
        inputs: a batch.
        text: so many tokens of the row, at most.
    """

    def __init__(
        self, family: Family, model: nn.Module, inputs: Inputs, steps: int = 2, text: int = sys.maxsize
    ) -> None:
        (self.whole, self._given), parts, self._past = family.decode(model, inputs, steps, text)
        self._steps, self._each = [hidden for hidden, _ in parts], [given for _, given in parts]

    def through(self, index: int, path: str, block: Any) -> None:
        """Go through a block, which has its weights."""
        self.whole = block(self.whole, *self._given[path])
        past = self._past[index] or (None, None)
        for number, given in enumerate(self._each):
            self._steps[number], *past = block.forward_cached(self._steps[number], *given[path], *past)

    def state(self) -> list[Tensor]:
        """Say what the rest of the way depends on."""
        return [self.whole, *self._steps]

    def load(self, state: Sequence[Tensor]) -> None:
        """Go on behind the block after which `state` was."""
        device = self.whole.device
        self.whole, *self._steps = (each.to(device) for each in state)

    def both(self) -> tuple[Tensor, Tensor]:
        """Give the hidden states (n, D) that decoding has come to, and those of the full forward."""
        return torch.cat(self._steps, 1)[0], self.whole[0]
