"""What choices change of a model that is cut, told again on whole models in memory, see `naive_choices`."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sprunec.data.batches import Batch
from sprunec.masks.search.damages_file import Damages
from sprunec.plan.search.choices import Choice
from tests.helpers.choices import OPTIONS
from tests.helpers.naive_choices import Naive, weight

Place = tuple[int, str]


class NaiveExchanges(Naive):
    """A model whose weights are really cut, and the dense one beside it.

    Args:
        found: damages whose scores say which columns choices keep.
        taken: what the model has of every sublayer.
        scale: what its weights are multiplied by where they stay, as a refit might.
    """

    def __init__(
        self, kind: str, dense: Any, given: Sequence[Batch], found: Damages, taken: Mapping[Place, Choice], scale: float
    ) -> None:
        super().__init__(kind, copy.deepcopy(dense), given, found, OPTIONS["ridge"])
        self.dense, self.taken = Naive(kind, dense, given, found, OPTIONS["ridge"]), taken
        for choice in taken.values():
            for sublayer in ("attention", "feed_forward") if choice.sublayer == "block" else (choice.sublayer,):
                self.cut(replace(choice, sublayer=sublayer), scale)

    def cut(self, choice: Choice, scale: float) -> None:
        module: Any = self.module(choice, 0)
        held = weight(module)
        if choice.kept:
            gone = torch.ones(held.size(1), dtype=torch.bool)
            gone[self.columns(choice, held.size(1))] = False
            held.mul_(scale)[:, gone] = 0.0
            return
        held.zero_()
        if getattr(module, "bias", None) is not None:
            module.bias.data.zero_()

    def old(self, choice: Choice) -> Tensor:
        return weight(self.dense.module(choice, 0))

    def changes(self, offered: Sequence[Choice], samples: int, seed: int) -> Iterator[float]:
        """Give the slope of the divergence along each change, and half the mean of (f . d)²."""
        noise, totals, asked = torch.Generator().manual_seed(seed), [0.0] * len(offered), 0
        uniform = [torch.rand(samples, int(each.sum()), generator=noise, dtype=torch.double) for each in self._asked()]
        for (batch, mask), draws in zip(self._pairs(), uniform, strict=True):
            used = torch.arange(batch.targets.size(1)) < batch.inputs["length"][:, None]
            asked += int(mask.sum())
            with torch.no_grad():
                dense = self.dense.run(batch).log_softmax(-1)[mask]
            for number in range(samples + 1):
                with self._outputs() as outputs:
                    logs = self.run(batch).log_softmax(-1)[mask]
                if number == 0:
                    (dense.exp() * (dense - logs)).sum().backward()
                else:
                    drawn = (logs.detach().double().exp().cumsum(-1) <= draws[number - 1][:, None]).sum(-1)
                    logs.gather(1, drawn[:, None]).sum().backward()
                for place, choice in enumerate(offered):
                    given, state = outputs[choice.layer, choice.sublayer, 0]
                    own = self.taken[choice.layer, choice.sublayer]
                    along = ((state.grad * (given @ (self._of(choice) - self._of(own)).T)).sum(-1)[used]).double()
                    totals[place] += float(along.square().sum() / 2 / samples if number else along.sum())
        yield from (total / asked for total in totals)
