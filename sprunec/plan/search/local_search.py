"""Local search: the choices near those that a solution has taken; needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sprunec.plan.search.choices import Choice, within_groups
from sprunec.units import INSIDE, UNITS, Kept

# Of the whole, what is near differs by one in so many parts at most; what is next to it, by one in so many.
REACH, NEXT = 16, 8

Place = tuple[int, str]  # a layer, and a kind of sublayer


def taken_by(kept: Kept, choices: Iterable[Choice]) -> dict[Place, Choice]:
    """Find what a solution has taken: a choice for every sublayer, or the one that its whole block is absent.

    Args:
        kept: what it keeps, by the indices of the model that the choices are about.
    """
    found = dict[Place, Choice]()
    for choice in choices:
        layer, there = kept[choice.layer], UNITS[choice.sublayer].sublayers
        if {unit: len(indices) for unit, indices in layer.items() if INSIDE[unit] in there} == choice.kept:
            found[choice.layer, choice.sublayer] = choice
    return {(layer, kind): c for (layer, kind), c in found.items() if kind == "block" or (layer, "block") not in found}


def near(choices: Sequence[Choice], taken: Mapping[Place, Choice]) -> list[Choice]:
    """List the choices that a solution has taken, and of sublayers that it has those near them.

    What is absent stays so, nothing else becomes absent, and where there are few key-value groups their number stays:
    what so large a change leads to no gradient tells.
    """
    found = list[Choice]()
    for place, own in taken.items():
        if not own.kept:
            found.append(own)
            continue
        sizes = [c for c in choices if (c.layer, c.sublayer) == place and c.kept]
        counts = {unit: sorted({within_groups(each)[unit] for each in sizes}) for unit in own.kept}
        found += [each for each in sizes if all(_is_near(unit, each, own, counts[unit]) for unit in own.kept)]
    return found


def _is_near(unit: str, choice: Choice, own: Choice, counts: Sequence[int]) -> bool:
    one, other = within_groups(choice)[unit], within_groups(own)[unit]
    beside = abs(counts.index(one) - counts.index(other)) <= 1
    return abs(one - other) * (NEXT if beside else REACH) <= counts[-1]
