"""What the target of a search limits: how each of its keys is measured, and how much may be; needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sprunec.families.base_config import ModelConfig
from sprunec.plan.search import costs
from sprunec.plan.search.choices import Choice
from sprunec.plan.search.solve import Limit

Target = Mapping[str, Any]  # as `schemas/limits.schema.json` has it, with its defaults, and counts as numbers
ITEMS = {"keep": None, "fp32": 4.0, "fp16": 2.0, "bf16": 2.0}


@dataclass(frozen=True)
class Measured:
    """One key of a target.

    Attributes:
        name: what messages and reports call it.
        most: how much may be, as `measure` counts it.
        written: where that stands in the target.
        unit: how many of what is counted are one of what the name says.
    """

    name: str
    measure: costs.Measure
    most: float
    written: str
    unit: float = 1


def measured(config: ModelConfig, target: Target, seconds: costs.Measure | None = None) -> Iterator[Measured]:
    """Say how each key of a target is measured.

    Args:
        config: the model that enters the search.
        seconds: measures the latency that the target asks for; None: that is left out.
    """
    for key in ("parameters", "active_parameters"):
        if key in target:
            yield Measured(key.replace("_", " "), costs.parameters, target[key], key)
    if (asked := target.get("operations")) is not None:
        yield Measured("operations", costs.operations(asked["length"]), asked["per_token"], "operations/per_token")
    if (asked := target.get("memory")) is not None:
        item, most = ITEMS[asked["dtype"]], asked["gigabytes"] * 1e9
        whole = costs.memory(asked["batch"], asked["length"], item) if asked["batch"] else costs.weight_bytes(item)
        yield Measured("gigabytes", whole, most, "memory/gigabytes", 1e9)
    if (asked := target.get("latency")) is not None and seconds is not None:
        if "speedup" in asked:
            most, written, unit = seconds(config) / asked["speedup"], "latency/speedup", 1e-3
        else:
            written, unit = "latency/milliseconds_per_token", 1e-3
            most = asked["milliseconds_per_token"] * unit * (asked["length"] if asked["phase"] == "prefill" else 1)
        yield Measured("milliseconds", seconds, most, written, unit)


def limit(config: ModelConfig, choices: Sequence[Choice], each: Measured) -> Limit:
    """Take a key apart by choice."""
    found = costs.costs(config, choices, each.measure)
    return Limit(each.name, each.most, found.base, found.each, each.unit)


def allowed(config: ModelConfig, choice: Choice, options: Mapping[str, Any]) -> bool:
    """Tell whether a search's options `whole_first` and `whole_last` leave a choice open."""
    there = [index for index, layer in enumerate(config.layers) if layer.counts]
    last = len(there) - options["whole_last"]
    whole = {*there[: options["whole_first"]], *there[max(0, last) :]}
    return choice.layer not in whole or choice.is_dense(config)
