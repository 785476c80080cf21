"""What a search chooses among: for each sublayer, and for whole blocks, how many of its units are left; needs no torch.

A solution takes one choice for every sublayer, or the one that its whole block is absent.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import lcm, prod
from types import MappingProxyType
from typing import Any

from sprunec.families.base_config import ModelConfig
from sprunec.units import INSIDE, UNITS, gate_units, sublayers_of

Grid = Mapping[str, Sequence[int]]
NO_GRID: Grid = MappingProxyType({})
NO_MULTIPLES: Mapping[str, int] = MappingProxyType({})
PARTS = 8  # of its width, at whose multiples a sublayer is tried
FINER = {"fisher": 4, "kl": 1}  # parts of an eighth, where a sublayer has one such number: how many cost nothing


@dataclass(frozen=True)
class Choice:
    """What is left of one sublayer, or that a block is absent.

    Attributes:
        layer: its number in the plan's input model.
        sublayer: "attention", "feed_forward", or "block" for both.
        kept: how many units of each of the sublayer's kinds stay, those that nobody cuts with them; none: it is absent.
    """

    layer: int
    sublayer: str
    kept: Mapping[str, int] = field(hash=False)

    def is_dense(self, config: ModelConfig) -> bool:
        """Tell whether it leaves all that the model has."""
        return self.kept == _dense(config.layers[self.layer].counts, self.sublayer)


def choices(
    config: ModelConfig,
    units: Collection[str],
    grid: Grid = NO_GRID,
    multiple_of: Mapping[str, int] = NO_MULTIPLES,
    finer: int = 1,
) -> list[Choice]:
    """List all choices, layer by layer: of each sublayer the dense one first, that it is absent last.

    Args:
        units: which kinds may be cut; whole sublayers and blocks may be absent if they are among these.
        grid: by count target, how many units of a layer are tried beside all; without it all numbers of key-value
            groups, and of others those that are nearest to the eighths. Heads are those of a layer, as many in each
            group.
        multiple_of: by count target, what they are multiples of; all units stay possible.
        finer: in how many steps an eighth is divided, from the first one on; where a sublayer's choices combine two
            numbers of units, beside that of key-value groups, it is not.
    """
    wanted, found = gate_units(units), list[Choice]()
    for index, layer in enumerate(config.layers):
        counts = layer.counts
        for sublayer in sublayers_of(counts):
            dense = _dense(counts, sublayer)
            sizes = _sizes(dense, [unit for unit in wanted if unit in dense], grid, multiple_of, finer)
            found += [Choice(index, sublayer, size) for size in sizes]
            found += [Choice(index, sublayer, {})] * (sublayer in wanted)
        found += [Choice(index, "block", {})] * ("block" in wanted and bool(counts))
    return found


def nested(choices: Iterable[Choice]) -> list[list[Choice]]:
    """Put choices together each of which keeps all that those before it do, whichever units are the best.

    What is absent is alone. Sublayers come one after the other.
    """
    found = list[list[Choice]]()
    for choice in sorted(choices, key=lambda each: (each.layer, each.sublayer, prod(within_groups(each).values()))):
        before = next((some for some in found if _holds(choice, some[-1])), None)
        if before is None:
            found.append([choice])
        else:
            before.append(choice)
    return found


def _holds(choice: Choice, other: Choice) -> bool:
    if (choice.layer, choice.sublayer) != (other.layer, other.sublayer) or not (choice.kept and other.kept):
        return False
    outer, inner = within_groups(choice), within_groups(other)
    return all(inner[unit] <= outer[unit] for unit in outer)


def within_groups(choice: Choice) -> dict[str, int]:
    """Count the units that are kept, of heads those in each group."""
    groups = choice.kept.get("kv_group", 1)
    return {unit: count // groups if unit == "head" else count for unit, count in choice.kept.items()}


def chosen(config: ModelConfig, solution: Iterable[Choice]) -> ModelConfig:
    """Shape the model by choices; what none of them is about stays as it is."""
    layers: list[Any] = list(config.layers)
    for choice in solution:
        there, layer = UNITS[choice.sublayer].sublayers, layers[choice.layer]
        absent = {unit: 0 for unit in layer.counts if INSIDE[unit] in there}
        layers[choice.layer] = layer.resized({**absent, **choice.kept})
    return config.with_layers(layers)


def _dense(counts: Mapping[str, int], sublayer: str) -> dict[str, int]:
    return {unit: count for unit, count in counts.items() if INSIDE[unit] in UNITS[sublayer].sublayers}


def _sizes(
    dense: Mapping[str, int], cut: Sequence[str], grid: Grid, multiple_of: Mapping[str, int], finer: int
) -> Iterator[dict[str, int]]:
    """Combine the numbers of units of one sublayer's kinds, the largest first."""
    free = [unit for unit in dense if unit in cut and unit != "head"]
    parts = PARTS * (finer if sum(unit in cut and unit != "kv_group" for unit in dense) == 1 else 1)
    counted = {unit: None if unit == "kv_group" else parts for unit in free}
    numbers = [_numbers(dense[unit], *_asked(unit, grid, multiple_of), parts=counted[unit]) for unit in free]
    for sizes in product(*numbers):
        size = {**dense, **dict(zip(free, sizes, strict=True))}
        if "head" not in dense:
            yield size
            continue
        groups = size.get("kv_group", 1)
        heads = dense["head"] // dense.get("kv_group", 1) * groups
        given, step = _asked("head", grid, multiple_of) if "head" in cut else ([], 1)
        tried = _numbers(heads, given, step, within=groups, parts=parts) if "head" in cut else [heads]
        yield from ({**size, "head": count} for count in tried)


def _asked(unit: str, grid: Grid, multiple_of: Mapping[str, int]) -> tuple[Sequence[int], int]:
    target = UNITS[unit].target
    return grid.get(target, ()), multiple_of.get(target, 1)


def _numbers(count: int, given: Sequence[int], step: int, *, within: int = 1, parts: int | None) -> list[int]:
    """Give the numbers of units that are tried, all `count` of them first.

    Args:
        within: in how many groups they lie, each of which keeps as many.
        parts: of how many such parts those are that are tried where none are given; None: all numbers.
    """
    step = lcm(step, within)
    shares = [part / parts for part in range(parts // PARTS, parts)] if parts is not None else []
    tried = given or ([round(count * each / step) * step for each in shares] if shares else range(1, count))
    return sorted({count} | {n for n in tried if 0 < n < count and not n % step}, reverse=True)
