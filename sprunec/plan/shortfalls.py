"""Layers that have less than a target asks of each: they keep what they have, and are told by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sprunec.families.cpm_ant.config import LayerShape
from sprunec.plan.targets import most_kept
from sprunec.units import COUNTED

MOST_NAMED = 4


def short_layers(layers: Sequence[LayerShape], key: str, wanted: int, multiple: int = 1) -> dict[int, int | None]:
    """By index, what the layers keep that cannot keep `wanted` of a count target; None: they have no such sublayer."""
    sizes = [getattr(layer, COUNTED[key].field) for layer in layers]
    kept = {index: most_kept(size, wanted, multiple) if size else None for index, size in enumerate(sizes)}
    return {index: most for index, most in kept.items() if most is None or most < wanted}


def short_message(key: str, wanted: int, short: Mapping[int, int | None]) -> str:
    """`not every layer has 2 heads: layer 1 keeps 1, layers 2 and 5 have no attention`."""
    alike: dict[int | None, list[int]] = {}
    for index, most in short.items():
        alike.setdefault(most, []).append(index)
    parts = [f"{_named(indices)} {_kept(key, most, len(indices) > 1)}" for most, indices in alike.items()]
    more = f" and {len(parts) - MOST_NAMED} more numbers" if len(parts) > MOST_NAMED else ""
    return f"not every layer has {wanted} {COUNTED[key].several}: {', '.join(parts[:MOST_NAMED])}{more}"


def _named(indices: Sequence[int]) -> str:
    if len(indices) == 1:
        return f"layer {indices[0]}"
    if len(indices) > MOST_NAMED:
        return f"layers {', '.join(map(str, indices[:MOST_NAMED]))} and {len(indices) - MOST_NAMED} more"
    return f"layers {', '.join(map(str, indices[:-1]))} and {indices[-1]}"


def _kept(key: str, most: int | None, several: bool) -> str:
    if most is None:
        return f"{'have' if several else 'has'} no {COUNTED[key].sublayers[0].replace('_', '-')}"
    return f"{'keep' if several else 'keeps'} {most or 'none'}"
