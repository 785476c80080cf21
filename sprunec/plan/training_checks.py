"""Whether training can do what a plan asks for: its options, its engine, and a distillation's teacher and states."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sprunec.checkpoint.hub import TOKENIZER
from sprunec.errors import InputError, show
from sprunec.families.base_config import ModelConfig, doubled
from sprunec.families.cards import card_of
from sprunec.families.states import Pair, state_widths
from sprunec.plan.model_config import teacher_config
from sprunec.plan.schema import resolve
from sprunec.plan.source import Section
from sprunec.plan.written_plan import WrittenPlan
from sprunec.units import INSIDE

FAR = 50  # times a family's learning rate; those of adapters are not so far above it
ANOTHER = "give a teacher of the model's own family and tokens"
OTHER_ENGINE = 'or write "name": "torch"'
# an option of a distillation: the loss that reads it
_READ_BY = {"temperature": "logits", "pairs": "hidden", "project": "hidden", "divergence": "logits"}


def training_fits(plan: WrittenPlan) -> None:
    """Check the options of each training pass; tell of those written once for all passes once."""
    batch, precision = plan.options("data").get("batch_size"), plan.options("engine").get("precision", "fp16")
    start, warmups = plan.options("model").get("start_step", 0), set[str]()
    for index, step in enumerate(plan.steps):
        if not (step.is_valid and step.declared.trains):
            continue
        options, last, warmup = step.options, step.options["steps"], step.options["warmup_steps"]
        if batch is not None and "data" in plan.written and batch % options["accumulate"]:
            message = f"a batch of {batch} sequences doesn't part into {options['accumulate']} equal slices"
            pointer = step.option_at("accumulate")
            step.error("uneven-batch", pointer, message, f"give a divisor of data.batch_size {batch}")
        if options["schedule"] == "noam":  # its warm-up counts from the model's first step
            last += start + sum(each.options.get("steps", 0) for each in plan.steps[:index] if each.declared.trains)
        if warmup >= last and (pointer := step.option_at("warmup_steps")) not in warmups:
            leave = f"warm-up steps leave none of the {last} steps of {step.pointer} at the full learning rate"
            hint = f"give less than {last}, or null for 5% of the steps"
            step.warn("long-warmup", pointer, f"{warmup} {leave}", hint)
            warmups.add(pointer)
        if precision != "fp16" and (pointer := step.option_at("loss_scale")) in plan.source.places:
            message = f"loss_scale is not used with precision {show(precision)}"
            step.unused(pointer, message, 'remove it, or choose precision "fp16"')


def rates_fit(plan: WrittenPlan) -> None:
    """Warn of learning rates far from the family's: a model forgets, or learns nothing; of one for all passes once."""
    told, usual = set[str](), resolve("training", card_of(plan.config).training)["learning_rate"]
    for step in plan.valid_steps if plan.config is not None else ():
        options = step.options
        if not step.declared.trains or options["optimizer"] == "sgd":  # whose steps go by the gradients' sizes
            continue
        highest = max(options["warmup_steps"], 1) ** -0.5 if options["schedule"] == "noam" else 1.0
        peak, pointer = options["learning_rate"] * highest, step.option_at("learning_rate")
        if usual / FAR <= peak <= FAR * usual or pointer in told:
            continue
        told.add(pointer)
        message = f"the learning rate goes up to {peak:g}, and such models are trained with about {usual:g}"
        if peak > usual:
            step.warn("high-rate", pointer, f"{message}: they may forget what they know", "lower it, or leave it out")
        else:
            step.warn("low-rate", pointer, f"{message}: they may learn nothing", "raise it, or leave it out")


def engine_fits(plan: WrittenPlan) -> None:
    """Check for what BMTrain cannot do: other devices, compiling, 2:4 masks, projections, more than Adam on the CPU."""
    engine = plan.options("engine")
    if engine.get("name") != "bmtrain":
        return
    device = str(engine.get("device", "auto"))
    if device != "auto" and not device.startswith("cuda"):
        message = f"bmtrain works on CUDA alone, not on {device}"
        plan.error("engine-cannot", "/engine/device", message, f'write "cuda", {OTHER_ENGINE}')
    if engine.get("compile"):
        message = "bmtrain puts a block's weights in place where torch.compile does not see it"
        plan.error("engine-cannot", "/engine/compile", message, f"leave it out, {OTHER_ENGINE}")
    sparse = False
    for step in plan.steps:
        options, cannot = step.options, dict[str, str]()
        if step.is_valid and step.declared.trains:
            if sparse:
                cannot["does not hold the zeros of sparsify while it trains"] = "sparsify last"
            if (options["distillation"] or {}).get("project"):
                cannot["does not train the projections of a distillation"] = 'write "project": false'
            for key, none in (("freeze", "[]"), ("adapter", "null")):
                if options[key]:
                    cannot[f"has no {key}"] = f'write "{key}": {none}'
            if engine.get("offload") and options["optimizer"] != "adam":
                what = f"has no {options['optimizer']} that works on the CPU, which offload asks for"
                cannot[what] = 'write "optimizer": "adam"'
        for what, instead in cannot.items():
            step.error("engine-cannot", "", f"bmtrain {what}", f"{instead}, {OTHER_ENGINE}")
        sparse = sparse or step.declared.removes == "weights"


def distillation_fits(plan: WrittenPlan) -> None:
    """Check for a loss, a teacher, and states that both models have; tell it where the distillation is written."""
    cut, whole = set[str](), True
    for step in plan.steps:
        options, section = step.options.get("distillation"), plan.section(step.option_at("distillation"))
        if step.declared.trains and options is not None:
            if not options["logits"] and not options["hidden"]:
                message = "neither logits nor hidden has a weight above 0: nothing would be learned from the teacher"
                hint = 'give one of them a weight, e.g. "logits": 0.5, or write null'
                section.error("no-distillation", "", message, hint)
            elif options["hidden"] and not options["pairs"]:
                message, hint = "hidden needs pairs of states, and there is none", card_of(plan.config).pairs_hint
                section.error("missing-key", "pairs", message, hint)
            for key, loss in _READ_BY.items() if options["logits"] or options["hidden"] else ():
                if not options[loss] and section.at(key) in plan.source.places:
                    hint = f"give {loss} a weight above 0, or remove {key}"
                    section.unused(key, f"{key} is not used without a weight for {loss}", hint)
            if whole and not step.declared.removes and options["teacher"] is None:
                message = f"{step.pointer} comes before anything is cut: the model would be its own teacher"
                hint = 'give a "teacher", or write "distillation": null in that pass'
                section.error("own-teacher", "", message, hint)
            named = options["teacher"]
            teacher = _teacher(plan, section, named) if named is not None else plan.config
            if options["teacher_cache"] is not None:
                _cache(section, options, plan.config)
            if plan.config is not None and teacher is not None and options["hidden"]:
                _pairs(section, options, plan.config, teacher, cut)
        whole = whole and step.is_known and not step.declared.removes
        cut |= set(step.units)


def _cache(section: Section, options: Mapping[str, Any], config: ModelConfig | None) -> None:
    """Check that what a teacher's cache holds is all that is asked for, and no more than there is."""
    top_k = options["teacher_cache"]["top_k"]
    if not options["logits"]:
        message, hint = "the cache holds tokens alone, and logits has no weight", "give logits a weight, or write null"
        section.error("cache-unused", "teacher_cache", message, hint)
    elif options["hidden"]:
        message = "the cache holds tokens alone, and hidden needs the teacher itself beside the student"
        section.error("cache-of-states", "teacher_cache", message, 'write "teacher_cache": null, or "hidden": 0')
    if config is not None and top_k > config.vocab_size:
        message = f"{top_k:,} is above {config.vocab_size:,}, the tokens that the model has"
        section.error("more-than-there", "teacher_cache/top_k", message, f"give at most {config.vocab_size}")


def _pairs(
    section: Section, options: Mapping[str, Any], config: ModelConfig, teacher: ModelConfig, cut: Collection[str]
) -> None:
    """Check that both models have the modules, and that states are of one width unless they are projected."""
    ours, theirs = state_widths(config), state_widths(teacher)
    for index, written in enumerate(options["pairs"]):
        pair, key = Pair.read(written), f"pairs/{index}"
        sides = ((pair.student.module, ours, "model"), (pair.teacher.module, theirs, "teacher"))
        unknown = dict[str, tuple[Collection[str], str]]()
        for name, there, whose in sides:
            if name not in there:
                unknown.setdefault(name, (there, whose if teacher != config else "model"))
        for name, (known, who) in unknown.items():
            message = f"the {who} has no module {show(name)} that is given hidden states"
            close = [show(module) for module in get_close_matches(name, known, n=3)]
            hint = f"did you mean {' or '.join(close)}?" if close else card_of(config).states_hint
            section.error("unknown-module", key, message, hint)
        if unknown or options["project"]:
            continue
        own, wanted = pair.student.width(config), pair.teacher.width(teacher)
        narrower = [unit for unit in INSIDE if unit in cut and pair.student.width(doubled(config, unit)) != own]
        why = f"the student's state is {own} wide, the teacher's {wanted}"
        if own == wanted and narrower:
            cuts = f"an earlier pass cuts {narrower[0]}"
            why = f"{cuts}, so the student's state is narrower than the teacher's {wanted}"
        if own != wanted or narrower:
            section.error("unlike-states", key, f"{pair}: {why}", 'write "project": true, or pair states of one width')


def _teacher(plan: WrittenPlan, section: Section, path: Path) -> ModelConfig | None:
    """Tell where a teacher cannot teach the plan's model; give its config.

    Args:
        section: the plan's `distillation`, which names it.
    """
    config = plan.config
    if config is None:
        return None
    try:
        found = teacher_config(path, config)
    except InputError as error:
        for told in error.diagnostics:
            section.error(told.code, "teacher", f"{told.place}: {told.message}", told.hint)
        return None
    if (why := _stranger(plan, path, found, config)) is not None:
        section.error("unlike-teacher", "teacher", f"{path} {why}", ANOTHER)
        return None
    for finding in card_of(found).data_findings(found, plan.options("data")) if found != config else ():
        section.error(finding.code, "teacher", f"{path}: {finding.message}", finding.hint)
    return found


def _stranger(plan: WrittenPlan, path: Path, teacher: ModelConfig, config: ModelConfig) -> str | None:
    if teacher.vocab_size != config.vocab_size:
        return f"has {teacher.vocab_size:,} tokens, and the model has {config.vocab_size:,}"
    if (teacher.family, teacher.overhead) != (config.family, config.overhead):
        return "is a model of another family, which is given its text in another form"
    ours, theirs = _tokens(_own_tokenizer(plan)), _tokens(path / TOKENIZER)
    for number in sorted(ours.keys() & theirs.keys()):
        if ours[number] != theirs[number]:
            return f"has {show(theirs[number])} as token {number}, and the model has {show(ours[number])}"
    return None


def _own_tokenizer(plan: WrittenPlan) -> Path | None:
    """Name the tokenizer.json that text is read by: the plan's, or that in the model's directory."""
    named, checkpoint = plan.section("data").written.get("tokenizer"), plan.section("model").written.get("checkpoint")
    if isinstance(named, str):
        return plan.source.folder / named if named.endswith(".json") else None
    return plan.source.folder / checkpoint / TOKENIZER if isinstance(checkpoint, str) else None


def _tokens(path: Path | None) -> dict[int, str]:
    """Read which tokens a tokenizer.json has, by their ids; none where it is not there, or no such file."""
    if path is None or not os.path.isfile(path):
        return {}
    try:
        document: Any = json.loads(path.read_bytes())
        vocabulary = document["model"]["vocab"]
        pairs = (
            vocabulary.items() if isinstance(vocabulary, dict) else ((each[0], n) for n, each in enumerate(vocabulary))
        )
        added = {each["id"]: each["content"] for each in document.get("added_tokens") or ()}
        return {number: token for token, number in pairs} | added
    except (ValueError, LookupError, TypeError, AttributeError):  # who reads text by it tells what is wrong
        return {}
