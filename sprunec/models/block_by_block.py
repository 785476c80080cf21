"""Batches on their way through a model of any size, one block in memory while the next one is read.

So a model that is larger than the machine is calibrated, refitted and measured: memory is two blocks, and the hidden
states of all batches. Killed anywhere, it goes on in front of the block that it was at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sprunec.data.batches import Batch, in_use
from sprunec.engines.checkpoints import Saves
from sprunec.families.base import Given, Inputs
from sprunec.families.base_config import ModelConfig
from sprunec.heap import trim_heap
from sprunec.models.hidden_states import HiddenStates
from sprunec.models.streamed import Streamed
from sprunec.plan.scale import rows_at_once

GIVEN_BYTES = 2**28  # of what blocks are given besides; more is made again for each


class Enough(Exception):  # noqa: N818
    """Ends a run through a block, of which all has been seen that is wanted."""


class BlockByBlock:
    """A way through all blocks of a model.

    Args:
        stream: of float32, on its device the inputs of `batches`.
        batches: of few rows each, see `few_rows`.
        hidden: where hidden states are kept between blocks.
        saves: where the way is saved behind every block; None: nowhere.
        tell: takes, behind every block, how many are done of how many.

    Attributes:
        current: the batch that a block runs on.
        looked: how many of the first batches a block is looked at on; None: all.
    """

    def __init__(
        self,
        stream: Streamed,
        batches: Sequence[Batch],
        hidden: HiddenStates,
        saves: Saves | None = None,
        tell: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.stream, self.batches, self.hidden, self._saves, self._tell = stream, batches, hidden, saves, tell
        self.current: Inputs = {}
        self.looked: int | None = None
        self._following: list[str] = []
        self._given: dict[int, Given] = {}  # by which inputs it is of
        self._given_bytes = 0

    @torch.no_grad()
    def blocks(self, found: Callable[[], Any], restore: Callable[[Any], bool]) -> Iterator[str]:
        """Give the path of each block that is still to be gone through; it has its weights until the next is asked for.

        Args:
            found: says, behind a block, what is to be found again when the way is gone on.
            restore: takes it; False if that is no longer good, and all begins anew.
        """
        paths = self.stream.paths
        with self.stream.entrance():
            first = self._continued(restore) or self._begun()
            for index in range(first, len(paths)):
                self._following = paths[index + 1 : index + 2]
                with self.stream.holding_whole(paths[index]):
                    yield paths[index]
                trim_heap()
                self.hidden.turn()
                self._tell(index + 1, len(paths))
                if self._saves is not None:
                    state = {"done": index + 1, "hidden": self.hidden.state(), "found": found()}
                    self._saves.after_step(index + 1, len(paths), partial(dict, state))

    def _continued(self, restore: Callable[[Any], bool]) -> int:
        """Go on from the last save; count the blocks that are done."""
        saved = self._saves.latest() if self._saves is not None else None
        if saved is None or not self.hidden.load(saved["hidden"]) or not restore(saved["found"]):
            return 0
        done: int = saved["done"]
        return done

    def _begun(self) -> int:
        for number in range(len(self.stream.batches)):
            states, _ = self._enter(number)
            if not number:
                self.hidden.start([(*in_use(batch).shape, states.size(-1)) for batch in self.stream.batches])
            self.hidden.put(number, states)
        self.hidden.turn()
        return 0

    def output(self, path: str, number: int, states: Tensor) -> Tensor:
        """Run a block, which must be there, on states (B, N, D) of a batch, which is then the current one."""
        self.current = self.stream.batches[number]
        output: Tensor = self.stream.model.get_submodule(path)(states, *self._given_of(number)[path])
        return output

    def look(self, path: str) -> None:
        """Run a block, which must be there, on every batch to look at, as far as those who watch it want."""
        for number in range(len(self.hidden))[: self.looked]:
            with suppress(Enough):
                self.output(path, number, self.hidden[number])
        trim_heap()

    def advance(self, path: str) -> None:
        """Bring all batches behind a block, which must be there, and read the next one meanwhile."""
        self.read_following()
        for number in range(len(self.hidden)):
            self.hidden.put(number, self.output(path, number, self.hidden[number]))

    def read_following(self) -> None:
        """Begin to read the next block."""
        for following in self._following:
            self.stream.read_ahead(following)

    def _given_of(self, number: int) -> Given:
        """Say what blocks are given of a batch besides its hidden states."""
        return self._given.get(id(self.stream.batches[number])) or self._enter(number)[1]

    def _enter(self, number: int) -> tuple[Tensor, Given]:
        inputs = self.stream.batches[number]
        hidden, given = self.stream.family.enter(self.stream.model, inputs)
        each = {id(tensor): tensor.untyped_storage().nbytes() for some in given.values() for tensor in some}
        if id(inputs) not in self._given and self._given_bytes + sum(each.values()) <= GIVEN_BYTES:
            self._given_bytes += sum(each.values())
            self._given[id(inputs)] = given
        return hidden, given


def few_rows(batches: Iterable[Batch], config: ModelConfig, share: int = 1) -> Iterator[Batch]:
    """Split batches so that no state inside a block is large; what is computed of a row is the same.

    Args:
        share: how many such states there are at a time, as where a backward pass needs them.
    """
    for batch in batches:
        count, width = batch.targets.shape
        at_once = max(1, rows_at_once(config, width) // share)
        yield from (batch.part(slice(first, first + at_once), width) for first in range(0, count, at_once))
