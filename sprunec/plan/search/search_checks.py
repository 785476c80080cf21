"""What a search's schema cannot say of it: how its options go together, and limits that its model cannot be within."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sprunec.errors import series, show
from sprunec.families.base_config import ModelConfig
from sprunec.families.cards import card_of
from sprunec.plan.search.choices import Choice, choices
from sprunec.plan.search.limits import Target, allowed, limit, measured
from sprunec.plan.search.solve import Limit, counted, limit_words
from sprunec.units import COUNTED, SUBLAYERS

if TYPE_CHECKING:
    from sprunec.plan.written_plan import Step, WrittenPlan


def searches_fit(plan: WrittenPlan) -> None:
    """Check the units, the grids and the targets of searches."""
    cut = False
    for step in plan.steps:
        if step.is_valid and "grid" in step.options:
            before = len(step.found)
            _units(step, plan.config)
            _sweep(step)
            if plan.config is not None and not cut and len(step.found) == before:
                _limits(step, plan.config)
        cut = cut or not step.is_known or step.declared.removes == "units"


def _units(step: Step, config: ModelConfig | None) -> None:
    """Check that each is named once and can be cut, and that grids and multiples are about them."""
    units = step.options["units"]
    if "layer" in units and (covered := [unit for unit in units if unit in SUBLAYERS]):
        several = series([show(unit) for unit in covered], "and")
        step.error("unit-twice", "units", f'"layer" covers {several} already', "give one or the other")
    fixed = card_of(config).fixed_units(config) if config is not None else {}
    for unit in (unit for unit in units if unit in fixed):
        message = f"{unit} cannot be cut in this model: {fixed[unit]}"
        step.error("cannot-cut", "units", message, "choose another unit")
    for option in ("grid", "multiple_of"):
        for key in (key for key in step.options[option] if COUNTED[key].name not in units):
            hint = f"remove it, or add unit {show(COUNTED[key].name)}"
            step.error("unit-mismatch", f"{option}/{key}", f"{key} is not what this pass cuts", hint, at_key=True)
    for key, multiple in step.options["multiple_of"].items():
        uneven = [number for number in step.options["grid"].get(key, ()) if number % multiple]
        if uneven:
            message = f"{uneven[0]} is not a multiple of {multiple}, and multiple_of asks for one"
            step.error("uneven-target", f"grid/{key}", message, f"give multiples of {multiple}")


def _sweep(step: Step) -> None:
    """Check that the target that is gone on with is there, and that options have a use."""
    targets, options = step.options["target"], step.options
    if options["chosen"] > len(targets):
        message = f"there are {len(targets)} targets" if len(targets) > 1 else "there is one target"
        step.error("no-such-target", "chosen", f"{message}, and {options['chosen']} is none of them", "give its number")
    timed = any("latency" in target for target in targets)
    if options["latency_table"] is not None and not timed:
        step.unused("latency_table", "latency_table is not used without a target of latency")
    if "samples" in step.written and options["damage"] != "fisher" and not options["refine"]:
        step.unused("samples", f"samples is not used with damage {show(options['damage'])}")
    if options["refine"] and options["compensate"] is None:
        message = "refine looks around a solution that is refitted, and compensate is null"
        step.error("refine-without-refit", "refine", message, "remove one of them")


def _limits(step: Step, config: ModelConfig) -> None:
    """Check what the config alone shows: the smallest choices are within every limit, and the whole model is not."""
    options = step.options
    found = [
        choice
        for choice in choices(config, options["units"], options["grid"], options["multiple_of"])
        if allowed(config, choice, options) and (choice.kept or options["most_absent"] != 0)
    ]
    written: Any = step.written["target"]
    for number, target in enumerate(options["target"]):
        where = f"target/{number}" if isinstance(written, list) else "target"
        if all(choice.is_dense(config) for choice in found):
            step.error("nothing-to-cut", "units", "no choice cuts anything of this model", "add units, or a finer grid")
            return
        _target(step, config, where, target, found)


def _target(step: Step, config: ModelConfig, where: str, target: Target, found: Sequence[Choice]) -> None:
    above = "latency" in target  # which only a device can tell
    for each in measured(config, target):
        try:
            taken = limit(config, found, each)
        except ValueError as error:
            step.error("cannot-measure", f"{where}/{each.written}", str(error), "limit something else")
            return
        if (least := smallest(found, taken)) > each.most:
            hint = f"give more than {counted(least / each.unit)}, a finer grid, or more units"
            step.error("target-too-small", f"{where}/{each.written}", limit_words(taken, least), hint)
        above = above or each.measure(config) > each.most
    if not above:
        message = "the model is within these limits as it is: nothing would be cut"
        step.warn("nothing-to-cut", where, message, "give less, or remove the pass")


def smallest(choices: Sequence[Choice], limit: Limit) -> float:
    """Add up the cheapest choice of each sublayer, or of its block where that is less: never more than is possible."""
    sublayers, blocks = dict[tuple[int, str], float](), dict[int, float]()
    for choice, cost in zip(choices, limit.costs, strict=True):
        if choice.sublayer == "block":
            blocks[choice.layer] = cost
        else:
            key = choice.layer, choice.sublayer
            sublayers[key] = min(cost, sublayers.get(key, cost))
    layers = dict[int, float]()
    for (layer, _), cost in sublayers.items():
        layers[layer] = layers.get(layer, 0) + cost
    return limit.base + sum(min(cost, blocks.get(layer, cost)) for layer, cost in layers.items())
