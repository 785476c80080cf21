"""Whether a plan's distillation can be done: a loss, a teacher, and pairs of states that both models have."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from sprunec.errors import Diagnostic
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.families.cpm_ant.states import Pair, Point, state_widths
from sprunec.plan.pass_table import PASSES, trains
from sprunec.plan.pointer import show
from sprunec.plan.resolve import Draft, Step

# a loss: the options that only it reads
_READS = {"logits": ("temperature",), "hidden": ("pairs", "project")}


def distillation_fits(draft: Draft, config: ModelConfig | None) -> Iterator[Diagnostic]:
    """The distillation of each training pass, told where it is written."""
    cut: set[str] = set()
    whole = True
    for step in draft.steps:
        if step.options is not None and trains(step.name) and step.options["distillation"] is not None:
            options, pointer = step.options["distillation"], _written(step)
            yield from _losses(draft, options, pointer)
            if whole and not PASSES[step.name].removes and options["teacher"] is None:
                message = f"{step.pointer} comes before anything is cut: the model would be its own teacher"
                hint = 'give a "teacher", or write "distillation": null in that pass'
                yield draft.source.find("own-teacher", pointer, message, hint)
            if config is not None and options["hidden"]:
                yield from _pairs(draft, options, pointer, config, cut)
        whole = whole and step.name in PASSES and not PASSES[step.name].removes
        cut |= set((step.options or {}).get("unit", ()))


def _written(step: Step) -> str:
    return f"{step.pointer}/distillation" if "distillation" in step.given else "/training/distillation"


def _losses(draft: Draft, options: Mapping[str, Any], pointer: str) -> Iterator[Diagnostic]:
    """Something to learn from the teacher, and no option that nothing reads."""
    if not options["logits"] and not options["hidden"]:
        message = "neither logits nor hidden has a weight above 0: nothing would be learned from the teacher"
        hint = 'give one of them a weight, e.g. "logits": 0.5, or write null'
        yield draft.source.find("no-distillation", pointer, message, hint)
        return
    if options["hidden"] and not options["pairs"]:
        message = "hidden needs pairs of states, and there is none"
        hint = 'add "pairs": ["[post]encoder.output_layernorm:[post]encoder.output_layernorm"]'
        yield draft.source.find("missing-key", f"{pointer}/pairs", message, hint)
    for loss, keys in _READS.items():
        for key in keys:
            if not options[loss] and f"{pointer}/{key}" in draft.source.places:
                message = f"{key} is not used without a weight for {loss}"
                hint = f"give {loss} a weight above 0, or remove {key}"
                yield draft.source.warn("unused-option", f"{pointer}/{key}", message, hint, key=True)


def _pairs(
    draft: Draft, options: Mapping[str, Any], pointer: str, config: ModelConfig, cut: Collection[str]
) -> Iterator[Diagnostic]:
    """Modules that the plan's model has, and states of one width unless they are projected."""
    known = state_widths(config)
    for index, written in enumerate(options["pairs"]):
        pair, place = Pair.read(written), f"{pointer}/pairs/{index}"
        unknown = [name for name in (pair.student.module, pair.teacher.module) if name not in known]
        for name in dict.fromkeys(unknown):
            message = f"the model has no module {show(name)} that is given hidden states"
            yield draft.source.find("unknown-module", place, message, _near(name, known))
        if not unknown and not options["project"]:
            why = _unlike(pair, config, cut)
            if why:
                hint = 'write "project": true, or pair states of one width'
                yield draft.source.find("unlike-states", place, why, hint)


def _near(name: str, known: Collection[str]) -> str:
    close = [show(module) for module in get_close_matches(name, known, n=3)]
    if close:
        return f"did you mean {' or '.join(close)}?"
    return 'such modules are "encoder.output_layernorm", "encoder.layers.0" and what is in it'


def _unlike(pair: Pair, config: ModelConfig, cut: Collection[str]) -> str:
    """Why the two states differ in width; nothing when they do not, as far as a plan can tell."""
    student, teacher = pair.student.width(config), pair.teacher.width(config)
    if student != teacher:
        return f"{pair}: the student's state is {student} wide, the teacher's {teacher}"
    units = [unit for unit in ("head", "dim_head", "dim_ff") if unit in cut and _counts(unit, pair.student, config)]
    if units:
        return (
            f"{pair}: an earlier pass cuts {units[0]}, so the student's state is narrower than the teacher's {teacher}"
        )
    return ""


def _counts(unit: str, point: Point, config: ModelConfig) -> bool:
    """Whether a state's width is made of this unit: it would change with its number."""
    field = "heads" if unit == "head" else unit
    wider = (replace(layer, **{field: 2 * getattr(layer, field)}) for layer in config.layers)
    return point.width(replace(config, layers=tuple(wider))) != point.width(config)
