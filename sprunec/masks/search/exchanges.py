"""What a little more or less of one sublayer does to a model that is cut already, all of it by one backward pass.

Damages are of a choice alone in the dense model. Where much is cut, choices no longer add up. So a solution is taken as
the place to look from: with δ what a choice changes of a sublayer's output there, refitted on what the cut model gives
it, the divergence changes by

    mean over tokens of  g · δ + (f · δ)² / 2,

g being the gradient of KL(dense || cut) at that output, and f that of a sampled next token's log probability, whose
mean square is the Fisher information, as in `fisher`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from sprunec.checkpoint.reader import Tensors
from sprunec.masks.search.changes import Made, Nested
from sprunec.masks.search.fisher import Fisher, Inside
from sprunec.masks.search.sampled import divergence_gradients, sampled_gradients
from sprunec.masks.search.walked import Walked
from sprunec.models.hidden_states import HiddenStates
from sprunec.rewrite.projections import Projection


class Exchanges(Fisher):
    """Gradients inside of a model that is cut and refitted, and what choices change there.

    Args:
        cut: that model, its mask on it.
        dense: what it was cut from; nothing is kept in front of its blocks.
        weights: the dense ones, by name.
        seed: of the samples.
    """

    def __init__(
        self,
        cut: Walked,
        dense: Walked,
        weights: Tensors,
        inside: Sequence[Inside],
        moving: HiddenStates,
        samples: int,
        seed: int,
    ) -> None:
        super().__init__(cut, inside, moving, samples, seed)
        self._dense, self._weights = dense, weights

    def _gradients(self) -> list[Tensor]:
        """Give for each batch those of the divergence and then the samples' (1 + S, B, N, D)."""
        self._dense.walk()
        drawn = sampled_gradients(self._walked, self._samples, self._seed)
        return [torch.cat(pair) for pair in zip(divergence_gradients(self._dense, self._walked), drawn, strict=True)]

    @torch.no_grad()
    def damages(self, number: int, choices: Iterable[Made]) -> Iterator[float]:
        """Measure choices in a block, which has its weights, each alone, and what the model has before all others."""
        there = list[Tensor]()  # by batch, what the choice that the model has does (1 + S, n)
        for nested in choices:
            assert isinstance(nested, Nested)
            if nested.taken is not None:
                there.clear()
            slopes, squares = torch.zeros(2, len(nested.counts), dtype=torch.double)
            for place, effects in enumerate(self._effects(number, nested)):
                if nested.taken is not None:
                    there.append(effects[nested.taken].clone())
                change = effects.sub_(there[place]).double().cpu()
                slopes += change[:, 0].sum(1)
                squares += change[:, 1:].square().sum((1, 2))
            yield from (slopes / self._walked.tokens + squares / 2 / (self._samples * self._walked.tokens)).tolist()
            del nested  # which is large, and must not wait for the next one

    def _weight(self, projection: Projection) -> Tensor:
        """Read the dense one: in the cut model those that stay have been refitted."""
        weight = self._weights[f"{projection.block.path}.{projection.tensor}"]
        return weight.to(self._walked.way.stream.device, torch.float32)
