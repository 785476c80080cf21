"""Whether training can do what a plan asks for: its options, its engine, and a distillation's teacher and states."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from sprunec.errors import Diagnostic, show
from sprunec.families.base_config import ModelConfig, doubled
from sprunec.families.cards import card_of
from sprunec.families.states import Pair, Point, state_widths
from sprunec.plan.resolve import Draft, Step
from sprunec.units import INSIDE

OTHER_ENGINE = 'or write "name": "torch"'
# a loss: the options that only it reads
_READS = {"logits": ("temperature",), "hidden": ("pairs", "project")}


def training_fits(draft: Draft, config: ModelConfig | None) -> Iterator[Diagnostic]:
    """Check the options of each training pass; tell of those written once for all passes once."""
    told: dict[tuple[str, str], Diagnostic] = {}
    for step, options in draft.valid(training=True):
        for finding in _training_findings(draft, step, options):
            told.setdefault((finding.code, finding.pointer), finding)
    yield from told.values()


def _training_findings(draft: Draft, step: Step, options: Mapping[str, Any]) -> Iterator[Diagnostic]:
    source, batch = draft.source, draft.section("data").get("batch_size")
    if batch is not None and draft.has("data") and batch % options["accumulate"]:
        message = f"a batch of {batch} sequences doesn't part into {options['accumulate']} equal slices"
        hint = f"give a divisor of data.batch_size {batch}"
        yield source.find("uneven-batch", _written(step, "accumulate"), message, hint)
    last = options["steps"]
    if options["schedule"] == "noam":  # its warm-up counts from the model's first step
        earlier = draft.steps[: draft.steps.index(step)]
        last += draft.section("model").get("start_step", 0)
        last += sum((each.options or {}).get("steps", 0) for each in earlier if each.declared.trains)
    if options["warmup_steps"] >= last:
        leave = f"warm-up steps leave none of the {last} steps of {step.pointer} at the full learning rate"
        message, hint = f"{options['warmup_steps']} {leave}", f"give less than {last}, or null for 5% of the steps"
        yield source.warn("long-warmup", _written(step, "warmup_steps"), message, hint)
    pointer, precision = _written(step, "loss_scale"), draft.section("engine").get("precision", "fp16")
    if precision != "fp16" and pointer in source.places:
        message = f"loss_scale is not used with precision {show(precision)}"
        yield source.warn("unused-option", pointer, message, 'remove it, or choose precision "fp16"', key=True)


def _written(step: Step, key: str) -> str:
    """Tell where an option that may stand in the pass or in the plan's `training` is written."""
    return f"{step.pointer}/{key}" if key in step.given else f"/training/{key}"


def engine_fits(draft: Draft, config: ModelConfig | None) -> Iterator[Diagnostic]:
    """Check for what BMTrain cannot do: other than CUDA, 2:4 masks, projections, more than Adam on the CPU."""
    engine = draft.section("engine")
    if engine.get("name") != "bmtrain":
        return
    device = str(engine.get("device", "auto"))
    if device != "auto" and not device.startswith("cuda"):
        message = f"bmtrain works on CUDA alone, not on {device}"
        yield draft.source.find("engine-cannot", "/engine/device", message, f'write "cuda", {OTHER_ENGINE}')
    sparse = next((at for at, step in enumerate(draft.steps) if step.declared.removes == "weights"), len(draft.steps))
    for step, options in draft.valid(training=True):
        cannot = []
        if draft.steps.index(step) > sparse:
            cannot.append(("does not hold the zeros of sparsify while it trains", "sparsify last"))
        if (options["distillation"] or {}).get("project"):
            cannot.append(("does not train the projections of a distillation", 'write "project": false'))
        if engine.get("offload") and options["optimizer"] != "adam":
            what = f"has no {options['optimizer']} that works on the CPU, which offload asks for"
            cannot.append((what, 'write "optimizer": "adam"'))
        for what, instead in cannot:
            yield draft.source.find("engine-cannot", step.pointer, f"bmtrain {what}", f"{instead}, {OTHER_ENGINE}")


def distillation_fits(draft: Draft, config: ModelConfig | None) -> Iterator[Diagnostic]:
    """Check for a loss, a teacher, and states that both models have; tell it where the distillation is written."""
    cut: set[str] = set()
    whole = True
    for step in draft.steps:
        options = step.options or {}
        distillation, pointer = options.get("distillation"), _written(step, "distillation")
        if step.declared.trains and distillation is not None:
            yield from _losses(draft, distillation, pointer, config)
            if whole and not step.declared.removes and distillation["teacher"] is None:
                message = f"{step.pointer} comes before anything is cut: the model would be its own teacher"
                hint = 'give a "teacher", or write "distillation": null in that pass'
                yield draft.source.find("own-teacher", pointer, message, hint)
            if config is not None and distillation["hidden"]:
                yield from _pairs(draft, distillation, pointer, config, cut)
        whole = whole and bool(step.name) and not step.declared.removes
        cut |= set(options.get("unit", ()))


def _losses(draft: Draft, options: Mapping[str, Any], pointer: str, config: ModelConfig | None) -> Iterator[Diagnostic]:
    """Check that there is something to learn from the teacher, and no option that nothing reads."""
    if not options["logits"] and not options["hidden"]:
        message = "neither logits nor hidden has a weight above 0: nothing would be learned from the teacher"
        hint = 'give one of them a weight, e.g. "logits": 0.5, or write null'
        yield draft.source.find("no-distillation", pointer, message, hint)
        return
    if options["hidden"] and not options["pairs"]:
        message = "hidden needs pairs of states, and there is none"
        yield draft.source.find("missing-key", f"{pointer}/pairs", message, card_of(config).pairs_hint)
    for loss, key in ((loss, key) for loss, keys in _READS.items() for key in keys):
        if not options[loss] and f"{pointer}/{key}" in draft.source.places:
            message = f"{key} is not used without a weight for {loss}"
            hint = f"give {loss} a weight above 0, or remove {key}"
            yield draft.source.warn("unused-option", f"{pointer}/{key}", message, hint, key=True)


def _pairs(
    draft: Draft, options: Mapping[str, Any], pointer: str, config: ModelConfig, cut: Collection[str]
) -> Iterator[Diagnostic]:
    """Check that the model has the modules, and that states are of one width unless they are projected."""
    known = state_widths(config)
    for index, written in enumerate(options["pairs"]):
        pair, place = Pair.read(written), f"{pointer}/pairs/{index}"
        unknown = [name for name in (pair.student.module, pair.teacher.module) if name not in known]
        for name in dict.fromkeys(unknown):
            message = f"the model has no module {show(name)} that is given hidden states"
            close = [show(module) for module in get_close_matches(name, known, n=3)]
            hint = f"did you mean {' or '.join(close)}?" if close else card_of(config).states_hint
            yield draft.source.find("unknown-module", place, message, hint)
        if not unknown and not options["project"] and (why := _unlike(pair, config, cut)):
            hint = 'write "project": true, or pair states of one width'
            yield draft.source.find("unlike-states", place, f"{pair}: {why}", hint)


def _unlike(pair: Pair, config: ModelConfig, cut: Collection[str]) -> str:
    """Say why the two states differ in width; nothing when they do not, as far as a plan can tell."""
    student, teacher = pair.student.width(config), pair.teacher.width(config)
    if student != teacher:
        return f"the student's state is {student} wide, the teacher's {teacher}"
    for unit in INSIDE:
        if unit in cut and _counts(unit, pair.student, config):
            return f"an earlier pass cuts {unit}, so the student's state is narrower than the teacher's {teacher}"
    return ""


def _counts(unit: str, point: Point, config: ModelConfig) -> bool:
    """Tell whether a state's width is made of this unit: it would change with its number."""
    return point.width(doubled(config, unit)) != point.width(config)
