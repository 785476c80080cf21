"""Damages measured at the output: KL(dense || changed) in nats a token, of a choice alone in the dense model.

Nothing in front of its block is computed again. The choices of a block go through the blocks behind it together, each
of which is read once for all of them, and through the head some tokens of the vocabulary after the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from sprunec.engines.checkpoints import Saves
from sprunec.masks.search.changes import Change, Made, changed
from sprunec.masks.search.sampled import asked_states, log_sums, vocabulary_parts
from sprunec.masks.search.walked import Walked
from sprunec.plan.scale import FLOAT, TAILS
from sprunec.rewrite.gating import Gates
from sprunec.rewrite.trace import TracedBlock


class Divergence:
    """The dense model's output, and how far from it choices lead.

    Args:
        blocks: all of the model's, gated, where choices are made in them.
        gates: of their sublayers.
    """

    dtype = torch.float64

    def __init__(self, dense: Walked, blocks: Sequence[TracedBlock] = (), gates: Gates | None = None) -> None:
        self._dense, self._blocks, self._gates, self._sums = dense, blocks, gates, list[Tensor]()

    def prepare(self, saves: Saves | None, tell: Callable[[int, int], None]) -> None:
        """Go through the dense model, or on from where this was stopped; it saves and tells by itself."""
        self._dense.walk()

    def state(self) -> dict[str, Any]:
        """Say what finds all again that has been kept."""
        return self._dense.state()

    def load(self, state: dict[str, Any]) -> bool:
        """Find it again; False if something is no longer what it was."""
        return self._dense.load(state)

    @torch.no_grad()
    def damages(self, number: int, choices: Iterable[Made]) -> Iterator[float]:
        """Measure choices in a block, which has its weights, each alone."""
        way, fronts, left = self._dense.way, self._dense.fronts[number], self._each(choices)
        most = max(1, TAILS // max(1, FLOAT * sum(states.numel() for states in fronts)))
        with way.stream.entrance():
            while states := list(map(partial(self._behind, number), islice(left, most))):
                for path in way.stream.paths[number + 1 :]:
                    with way.stream.holding_whole(path):
                        for each in states:
                            each[:] = [way.output(path, place, before) for place, before in enumerate(each)]
                yield from self.divergences(states)

    def _each(self, choices: Iterable[Made]) -> Iterator[Sequence[Change] | str]:
        for choice in choices:
            if isinstance(choice, str):
                yield choice
            else:
                yield from (choice.changes(self._dense.way.stream.model, each) for each in range(len(choice.counts)))
            del choice  # which is large, and must not wait for the next one

    def _behind(self, number: int, choice: Sequence[Change] | str) -> list[Tensor]:
        """Give the states behind a block with a choice in it."""
        fronts, way, block = self._dense.fronts[number], self._dense.way, self._blocks[number]
        if choice == "block":
            return list(fronts)
        with self._closed(number, choice) if isinstance(choice, str) else changed(way.stream.model, block, choice):
            return [way.output(block.path, place, states) for place, states in enumerate(fronts)]

    @contextmanager
    def _closed(self, number: int, sublayer: str) -> Iterator[None]:
        """Leave a sublayer out meanwhile."""
        device = self._dense.way.stream.device
        assert self._gates is not None
        self._gates.set(number, sublayer, torch.zeros(1, device=device))
        try:
            yield
        finally:
            self._gates.set(number, sublayer, torch.ones(1, device=device))

    @torch.no_grad()
    def divergences(self, changed: list[list[Tensor]]) -> Iterator[float]:
        """Give the mean divergence for each changed model's states (B, N, D) behind the last block, by batch."""
        self._sums = self._sums or log_sums(self._dense)
        masks = [asked.to(self._dense.way.stream.device) for asked in self._dense.asked]
        found = [[_Divergences(sums) for sums in self._sums] for _ in changed]
        for tokens in vocabulary_parts(self._dense):
            with self._dense.way.stream.exit(tokens) as logits:
                for number, mask in enumerate(masks):
                    ours = logits(asked_states(self._dense, number)).float()
                    for states, each in zip(changed, found, strict=True):
                        each[number].add(ours, logits(states[number][mask]).float())
        for each in found:
            yield max(0.0, sum(some.total() for some in each) / self._dense.tokens)


class _Divergences:
    """Of n positions, while the vocabulary comes by in parts: the mean of differences of logits, and softmax's sums."""

    def __init__(self, sums: Tensor) -> None:
        self._dense, self._changed = sums, torch.full_like(sums, -torch.inf)
        self._difference = torch.zeros_like(sums, dtype=torch.double)

    def add(self, dense: Tensor, changed: Tensor) -> None:
        """Take logits (n, tokens)."""
        shares = (dense - self._dense[:, None]).exp()
        self._difference += (shares * (dense - changed)).double().sum(1)
        self._changed = torch.logaddexp(self._changed, changed.logsumexp(1))

    def total(self) -> float:
        return float((self._difference + self._changed.double() - self._dense.double()).sum())
