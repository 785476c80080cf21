"""The units that a model can be cut in, and which of them are left; needs no torch.

A *unit* is what one gate opens or closes: a `block` (a layer with both its sublayers), a sublayer, or one of those that
lie inside a sublayer. In a plan `layer` means both kinds of sublayers, one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Key = tuple[int, str]  # a layer and a unit
Indices = tuple[int, ...]
SUBLAYERS = ("attention", "feed_forward")
SIZE_TARGETS = ("sparsity", "parameters")  # a target that is a size is shared by all units of its pass


@dataclass(frozen=True)
class Unit:
    """One kind of unit.

    Attributes:
        target: the count target that says how many are kept.
        sublayers: which kinds it is, or lies inside.
        several: how messages call several of them.
        counted: how messages call the number that the target gives.
        field: what a config's layers and lists of what is kept call it; empty for whole sublayers and blocks.
    """

    name: str
    target: str
    sublayers: tuple[str, ...]
    several: str
    counted: str
    field: str = ""


UNITS = {
    unit.name: unit
    for unit in (
        Unit("block", "num_layers", SUBLAYERS, "layers", "layers"),
        Unit("attention", "num_attention", ("attention",), "attention sublayers", "attention sublayers"),
        Unit("feed_forward", "num_feed_forward", ("feed_forward",), "feed-forward sublayers", "feed-forward sublayers"),
        Unit("kv_group", "num_kv_groups", ("attention",), "key-value groups", "key-value groups a layer", "kv_groups"),
        Unit("head", "num_heads", ("attention",), "heads", "heads per layer", "heads"),
        Unit("dim_head", "dim_head", ("attention",), "dims per head", "dims per head", "dim_head"),
        Unit("dim_ff", "dim_ff", ("feed_forward",), "feed-forward dims", "feed-forward dims per layer", "dim_ff"),
    )
}
COUNTED = {unit.target: unit for unit in UNITS.values()}
INSIDE = {name: unit.sublayers[0] for name, unit in UNITS.items() if unit.field}
WHOLE = ("layer", *(name for name in UNITS if name not in INSIDE))


def gate_units(units: Iterable[str]) -> tuple[str, ...]:
    """Spell out `layer`."""
    return tuple(dict.fromkeys(each for unit in units for each in (SUBLAYERS if unit == "layer" else (unit,))))


def counting(target: str) -> tuple[str, ...]:
    """Give the units, as plans name them, that a count target can count."""
    unit = COUNTED[target].name
    return (unit, "layer") if unit in SUBLAYERS else (unit,)


def sublayers_of(units: Iterable[str]) -> tuple[str, ...]:
    """Give the kinds of sublayers that units are, or lie inside."""
    given = gate_units(units)
    return tuple(kind for kind in SUBLAYERS if any(kind in UNITS[unit].sublayers for unit in given))


def group_of(head: int, counts: Mapping[str, int]) -> int:
    """Tell which key-value group a head is in; heads are laid out group by group, as many in each."""
    return head // (counts["head"] // counts["kv_group"])


class Kept(tuple[Mapping[str, Indices], ...]):
    """What is left of the plan's input model, in its indices: by layer, then by unit inside a sublayer.

    A sublayer that is absent has no entries.
    """

    __slots__ = ()

    @classmethod
    def all(cls, counts: Iterable[Mapping[str, int]]) -> Kept:
        """Keep everything of layers that have so many units of each kind."""
        return cls({unit: tuple(range(count)) for unit, count in layer.items()} for layer in counts)

    def has(self, layer: int, unit: str) -> bool:
        """Tell whether a layer has the sublayer that the unit is or lies in, or for blocks any."""
        return any(INSIDE.get(each) in UNITS[unit].sublayers for each in self[layer])

    def units(self, layer: int, unit: str) -> Indices:
        """Give the indices of a layer's units of one kind; a sublayer or a block that is there is one unit."""
        return (0,) * self.has(layer, unit) if unit in WHOLE else self[layer].get(unit, ())

    def inside(self, before: Kept) -> Cut:
        """Say the same in the indices of a model that has only `before` left."""
        found = []
        for layer, given in zip(self, before, strict=True):
            position = {unit: {index: i for i, index in enumerate(indices)} for unit, indices in given.items()}
            found.append({unit: tuple(position[unit][i] for i in layer[unit]) for unit in given if unit in layer})
        return Cut(found)

    def then(self, masks: Mapping[Key, Sequence[bool]]) -> Kept:
        """Apply masks over the units that are left; one that closes all of its units closes their sublayers."""
        left = []
        for number, layer in enumerate(self):
            here = _with_followers({unit: masks[(number, unit)] for unit in UNITS if (number, unit) in masks}, layer)
            gone = sublayers_of(unit for unit, mask in here.items() if not any(mask))
            kept = {unit: indices for unit, indices in layer.items() if INSIDE[unit] not in gone}
            for unit in here.keys() & kept.keys():
                kept[unit] = tuple(i for i, stays in zip(kept[unit], here[unit], strict=True) if stays)
            left.append(kept)
        return Kept(left)

    def common(self, other: Kept) -> Kept:
        """Keep what both have."""
        allowed = [{unit: frozenset(indices) for unit, indices in layer.items()} for layer in other]
        keys = [(number, unit) for number, layer in enumerate(self) for unit in layer]
        return self.then({(n, unit): [i in allowed[n].get(unit, ()) for i in self[n][unit]] for n, unit in keys})

    def to_json(self) -> list[dict[str, list[int] | None]]:
        """Make one object a layer; null where a sublayer is absent."""
        units = [unit for unit in INSIDE if unit != "kv_group" or any(unit in layer for layer in self)]
        return [{UNITS[unit].field: list(layer[unit]) if unit in layer else None for unit in units} for layer in self]

    @classmethod
    def from_json(cls, data: Iterable[Mapping[str, Any]]) -> Kept:
        fields = {UNITS[unit].field: unit for unit in INSIDE}
        return cls({fields[key]: tuple(kept) for key, kept in layer.items() if kept is not None} for layer in data)


def _with_followers(masks: dict[str, Sequence[bool]], layer: Mapping[str, Indices]) -> dict[str, Sequence[bool]]:
    """Close the heads of key-value groups that are closed."""
    if "kv_group" not in masks:
        return masks
    counts = {unit: len(indices) for unit, indices in layer.items()}
    own, groups = masks.get("head", [True] * counts["head"]), masks["kv_group"]
    return masks | {
        "head": [bool(own[head]) and bool(groups[group_of(head, counts)]) for head in range(counts["head"])]
    }


class Cut(Kept):
    """What a cut leaves of a model, in the indices of the model that is cut."""

    __slots__ = ()
