"""One choice for every sublayer, of least damage under all limits at once: an integer program, solved by HiGHS.

    minimise    sum of damages x
    such that   of each sublayer one choice is taken, or its block is absent
                base + sum of costs x <= what is asked for, for every limit
                what the rules say

How many units of each kind all layers have together is an integer, too. That is no news to the program, but a place to
branch: what a limit leaves unused lies between two such numbers, and without them 160 sublayers of 16 sizes are not
done after minutes. HiGHS's presolve would take them out again; where layers are all alike it leaves next to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sprunec.errors import PassError, series
from sprunec.plan.search.choices import Choice
from sprunec.units import INSIDE

SECONDS = 60.0  # after which the best so far is taken, and its gap told
SPREAD = 1e4  # what the sum of an objective is scaled to: HiGHS takes sums that are 1e-6 apart as equal
ROW = 1e3  # and that of a limit: it lets one be passed by 1e-7
APART = 20  # finalists differ in one of so many sublayers at least
ROUNDING = 1e-12  # of a limit; less than one of whatever is counted
INFEASIBLE = 2
Column = Any  # a choice's number, or the name of another integer
Row = tuple[Mapping[Column, float], float, float]  # coefficients, low, high


@dataclass(frozen=True)
class Limit:
    """What a solution may have of one thing.

    Attributes:
        name: what messages call it.
        most: as much as may be.
        base: what no choice changes.
        costs: what each choice adds.
        unit: how many of what is counted are one of what the name says.
    """

    name: str
    most: float
    base: float
    costs: Sequence[float]
    unit: float = 1

    def of(self, taken: Iterable[int]) -> float:
        """Say how much a solution has; exactly, where costs are integers."""
        costs = [self.costs[number] for number in taken]
        return self.base + (sum(costs) if all(isinstance(cost, int) for cost in costs) else math.fsum(costs))

    def excess(self, taken: Iterable[int]) -> float:
        """Say by how much a solution passes it, beyond what sums are rounded by."""
        over = self.of(taken) - self.most
        return over if over > ROUNDING * abs(self.most) else 0.0


@dataclass(frozen=True)
class Rules:
    """What solutions must be like besides.

    Attributes:
        uniform: all layers that are there keep the same numbers of units, and both sublayers.
        same_heads: all layers that have attention keep the same number of heads.
        least_absent, most_absent: how many sublayers are absent; None: as many as have such a choice.
    """

    uniform: bool = False
    same_heads: bool = False
    least_absent: int = 0
    most_absent: int | None = None


@dataclass(frozen=True)
class Solution:
    """One choice for every sublayer, but for those of blocks that are absent.

    Attributes:
        taken: the choices, by their numbers.
        damage: the sum of theirs.
        gap: by how much there may be less, as a share of it; 0: this is proven to be the least.
    """

    taken: tuple[int, ...]
    damage: float
    gap: float


@dataclass(frozen=True)
class Program:
    """Choices with their damages, and what a solution must be like."""

    choices: Sequence[Choice]
    damages: Sequence[float]
    limits: Sequence[Limit]
    rules: Rules = Rules()

    def solve(self, others: Sequence[Solution] = (), distance: int = 1) -> Solution | None:
        """Find the solution of least damage that differs from all `others` in so many sublayers; None: there is none.

        Raises:
            PassError: none has been found in time.
        """
        apart: list[Row] = [(dict.fromkeys(each.taken, 1.0), -math.inf, len(each.taken) - distance) for each in others]
        return self._minimum(self.damages, self.limits, apart)

    def finalists(self, count: int) -> list[Solution]:
        """Find several solutions of little damage, the one of least damage first.

        Where a whole sublayer goes, its damage alone says least of what happens. So the second has none absent if the
        first has some, else some.

        Raises:
            PassError: there is no solution.
        """
        if (best := self.solve()) is None:
            raise PassError(self.refusal())
        found, absent = [best], any(not self.choices[number].kept for number in best.taken)
        other = replace(self.rules, most_absent=0) if absent else replace(self.rules, least_absent=1)
        if count > 1 and self.rules.most_absent != 0 and (contrast := replace(self, rules=other).solve()) is not None:
            found.append(contrast)
        distance = max(1, len(best.taken) // APART)
        while len(found) < count and (another := self.solve(found, distance)) is not None:
            found.append(another)
        return found

    def refusal(self) -> str:
        """Say which limit no solution keeps, and what the least possible is."""
        least = {limit.name: (limit, self.least(limit)) for limit in self.limits}
        if any(each is None for _, each in least.values()):
            return "the rules of this search leave no solution, whatever its limits"
        above = [limit_words(limit, each) for limit, each in least.values() if each is not None and each > limit.most]
        if above or not self.limits:
            return "; ".join(above)
        *others, last = self.limits
        together = self.least(last, others)
        words = f"{series([each.name for each in self.limits], 'and')} cannot be met together"
        return words if together is None else f"{words}: with the others as asked, {limit_words(last, together)}"

    def least(self, limit: Limit, others: Sequence[Limit] = ()) -> float | None:
        """Find how much of what is limited there is at least; None where nothing keeps to the rules and `others`."""
        found = self._minimum(limit.costs, others)
        return None if found is None else limit.of(found.taken)

    def _minimum(
        self, objective: Sequence[float], limits: Sequence[Limit], more: Sequence[Row] = ()
    ) -> Solution | None:
        """Minimise; a limit that rounding has let pass is drawn in by that much, until all are kept."""
        rows, drawn = [*self._rows(), *more], [0.0] * len(limits)
        while True:
            kept = [_limited(limit, less) for limit, less in zip(limits, drawn, strict=True)]
            found = _minimised(objective, [*rows, *kept], len(self.choices), self.rules.uniform)
            over = [] if found is None else [limit.excess(found.taken) for limit in limits]
            if not any(over):
                return found
            drawn = [before + 2 * excess for before, excess in zip(drawn, over, strict=True)]

    def _rows(self) -> list[Row]:
        """Say that one choice is taken of each sublayer, how many units there are in all, and the rules."""
        numbered, sublayers = list(enumerate(self.choices)), dict[tuple[int, str], dict[Column, float]]()
        for number, choice in numbered:
            if choice.sublayer != "block":
                sublayers.setdefault((choice.layer, choice.sublayer), {})[number] = 1.0
        absent: dict[Column, float] = {number: 1.0 for number, choice in numbered if not choice.kept}
        for number in (number for number in absent if self.choices[number].sublayer == "block"):
            there = [row for (layer, _), row in sublayers.items() if layer == self.choices[number].layer]
            absent[number] = float(len(there))
            for row in there or [sublayers.setdefault((self.choices[number].layer, "block"), {})]:
                row[number] = 1.0
        rows: list[Row] = [(row, 1.0, 1.0) for row in sublayers.values()]
        for unit in INSIDE:
            counts = {number: choice.kept[unit] for number, choice in numbered if unit in choice.kept}
            if step := math.gcd(*counts.values()):
                total = {number: count / step for number, count in counts.items()}
                rows.append((total | {("total", unit): -1.0}, 0.0, 0.0))
        most = math.inf if self.rules.most_absent is None else self.rules.most_absent
        rows.append((absent, float(self.rules.least_absent), float(most)))
        sizes = {number: choice for number, choice in numbered if choice.kept}
        if self.rules.uniform:
            rows += _alike(sizes, {number: (c.sublayer, *sorted(c.kept.items())) for number, c in sizes.items()})
            rows.append(({n: 1.0 for n in absent if self.choices[n].sublayer != "block"}, 0.0, 0.0))
        if self.rules.same_heads:
            rows += _alike(sizes, {n: (c.sublayer, c.kept["head"]) for n, c in sizes.items() if "head" in c.kept})
        return rows


def _alike(choices: Mapping[int, Choice], sizes: Mapping[int, tuple[Any, ...]]) -> list[Row]:
    """Say that all layers take choices of one size, of each kind of sublayer, which a size begins with."""
    rows, kinds, here = list[Row](), dict[str, dict[Column, float]](), dict[Column, dict[Column, float]]()
    for number, size in sizes.items():
        kinds.setdefault(size[0], {})[size] = 1.0
        here.setdefault((choices[number].layer, *size), {size: -1.0})[number] = 1.0
    rows += [(row, -math.inf, 0.0) for row in here.values()]
    return rows + [(row, 1.0, 1.0) for row in kinds.values()]


def _limited(limit: Limit, less: float) -> Row:
    scale = ROW / (max(map(abs, limit.costs), default=0) or 1)
    row: dict[Column, float] = {number: cost * scale for number, cost in enumerate(limit.costs)}
    return row, -math.inf, (limit.most - limit.base - less) * scale


def _minimised(objective: Sequence[float], rows: Sequence[Row], count: int, presolve: bool) -> Solution | None:
    """Find which of `count` choices to take; those of an infinite objective never."""
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    columns: dict[Column, int] = {number: number for number in range(count)}
    for row, _, _ in rows:
        for column in row:
            columns.setdefault(column, len(columns))
    entries = [(i, columns[column], value) for i, (row, _, _) in enumerate(rows) for column, value in row.items()]
    at, to, values = zip(*entries, strict=True)
    matrix = csr_array((values, (at, to)), shape=(len(rows), len(columns)))
    finite = np.isfinite(objective)
    costs, most = np.zeros(len(columns)), np.full(len(columns), np.inf)
    costs[:count], most[:count] = np.where(finite, objective, 0.0), finite
    scale = SPREAD / (np.abs(costs).sum() or 1.0)
    low, high = (np.array([row[side] for row in rows]) for side in (1, 2))
    found = milp(
        costs * scale,
        integrality=np.ones(len(columns)),
        bounds=Bounds(0, most),
        constraints=LinearConstraint(matrix, low, high),
        options={"mip_rel_gap": 0.0, "time_limit": SECONDS, "presolve": presolve},
    )
    if found.status == INFEASIBLE:
        return None
    if found.x is None:
        raise PassError(f"no solution has been found: {found.message}; give fewer choices, or other limits")
    taken = tuple(int(number) for number in np.flatnonzero(found.x[:count] > 0.5))
    return Solution(taken, math.fsum(objective[number] for number in taken), max(0.0, float(found.mip_gap)))


def limit_words(limit: Limit, least: float) -> str:
    """Say what is asked for, and what the least possible is."""
    asked, possible = (counted(value / limit.unit) for value in (limit.most, least))
    return f"{limit.name}: {asked} asked for, and {possible} is the least possible"


def counted(value: float) -> str:
    """Write a number that may be a count."""
    return f"{value:,.0f}" if value == round(value) else f"{value:,.6g}"
