"""Choices made one block after the other, on text to refit on, and measured on other text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from sprunec.errors import PassError
from sprunec.families.base_config import ModelConfig, everything
from sprunec.masks.calibration import BlockStatistics, Statistic, block_statistics
from sprunec.masks.refitting import refits
from sprunec.masks.search.changes import Made, change
from sprunec.masks.search.members import left_by
from sprunec.masks.symmetric import SecondMoment, mirror
from sprunec.models.block_by_block import BlockByBlock
from sprunec.plan.declared import Criterion
from sprunec.plan.search.choices import Choice
from sprunec.rewrite.trace import TracedBlock
from sprunec.units import Key


class Measure(Protocol):
    """What damages are measured by, once the dense model has been gone through."""

    def state(self) -> dict[str, Any]: ...

    def damages(self, number: int, choices: Iterable[Made]) -> Iterator[float]: ...


class ChoiceDamages:
    """All choices, and what has been found of them.

    Args:
        criteria: by kind of unit that choices cut.
        ridge: see `least_squares.refit`.

    Attributes:
        scores: by layer and unit; those that need no look at the inside of blocks are given.
        damages: in nats a token, by the choice's number.
    """

    def __init__(
        self,
        config: ModelConfig,
        choices: Sequence[Choice],
        scores: Mapping[Key, Tensor],
        criteria: Mapping[str, Criterion],
        ridge: float,
    ) -> None:
        self.choices, self.scores = choices, dict(scores)
        self.damages = {number: 0.0 for number, choice in enumerate(choices) if choice.is_dense(config)}
        self._whole, self._criteria, self._ridge = everything(config), criteria, ridge

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
            statistics = self._look(way, block)
            here = [number for number, choice in enumerate(self.choices) if choice.layer == block.index]
            here = [number for number in here if number not in self.damages]
            made = (self._made(way, block, statistics, self.choices[number]) for number in here)
            self.damages |= zip(here, measure.damages(block.index, made), strict=True)
            if not all(math.isfinite(self.damages[number]) for number in here):
                raise PassError(f"what choices in {path} do to the model's output is not finite")

    def _look(self, way: BlockByBlock, block: TracedBlock) -> BlockStatistics | None:
        """Bring all batches behind a block, and look at its inside if choices cut it."""
        sizes = {unit: len(units) for unit, units in self._whole[block.index].items() if unit in self._criteria}
        if not sizes:
            way.advance(block.path)
            return None
        statistics = block_statistics(way, block, sizes, MOMENTS)
        self.scores |= block_scores(statistics, self._criteria)
        return statistics

    def _made(self, way: BlockByBlock, block: TracedBlock, statistics: BlockStatistics | None, choice: Choice) -> Made:
        if not choice.kept or statistics is None:
            return choice.sublayer
        left = left_by(self.scores, self._whole, choice)
        cut = [each for sublayer in refits(block, left, {}) for each in sublayer]
        return [change(way.stream.model, statistics, each, self._ridge) for each in cut]


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
    for unit, size in statistics.sizes.items():
        if (looks_at := LOOKS_AT.get(criteria[unit].needs)) is not None:
            own = [each for each in statistics.inputs if each[0].units(unit) is not None]
            inputs = [(each, weight, looks_at(moment).to(weight)) for each, weight, moment in own]
            found |= criteria[unit].score(replace(statistics, sizes={unit: size}, inputs=inputs))
    return found


def _products(moment: SecondMoment) -> Tensor:
    found = moment.within(torch.arange(moment.width, device=moment.device))
    mirror(found)
    return found


# By what a criterion looks at.
LOOKS_AT: Mapping[str, Callable[[Any], Tensor]] = {"squares": SecondMoment.diagonal, "products": _products}
