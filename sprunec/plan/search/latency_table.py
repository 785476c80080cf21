"""What a model's parts take on a device, in seconds, as `measure-latency` has measured it here or elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sprunec.errors import InputError
from sprunec.families.base_config import ModelConfig
from sprunec.plan.search.costs import Measure
from sprunec.units import INSIDE, UNITS

PHASES = ("decode", "prefill")  # of one more token of each text; of all positions
Counts = Mapping[str, int]


@dataclass(frozen=True)
class LatencyTable:
    """A table in the form of `schemas/latency.schema.json`; `plan.files` reads it, from `file`."""

    document: Mapping[str, Any]
    file: str = "latency table"

    def seconds(self, phase: str = "decode") -> Measure:
        """Measure models that are what the table is of, cut or not: seconds by its batch and length.

        Raises:
            InputError: from the measure, of a model with a part that the table lacks.
        """
        if phase not in self.document["base"]:
            message = f"this table has no {phase}, only {' and '.join(p for p in PHASES if p in self.document['base'])}"
            raise InputError.at(self.file, message, f"measure it with {phase}")
        known = _Known(self.document["sublayers"], phase)

        def measure(config: ModelConfig) -> float:
            total = self.document["base"][phase]
            for layer, sublayer, kept in sublayers(config):
                if (seconds := known.seconds(layer, sublayer, kept)) is None:
                    sizes = ", ".join(f"{count} {UNITS[unit].several}" for unit, count in kept.items())
                    message = f"this table has no {sublayer.replace('_', '-')} of layer {layer} with {sizes}"
                    raise InputError.at(self.file, message, "measure it again for this model and these choices")
                total += seconds
            return float(total)

        return measure


def sublayers(config: ModelConfig) -> Iterator[tuple[int, str, Counts]]:
    """List what is there: the layer, the kind, and how many units of each kind it has."""
    for index, layer in enumerate(config.layers):
        for sublayer in dict.fromkeys(INSIDE[unit] for unit in layer.counts):
            yield index, sublayer, {unit: n for unit, n in layer.counts.items() if INSIDE[unit] == sublayer}


class _Known:
    """What was measured; where sublayers differ in one kind of units only, what lies between two is on their line."""

    def __init__(self, entries: Sequence[Mapping[str, Any]], phase: str) -> None:
        self._found: dict[tuple[int, str], dict[tuple[tuple[str, int], ...], float]] = {}
        for entry in entries:
            for layer in entry["layers"]:
                here = self._found.setdefault((layer, entry["sublayer"]), {})
                here[tuple(sorted(entry["kept"].items()))] = entry[phase]

    def seconds(self, layer: int, sublayer: str, kept: Counts) -> float | None:
        """Give the seconds of a sublayer; None where they are not known."""
        here, wanted = self._found.get((layer, sublayer), {}), tuple(sorted(kept.items()))
        if wanted in here:
            return here[wanted]
        for unit, count in kept.items():
            others = {**kept, unit: 0}
            line = sorted((dict(each)[unit], time) for each, time in here.items() if {**dict(each), unit: 0} == others)
            for (low, before), (high, behind) in pairwise(line):
                if low < count < high:
                    return before + (behind - before) * (count - low) / (high - low)
        return None
