"""Choices made one block after the other, on text to refit on, and measured on other text."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor

from sprunec.errors import PassError
from sprunec.families.base_config import ModelConfig, everything
from sprunec.heap import trim_heap
from sprunec.masks.calibration import BlockStatistics, Statistic, block_statistics
from sprunec.masks.refitting import refits
from sprunec.masks.search.changes import Made, Nested, ordered
from sprunec.masks.search.members import left_by
from sprunec.masks.search.ordered_factor import OrderedFactor
from sprunec.masks.symmetric import SecondMoment, mirror
from sprunec.models.block_by_block import BlockByBlock
from sprunec.plan.declared import Criterion
from sprunec.plan.search.choices import Choice, nested
from sprunec.rewrite.trace import TracedBlock
from sprunec.units import Key


class Measure(Protocol):
    """What damages are measured by, once the dense model has been gone through, with factors in `dtype`."""

    dtype: torch.dtype

    def state(self) -> dict[str, Any]: ...

    def damages(self, number: int, choices: Iterable[Made]) -> Iterator[float]: ...


class ChoiceDamages:
    """All choices, and what has been found of them.

    Args:
        units: kinds inside sublayers that choices cut.
        criteria: by kind, of those whose scores are found on the way.
        ridge: see `least_squares.refit`.
        taken: of every sublayer the choice that the model has, where that is not the dense one.

    Attributes:
        scores: by layer and unit; those that are not found on the way are given.
        damages: in nats a token, by the choice's number; those that nothing is measured for are given.
    """

    def __init__(
        self,
        config: ModelConfig,
        choices: Sequence[Choice],
        scores: Mapping[Key, Tensor],
        damages: Mapping[int, float],
        units: Collection[str],
        criteria: Mapping[str, Criterion],
        ridge: float,
        taken: Collection[Choice] = (),
    ) -> None:
        self.choices, self.scores, self.damages = choices, dict(scores), dict(damages)
        self._whole, self._units, self._criteria, self._ridge = everything(config), units, criteria, ridge
        self._taken = frozenset(taken)

    def measure(self, way: BlockByBlock, blocks: Sequence[TracedBlock], measure: Measure) -> None:
        """Go with the text to refit on through all blocks, or on from where this was stopped.

        Raises:
            PassError: a damage is not finite.
        """

        def found() -> dict[str, Any]:
            return {"scores": dict(self.scores), "damages": dict(self.damages), "measure": measure.state()}

        def restore(saved: dict[str, Any]) -> bool:
            self.scores, self.damages = saved["scores"], saved["damages"]
            return True

        by_path = {block.path: block for block in blocks}
        for path in way.blocks(found, restore):
            block = by_path[path]
            moments = self._look(way, block)
            layer = {choice: number for number, choice in enumerate(self.choices) if choice.layer == block.index}
            together = nested(choice for choice, number in layer.items() if number not in self.damages)
            together.sort(key=lambda some: (some[0].sublayer, self._taken.isdisjoint(some)))
            here = [layer[choice] for some in together for choice in some]
            made = self._made(block, moments, together, measure.dtype)
            self.damages |= zip(here, measure.damages(block.index, made), strict=True)
            if not all(math.isfinite(self.damages[number]) for number in here):
                raise PassError(f"what choices in {path} do to the model's output is not finite")

    def _look(self, way: BlockByBlock, block: TracedBlock) -> dict[str, SecondMoment]:
        """Bring all batches behind a block, and look at its inside if choices cut it -> moments by projection."""
        sizes = {unit: len(units) for unit, units in self._whole[block.index].items() if unit in self._units}
        if not sizes:
            way.advance(block.path)
            return {}
        trim_heap()
        statistics = block_statistics(way, block, sizes, MOMENTS)
        found: Any = {projection.tensor: moment for projection, _, moment in statistics.inputs}
        moments: dict[str, SecondMoment] = found
        for moment in moments.values():
            moment.round()
        trim_heap()
        self.scores |= block_scores(statistics, self._criteria)
        return moments

    def _made(
        self,
        block: TracedBlock,
        moments: dict[str, SecondMoment],
        together: Sequence[Sequence[Choice]],
        dtype: torch.dtype,
    ) -> Iterator[Made]:
        """Make choices, those that are nested together; a moment goes once no others need it."""
        for number, some in enumerate(together):
            if not some[0].kept:
                yield some[0].sublayer
                continue
            needed = any(each[0].kept and each[0].sublayer == some[0].sublayer for each in together[number + 1 :])
            take = moments.__getitem__ if needed else moments.pop
            cut = [list(chain(*refits(block, left_by(self.scores, self._whole, each), {}))) for each in some]
            changing = [refitted for refitted in cut if refitted]  # the dense one has nothing to refit
            whole = [len(each.gate) for each in changing[0]]
            counts = [[len(each.kept) for each in refitted] or whole for refitted in cut]
            trim_heap()
            factors = [
                (each, OrderedFactor(take(each.tensor), order, self._ridge, dtype)) for each, order in ordered(changing)
            ]
            trim_heap()
            taken = next((place for place, each in enumerate(some) if each in self._taken), None)
            yield Nested(factors, counts, taken)
            del factors  # which are large, and must not wait for the next ones


def _add(moment: SecondMoment | None, rows: Tensor) -> SecondMoment:
    moment = SecondMoment(rows.size(1), rows.device) if moment is None else moment
    moment.add(rows)
    return moment


MOMENTS = Statistic(_add, lambda moment, count: moment)  # which counts by itself


def block_scores(statistics: BlockStatistics, criteria: Mapping[str, Criterion]) -> dict[Key, Tensor]:
    """Score the units of a block, each kind by its criterion, where that looks at the inside of blocks.

    Args:
        statistics: by `MOMENTS`.
    """
    found = dict[Key, Tensor]()
    for unit, criterion in criteria.items():
        size, looks_at = statistics.sizes.get(unit), LOOKS_AT.get(criterion.needs)
        if size is not None and looks_at is not None:
            own = [each for each in statistics.inputs if each[0].units(unit) is not None]
            inputs = [(each, weight, looks_at(moment).to(weight)) for each, weight, moment in own]
            found |= criterion.score(replace(statistics, sizes={unit: size}, inputs=inputs))
    return found


def _products(moment: SecondMoment) -> Tensor:
    found = moment.within(torch.arange(moment.width, device=moment.device))
    mirror(found)
    return found


# By what a criterion looks at.
LOOKS_AT: Mapping[str, Callable[[Any], Tensor]] = {"squares": SecondMoment.diagonal, "products": _products}
