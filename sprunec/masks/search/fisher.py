"""Damages of all choices from one backward pass: half the mean over tokens of (g . d)².

g is the gradient of the log probability of a sampled next token at a sublayer's output, and d the change that a choice
makes there. The mean of g gᵀ is the Fisher information, by which the divergence of the changed output from the dense
one is, to second order, half of dᵀ (g gᵀ) d. Choices that are nested need no weights of their own for that, see
`ordered_factor`.

First the gradient goes through the blocks from the last to the first, each run anew on the states in front of it, and
is kept where projections give their outputs. What whole sublayers and blocks would take away is known there as well.

Letters in shapes: S samples, B rows, N positions, n positions in use of a batch, O outputs, C features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sprunec.data.batches import in_use
from sprunec.engines.checkpoints import Saves
from sprunec.heap import trim_heap
from sprunec.masks.calibration import held_weight, rows_in_use
from sprunec.masks.search.changes import Made, Nested, by_position, seeing
from sprunec.masks.search.sampled import sampled_gradients
from sprunec.masks.search.walked import Walked
from sprunec.models.block_by_block import Enough
from sprunec.models.hidden_states import HiddenStates
from sprunec.rewrite.projections import Projection
from sprunec.rewrite.trace import TracedBlock

Key = tuple[int, str]  # a layer, and a kind of sublayer or "block"


@dataclass(frozen=True)
class Inside:
    """A block, the projections in it whose weights choices change, and where gradients at their outputs are kept.

    Those of all projections stand side by side: (S, B, N, sum of O).
    """

    block: TracedBlock
    projections: Sequence[Projection]
    kept: HiddenStates


class Fisher:
    """Gradients inside of the dense model, and the damages that follow from them.

    Args:
        walked: that model.
        inside: of all blocks, in order.
        moving: where the gradient is kept on its way.
        seed: of the samples.
    """

    dtype = torch.float32

    def __init__(self, walked: Walked, inside: Sequence[Inside], moving: HiddenStates, samples: int, seed: int) -> None:
        self._walked, self._inside, self._moving, self._samples, self._seed = walked, inside, moving, samples, seed
        self._absent = dict[Key, float]()

    def prepare(self, saves: Saves | None, tell: Callable[[int, int], None]) -> None:
        """Go through the dense model and back, or on from where this was stopped."""
        stream, count = self._walked.way.stream, len(self._inside)
        saved = saves.latest() if saves is not None else None
        with stream.entrance():
            done = saved["done"] if saved is not None and self._continued(saved) else self._begun()
            while done < count:
                number = count - 1 - done
                with stream.holding_whole(stream.paths[number]):
                    for before in stream.paths[max(0, number - 1) : number]:
                        stream.read_ahead(before)
                    self._through(number)
                trim_heap()
                done += 1
                tell(done, count)
                if saves is not None:
                    state = self._state(done) | {"moving": self._moving.state()}
                    saves.after_step(done, count, lambda state=state: state)  # type: ignore[misc]

    def _begun(self) -> int:
        self._walked.walk()
        gradients = self._gradients()
        self._moving.start([each.shape for each in gradients])
        for number, each in enumerate(gradients):
            self._moving.put(number, each)
        self._moving.turn()
        return 0

    def _gradients(self) -> list[Tensor]:
        """Give for each batch the gradients (S, B, N, D) behind the last block."""
        return sampled_gradients(self._walked, self._samples, self._seed)

    def _continued(self, saved: dict[str, Any]) -> bool:
        return self.load(saved) and self._moving.load(saved["moving"])

    def _state(self, done: int) -> dict[str, Any]:
        kept = [each.kept.state() for each in self._behind(done)]
        return {"dense": self._walked.state(), "inside": kept, "absent": dict(self._absent), "done": done}

    def _behind(self, done: int) -> list[Inside]:
        """List the last blocks, as far as something is kept inside of them."""
        return [each for each in self._inside[len(self._inside) - done :] if each.projections]

    def state(self) -> dict[str, Any]:
        """Say what finds all again once `prepare` has been."""
        return self._state(len(self._inside))

    def load(self, state: dict[str, Any]) -> bool:
        """Find it again; False if something is no longer what it was."""
        self._absent = dict(state["absent"])
        pairs = zip(self._behind(state["done"]), state["inside"], strict=True)
        return self._walked.load(state["dense"]) and all(each.kept.load(known) for each, known in pairs)

    @torch.no_grad()
    def _through(self, number: int) -> None:
        """Bring the gradient in front of a block, which has its weights; keep what there is inside of it."""
        way, inside, front = self._walked.way, self._inside[number], self._walked.fronts[number]
        block, results = inside.block, [each.result for each in inside.projections]
        branches = {residual.kind: residual.branch for residual in block.forward.residuals}
        sums, outputs = dict.fromkeys([*branches, "block"], 0.0), sum(len(each.weight) for each in inside.projections)
        inside.kept.start([(*each.shape[:3], outputs) for each in self._moving])
        with seeing(way.stream.model.get_submodule(block.path), {*results, *branches.values()}) as seen:
            for place, incoming in enumerate(self._moving):
                with torch.enable_grad():
                    states = front[place].requires_grad_()
                    output = way.output(block.path, place, states)
                taken = [seen[node] for node in branches.values()]
                watched = [states, *(seen[node] for node in results), *taken]
                before, *found = (by_position(way, each) for each in _at_nodes(output, watched, incoming))
                values, gradients = [output - states, *taken], [incoming, *found[len(results) :]]
                for kind, value, gradient in zip(["block", *branches], values, gradients, strict=True):
                    sums[kind] += _squares(by_position(way, value[None]) * gradient, in_use(way.current))
                self._moving.put(place, before)
                if results:
                    inside.kept.put(place, torch.cat(found[: len(results)], -1))
        self._moving.turn()
        if results:
            inside.kept.turn()
        self._absent |= {(block.index, kind): self._mean(total) for kind, total in sums.items()}

    def _mean(self, total: float) -> float:
        return total / 2 / (self._samples * self._walked.tokens)

    @torch.no_grad()
    def damages(self, number: int, choices: Iterable[Made]) -> Iterator[float]:
        """Measure choices in a block, which has its weights, each alone."""
        for choice in choices:
            if isinstance(choice, str):
                yield self._absent[number, choice]
            else:
                yield from self._of_nested(number, choice)
            del choice  # which is large, and must not wait for the next one

    def _of_nested(self, number: int, nested: Nested) -> list[float]:
        sums = torch.zeros(len(nested.counts), dtype=torch.double)
        for effects in self._effects(number, nested):
            sums += effects.double().square().sum((1, 2)).cpu()
        return [self._mean(total) for total in sums.tolist()]

    def _effects(self, number: int, nested: Nested) -> Iterator[Tensor]:
        """Tell for each batch what choices do along the gradients (choices, S, n) kept inside of a block.

        The block runs anew up to what goes into its projections.
        """
        way, inside = self._walked.way, self._inside[number]
        holder, operands = way.stream.model.get_submodule(inside.block.path), {e.operand for e, _ in nested.factors}
        widths = [len(each.weight) for each in inside.projections]
        weights = [each.columns(self._weight(each)) for each, _ in nested.factors]
        with way.stream.entrance(), seeing(holder, operands, only=True) as seen:
            for place, (states, kept) in enumerate(zip(self._walked.fronts[number], inside.kept, strict=True)):
                with suppress(Enough):
                    way.output(inside.block.path, place, states)
                used, effects = in_use(way.current), list[Tensor]()
                gradients = kept[:, used].split(widths, -1)
                at = {each.tensor: some for each, some in zip(inside.projections, gradients, strict=True)}
                parts = zip(nested.factors, weights, zip(*nested.counts, strict=True), strict=True)
                for (each, factor), weight, counts in parts:
                    rows = rows_in_use(seen.pop(each.operand), each.dim, used)
                    effects.append(factor.effects(rows, at[each.tensor] @ weight, counts))
                yield torch.stack(effects).sum(0)

    def _weight(self, projection: Projection) -> Tensor:
        """Give a projection's dense weight; its block has its weights."""
        return held_weight(self._walked.way.stream.model, projection.block, projection)


def _at_nodes(output: Tensor, watched: Sequence[Tensor], incoming: Tensor) -> list[Tensor]:
    """Give, at each of the states that are watched, the gradients of all samples (S, ...)."""
    last = len(incoming) - 1
    found = [torch.autograd.grad(output, watched, g, retain_graph=i < last) for i, g in enumerate(incoming)]
    return [torch.stack(each) for each in zip(*found, strict=True)]


def _squares(products: Tensor, used: Tensor) -> float:
    """Sum over samples and positions in use the squares of sums over features, of (S, B, N, features)."""
    return float(products.sum(-1)[:, used].double().square().sum())
