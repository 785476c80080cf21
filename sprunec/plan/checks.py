"""What a schema cannot say about a plan: how its parts go together, pass after pass.

`CHECKS` is the list; each check takes the draft and the model's config (None when it could not be read) and yields what
it finds. A part in which something is wrong already is passed over, so one mistake is told once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from sprunec.errors import Diagnostic, InputError, show
from sprunec.families.base_config import ModelConfig
from sprunec.families.cards import card_of
from sprunec.plan.export_formats import formats_fit, heads_tied
from sprunec.plan.files import saved_masks_fit
from sprunec.plan.planned_sizes import size_findings
from sprunec.plan.resolve import Draft, needs_calibration
from sprunec.plan.sparsity import sparse_findings
from sprunec.plan.targets import mismatched, uncovered
from sprunec.plan.training_checks import distillation_fits, engine_fits, training_fits
from sprunec.units import SIZE_TARGETS, WHOLE, counting

Check = Callable[[Draft, ModelConfig | None], Iterator[Diagnostic]]


def units_fit(draft: Draft, config: ModelConfig | None) -> Iterator[Diagnostic]:
    """Check that every unit is named once and has a target, and that every count target counts a unit of its pass."""
    for step, options in draft.valid():
        if "unit" not in options:
            continue
        units, target = options["unit"], options["target"]
        covered = [unit for unit in units if unit in ("attention", "feed_forward")]
        if "layer" in units and covered:
            message = f'"layer" covers {_names(covered)} already'
            yield draft.source.find("unit-twice", f"{step.pointer}/unit", message, "give one or the other")
        strangers = mismatched(units, target)
        missing = uncovered(units, target)
        for key in strangers:
            message = f"{key} doesn't count {_unit(units)}"
            instead = f"give {' and '.join(missing)} instead" if missing else "remove it"
            hint = f"{instead}, or choose unit {_names(counting(key), ' or ')}"
            yield draft.source.find("unit-mismatch", f"{step.pointer}/target/{key}", message, hint, key=True)
        if missing and not strangers:
            message = f"the target doesn't say {' and '.join(missing)} for {_unit(units)}"
            hint = f"add {' and '.join(missing)}"
            yield draft.source.find("uncovered-unit", f"{step.pointer}/target", message, hint)


def budgets_fit(draft: Draft, config: ModelConfig | None) -> Iterator[Diagnostic]:
    for step, options in draft.valid():
        if options.get("budget") != "per-layer":
            continue
        whole = [unit for unit in options["unit"] if unit in WHOLE]
        size = [key for key in options["target"] if key in SIZE_TARGETS]
        if whole or size:
            alike = f"{_unit(whole)} can't be cut in every layer alike"
            message = f'"per-layer" doesn\'t fit: {alike if whole else f"{size[0]} is about the whole model"}'
            yield draft.source.find("budget-mismatch", f"{step.pointer}/budget", message, 'write "global" or remove it')


def trained_first(draft: Draft, config: ModelConfig | None) -> Iterator[Diagnostic]:
    """Check that masks are learned on, and recovered from, a model that has learned something."""
    model = draft.source.value.get("model")
    unopened = not draft.sound("/model/path") or not draft.sound("/model/config")  # it may well have weights
    if not isinstance(model, dict) or "checkpoint" in model or unopened:
        return
    for step in draft.steps:
        if not step.name or (step.declared.trains and not step.declared.needs_trained):
            return
        if step.declared.needs_trained and "path" not in step.given:
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
        yield draft.source.find("emit-not-last", emits[0].pointer, "emit is not the last pass", "move it to the end")


def data_given(draft: Draft, config: ModelConfig | None) -> Iterator[Diagnostic]:
    if draft.has("data"):
        return
    hint = 'add "data": {"source": "python-docs"}'
    if needing := [step for step in draft.steps if step.needs_data]:
        message = f"{needing[0].name} needs data, and the plan names none"
        yield draft.source.find("missing-data", f"{needing[0].pointer}/pass", message, hint)
    elif draft.has("evaluate"):
        yield draft.source.find("missing-data", "/evaluate", "evaluate needs data, and the plan names none", hint)


def data_fits(draft: Draft, config: ModelConfig | None) -> Iterator[Diagnostic]:
    """Check that the model can be given what the data is made of."""
    data = draft.section("data")
    if config is not None and draft.has("data") and "source" in data:
        yield from map(draft.source.locate, card_of(config).data_findings(config, data))


def data_set_whole(draft: Draft, config: ModelConfig | None) -> Iterator[Diagnostic]:
    """Check that a cpm-live set's meta.bin, where there is one, can be read; open no data file."""
    data = draft.section("data")
    if data.get("source") != "cpm-live":
        return
    from sprunec.bmcook.data.sets import META, read_set

    for key in ("path", "held_out"):
        folder, size = data.get(key), data.get("block_size")
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


def batches_used(draft: Draft, config: ModelConfig | None) -> Iterator[Diagnostic]:
    for step, options in draft.valid():
        if "batches" in step.given and not needs_calibration(options):
            score = f"criterion {show(options['criterion'])} and " if "criterion" in options else ""
            message = f"batches is not used with {score}no compensation"
            yield draft.source.warn("unused-option", f"{step.pointer}/batches", message, "remove it", key=True)


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
    formats_fit,
    data_given,
    data_fits,
    data_set_whole,
    training_fits,
    engine_fits,
    distillation_fits,
    batches_used,
    saved_masks_fit,
)
