"""A model on the text that damages are measured on: hidden states are kept in front of every block.

So a choice costs only what lies behind it, or in a backward pass the inside of one block at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sprunec.models.block_by_block import BlockByBlock
from sprunec.models.hidden_states import HiddenStates

States = list[dict[str, Any]]  # what finds hidden states again, by block


class Walked:
    """Batches on their way through a model, dense or cut, and what they were in front of each block.

    Args:
        way: behind the last block once `walk` has been; its hidden states are then what goes into the head.
        asked: of each batch, the positions (B, N) that damages are measured at.
        fronts: as many as there are blocks; none: only what is behind the last one is wanted.
    """

    def __init__(self, way: BlockByBlock, asked: Sequence[Tensor], fronts: Sequence[HiddenStates]) -> None:
        self.way, self.asked, self.fronts, self._done = way, asked, fronts, 0

    @property
    def tokens(self) -> int:
        return sum(int(some.sum()) for some in self.asked)

    def walk(self) -> None:
        """Go through all blocks, or on from where this was stopped."""

        def restore(saved: States) -> bool:
            self._done = len(saved)
            return all(front.load(state) for front, state in zip(self.fronts, saved, strict=False))

        self._done, numbers = 0, {path: number for number, path in enumerate(self.way.stream.paths)}
        for path in self.way.blocks(lambda: self._states(self._done), restore):
            for front in self.fronts[numbers[path] : numbers[path] + 1]:
                front.start([states.shape for states in self.way.hidden])
                for number, states in enumerate(self.way.hidden):
                    front.put(number, states)
                front.turn()
            self.way.advance(path)
            self._done = numbers[path] + 1

    def _states(self, done: int) -> States:
        return [front.state() for front in self.fronts[:done]]

    def state(self) -> dict[str, Any]:
        """Say what finds all of it again."""
        return {"fronts": self._states(len(self.fronts)), "behind": self.way.hidden.state()}

    def load(self, state: dict[str, Any]) -> bool:
        """Find it again; False if something is no longer what it was."""
        fronts = all(front.load(each) for front, each in zip(self.fronts, state["fronts"], strict=True))
        return fronts and self.way.hidden.load(state["behind"])
