"""What a schema cannot say about a plan: how its parts go together, pass after pass.

`CHECKS` is the list; each check takes the draft and the model's config (None when it could not be read) and yields what
it finds. A part in which something is wrong already is passed over, so one mistake is told once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from sprunec.bmcook.data.sets import DEFAULT_BLOCK, META, read_set
from sprunec.bmcook.masks.saved_masks import saved_masks_fit
from sprunec.errors import Diagnostic, InputError
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.plan.engine_checks import engine_fits
from sprunec.plan.format_checks import form_fits, heads_tied
from sprunec.plan.planned_sizes import size_findings
from sprunec.plan.pointer import show
from sprunec.plan.resolve import MASKS, TRAINS, Draft, Step, takes_a_look
from sprunec.plan.sparsity import sparse_findings
from sprunec.plan.targets import mismatched, uncovered
from sprunec.plan.teacher import distillation_fits
from sprunec.units import SIZE_TARGETS, WHOLE, counting

NEED_TRAINED = ("finetune", *MASKS)
TEXT_PROMPT, TEXT_SEGMENT = 2, 2
ROW_OF = {"pairs": (1, 2, 3), "cpm-live": (0, 0, 2)}  # prompt and segment in use, and the shortest text; else text's

Check = Callable[[Draft, ModelConfig | None], Iterator[Diagnostic]]


def units_fit(draft: Draft, config: ModelConfig | None) -> Iterator[Diagnostic]:
    """Every count target counts a unit of its pass, and every unit has a target."""
    for step in draft.steps:
        if step.options is None or "unit" not in step.options:
            continue
        units, target = step.options["unit"], step.options["target"]
        yield from _twice(draft, step)
        strangers = mismatched(units, target)
        missing = uncovered(units, target)
        for key in strangers:
            pointer = f"{step.pointer}/target/{key}"
            message = f"{key} doesn't count {_unit(units)}"
            instead = f"give {' and '.join(missing)} instead" if missing else "remove it"
            hint = f"{instead}, or choose unit {_names(counting(key), ' or ')}"
            yield draft.source.find("unit-mismatch", pointer, message, hint, key=True)
        if missing and not strangers:
            message = f"the target doesn't say {' and '.join(missing)} for {_unit(units)}"
            hint = f"add {' and '.join(missing)}"
            yield draft.source.find("uncovered-unit", f"{step.pointer}/target", message, hint)


def _twice(draft: Draft, step: Step) -> Iterator[Diagnostic]:
    units = step.options["unit"] if step.options else ()
    covered = [unit for unit in units if unit in ("attention", "feed_forward")]
    if "layer" in units and covered:
        message = f'"layer" covers {_names(covered)} already'
        yield draft.source.find("unit-twice", f"{step.pointer}/unit", message, "give one or the other")


def budgets_fit(draft: Draft, config: ModelConfig | None) -> Iterator[Diagnostic]:
    for step in draft.steps:
        if step.options is None or step.options.get("budget") != "per-layer":
            continue
        whole = [unit for unit in step.options["unit"] if unit in WHOLE]
        size = [key for key in step.options["target"] if key in SIZE_TARGETS]
        if whole or size:
            what = (
                f"{_unit(whole)} can't be cut in every layer alike" if whole else f"{size[0]} is about the whole model"
            )
            message = f'"per-layer" doesn\'t fit: {what}'
            yield draft.source.find("budget-mismatch", f"{step.pointer}/budget", message, 'write "global" or remove it')


def trained_first(draft: Draft, config: ModelConfig | None) -> Iterator[Diagnostic]:
    """Masks are learned on, and recovered from, a model that knows something."""
    model = draft.source.value.get("model")
    unopened = not draft.sound("/model/path") or not draft.sound("/model/config")  # it may well have weights
    if not isinstance(model, dict) or "checkpoint" in model or unopened:
        return
    for step in draft.steps:
        if step.name in ("", "train"):
            return
        if step.name in NEED_TRAINED or (step.name == "sparsify" and "path" not in step.given):
            message = f"{step.name} needs a trained model, and no earlier pass makes one"
            hint = 'put {"pass": "train", "steps": 2000} before it, or give model.checkpoint'
            yield draft.source.find("untrained-model", f"{step.pointer}/pass", message, hint)
            return


def emit_last(draft: Draft, config: ModelConfig | None) -> Iterator[Diagnostic]:
    emits = [step for step in draft.steps if step.name == "emit"]
    for step in emits[1:]:
        message = "the model is emitted twice"
        yield draft.source.find("emit-twice", step.pointer, message, "keep one emit, as the last pass")
    if len(emits) == 1 and emits[0] is not draft.steps[-1]:
        message = "emit is not the last pass"
        yield draft.source.find("emit-not-last", emits[0].pointer, message, "move it to the end")


def data_given(draft: Draft, config: ModelConfig | None) -> Iterator[Diagnostic]:
    if draft.has("data"):
        return
    hint = 'add "data": {"source": "python-docs"}'
    needing = [step for step in draft.steps if step.looks_at_data]
    if needing:
        message = f"{needing[0].name} needs data, and the plan names none"
        yield draft.source.find("missing-data", f"{needing[0].pointer}/pass", message, hint)
    elif draft.has("evaluate"):
        yield draft.source.find("missing-data", "/evaluate", "evaluate needs data, and the plan names none", hint)


def text_fits(draft: Draft, config: ModelConfig | None) -> Iterator[Diagnostic]:
    """The model has the prompts and segments that rows of text need, and a row holds the prompt and some text."""
    data = draft.section("data")
    if config is None or not draft.has("data") or "source" not in data:
        return
    prompt, segment, text = ROW_OF.get(data["source"], (TEXT_PROMPT, TEXT_SEGMENT, 2))
    if config.prompt_types <= prompt or config.segment_types <= segment:
        what = "pairs need" if data["source"] == "pairs" else "text needs"
        message = f"{what} {_least(prompt, segment)}; the model has"
        message = f"{message} prompt_types {config.prompt_types} and segment_types {config.segment_types}"
        yield draft.source.find("too-few-types", "/data/source", message, "raise them in the model's config")
    least = config.prompt_length + text
    if data.get("max_length", least) < least:
        message = f"{data['max_length']} leaves no room for text after a prompt of {config.prompt_length}"
        yield draft.source.find("prompt-too-long", "/data/max_length", message, f"give at least {least}")


def _least(prompt: int, segment: int) -> str:
    if prompt == segment:
        return f"prompt_types and segment_types of at least {prompt + 1}"
    return f"prompt_types of at least {prompt + 1} and segment_types of at least {segment + 1}"


def data_set_whole(draft: Draft, config: ModelConfig | None) -> Iterator[Diagnostic]:
    """A cpm-live set's meta.bin, where there is one, can be read; no data file is opened."""
    data = draft.section("data")
    if data.get("source") != "cpm-live":
        return
    for key in ("path", "held_out"):
        folder, size = data.get(key), data.get("block_size", DEFAULT_BLOCK)
        if isinstance(folder, str) and (draft.folder / folder / META).is_file():
            try:
                version = read_set(draft.folder / folder, size).version
            except InputError as error:
                for told in error.diagnostics:
                    yield draft.source.find("bad-data-set", f"/data/{key}", f"{told.place} {told.message}", told.hint)
                continue
            if version == 2 and "/data/block_size" in draft.source.places:
                message = f"the set {draft.folder / folder} is of version 2 and knows its block sizes"
                yield draft.source.warn("unused-option", "/data/block_size", message, "remove it", key=True)


def training_fits(draft: Draft, config: ModelConfig | None) -> Iterator[Diagnostic]:
    """The options of each training pass, told where they are written."""
    told = set()
    for step in draft.steps:
        if step.options is None or step.name not in TRAINS:
            continue
        for finding in (*_slices(draft, step), *_warmup(draft, step), *_scale(draft, step)):
            if (finding.code, finding.pointer) not in told:
                told.add((finding.code, finding.pointer))
                yield finding


def _slices(draft: Draft, step: Step) -> Iterator[Diagnostic]:
    batch, slices = draft.section("data").get("batch_size"), _option(step, "accumulate")
    if batch is not None and draft.has("data") and batch % slices:
        message = f"a batch of {batch} rows doesn't part into {slices} equal slices"
        pointer = _written(draft, step, "accumulate")
        yield draft.source.find("uneven-batch", pointer, message, f"give a divisor of data.batch_size {batch}")


def _warmup(draft: Draft, step: Step) -> Iterator[Diagnostic]:
    """A pass that ends before its warm-up does; noam's counts from the model's first step."""
    warmup, last = _option(step, "warmup_steps"), _option(step, "steps")
    if step.options and step.options["schedule"] == "noam":
        last += _steps_before(draft, step)
    if warmup >= last:
        message = f"{warmup} warm-up steps leave none of the {last} steps of {step.pointer} at the full learning rate"
        hint = f"give less than {last}, or null for 5% of the steps"
        yield draft.source.warn("long-warmup", _written(draft, step, "warmup_steps"), message, hint)


def _steps_before(draft: Draft, step: Step) -> int:
    """The training steps that the model has had when a pass begins."""
    earlier = [each for each in draft.steps[: draft.steps.index(step)] if each.name in TRAINS]
    return int(draft.section("model").get("start_step", 0)) + sum(_option(each, "steps") for each in earlier)


def _scale(draft: Draft, step: Step) -> Iterator[Diagnostic]:
    pointer = _written(draft, step, "loss_scale")
    precision = draft.section("engine").get("precision", "fp16")
    if precision != "fp16" and pointer in draft.source.places:
        message = f"loss_scale is not used with precision {show(precision)}"
        yield draft.source.warn("unused-option", pointer, message, 'remove it, or choose precision "fp16"', key=True)


def batches_used(draft: Draft, config: ModelConfig | None) -> Iterator[Diagnostic]:
    for step in draft.steps:
        if step.options and "batches" in step.given and not takes_a_look(step.options):
            score = f"criterion {show(step.options['criterion'])} and " if "criterion" in step.options else ""
            message = f"batches is not used with {score}no compensation"
            pointer = f"{step.pointer}/batches"
            yield draft.source.warn("unused-option", pointer, message, "remove it", key=True)


def _option(step: Step, key: str) -> int:
    value: int = step.options[key] if step.options else 0
    return value


def _written(draft: Draft, step: Step, key: str) -> str:
    return f"{step.pointer}/{key}" if key in step.given else f"/training/{key}"


def _unit(units: Sequence[str]) -> str:
    return f"unit{'s' if len(units) > 1 else ''} {_names(units)}"


def _names(units: Sequence[str], between: str = " and ") -> str:
    return between.join(show(unit) for unit in units)


CHECKS: tuple[Check, ...] = (
    units_fit,
    budgets_fit,
    size_findings,
    trained_first,
    sparse_findings,
    emit_last,
    heads_tied,
    form_fits,
    data_given,
    text_fits,
    data_set_whole,
    training_fits,
    engine_fits,
    distillation_fits,
    batches_used,
    saved_masks_fit,
)
