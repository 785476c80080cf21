"""What a schema cannot say about a plan: how its parts go together, pass after pass.

Each check in `CHECKS` takes the plan as it is written and tells it what it finds. A part in which something is wrong
already is passed over, so one mistake is told once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from sprunec.checkpoint.gguf_file import is_gguf
from sprunec.checkpoint.hub import TOKENIZER
from sprunec.data import datasets_files, parquet, task_files
from sprunec.data.fast_tokenizer import gguf_lacks, is_fast
from sprunec.errors import InputError, show
from sprunec.families.cards import card_of
from sprunec.plan.declared import CRITERIA
from sprunec.plan.export_formats import formats_fit, heads_tied
from sprunec.plan.files import files_there, idle_patterns, saved_files_fit, task_files_fit
from sprunec.plan.named_tensors import sparsify_fits, trained_fits
from sprunec.plan.planned_sizes import sizes_fit
from sprunec.plan.search.search_checks import searches_fit
from sprunec.plan.targets import mismatched, quoted, uncovered
from sprunec.plan.training_checks import distillation_fits, engine_fits, rates_fit, training_fits
from sprunec.plan.written_plan import WrittenPlan, needs_calibration
from sprunec.units import SIZE_TARGETS, SUBLAYERS, WHOLE, counting

LAST = ("emit", "evaluate")  # passes, in either order
TOKENIZERS = ("tokenizer*", "vocab*", "*.tiktoken")
READERS = (
    ("parquet", "Parquet tables need", (parquet.PACKAGE, parquet.INSTALL)),
    ("datasets", 'source "datasets" needs', (datasets_files.PACKAGE, datasets_files.INSTALL)),
)


def units_fit(plan: WrittenPlan) -> None:
    """Check that every unit is named once and has a target, and that every count target counts a unit of its pass."""
    for step in (step for step in plan.valid_steps if "unit" in step.options):
        units, target = step.options["unit"], step.options["target"]
        if "layer" in units and (covered := [unit for unit in units if unit in SUBLAYERS]):
            step.error("unit-twice", "unit", f'"layer" covers {quoted(covered)} already', "give one or the other")
        fixed = card_of(plan.config).fixed_units(plan.config) if plan.config is not None else {}
        for unit in (unit for unit in units if unit in fixed):
            step.error(
                "cannot-cut", "unit", f"{unit} cannot be cut in this model: {fixed[unit]}", "choose another unit"
            )
        strangers, missing = mismatched(units, target), uncovered(units, target)
        for key in strangers:
            instead = f"give {' and '.join(missing)} instead" if missing else "remove it"
            hint = f"{instead}, or choose unit {quoted(counting(key), ' or ')}"
            step.error("unit-mismatch", f"target/{key}", f"{key} doesn't count {_unit(units)}", hint, at_key=True)
        if missing and not strangers:
            message = f"the target doesn't say {' and '.join(missing)} for {_unit(units)}"
            step.error("uncovered-unit", "target", message, f"add {' and '.join(missing)}")


def criteria_fit(plan: WrittenPlan) -> None:
    """Check that criteria of one kind of unit are not asked for others."""
    for step in (step for step in plan.valid_steps if "criterion" in step.options):
        name, units = step.options["criterion"], step.units
        if name is not None and (only := CRITERIA[name].unit) and set(units) != {only}:
            message = f"{name} scores unit {show(only)} alone, and this pass cuts {quoted(units)}"
            step.error(
                "unit-mismatch", "criterion", message, f'write "unit": {show(only)}, or choose another criterion'
            )


def budgets_fit(plan: WrittenPlan) -> None:
    for step in (step for step in plan.valid_steps if step.options.get("budget") == "per-layer"):
        whole = [unit for unit in step.options["unit"] if unit in WHOLE]
        size = [f"{key} is about the whole model" for key in step.options["target"] if key in SIZE_TARGETS]
        if why := f"{_unit(whole)} can't be cut in every layer alike" if whole else "".join(size[:1]):
            step.error("budget-mismatch", "budget", f'"per-layer" doesn\'t fit: {why}', 'write "global" or remove it')


def weights_given(plan: WrittenPlan) -> None:
    """Check that a library's model comes with its weights: what a new one starts from is the library's."""
    model, config = plan.section("model"), plan.config
    if config is not None and not card_of(config).own_code and "checkpoint" not in model.written:
        message = "the plan names no weights, and a model of transformers does not start without"
        model.error("no-weights", "config", message, 'name the directory that has them: "path"')


def trained_first(plan: WrittenPlan) -> None:
    """Check that masks are learned on, and recovered from, a model that has learned something."""
    model = plan.written.get("model")
    if not isinstance(model, dict) or "checkpoint" in model:
        return
    if "path" in model or not plan.is_valid("/model/config"):
        return  # what could not be opened may well have weights
    for step in plan.steps:
        if not step.is_known or (step.declared.trains and not step.declared.needs_trained):
            return
        if step.declared.needs_trained and "path" not in step.written:
            message = f"{step.name} needs a trained model, and no earlier pass makes one"
            hint = 'put {"pass": "train", "steps": 2000} before it, or give model.checkpoint'
            step.error("untrained-model", "pass", message, hint)
            return


def last_passes(plan: WrittenPlan) -> None:
    """Check that there is one emit at most, and that only such passes follow as measure what is emitted."""
    emits = [step for step in plan.steps if step.name == "emit"]
    for step in emits[1:]:
        step.error("emit-twice", "", "the model is emitted twice", "keep one emit, as the last pass")
    others = [index for index, step in enumerate(plan.steps) if step.name not in LAST]
    for step in (step for step in plan.steps[: max(others, default=0)] if step.name in LAST):
        if step.name == "emit" and len(emits) == 1:
            step.error("emit-not-last", "", "emit is not the last pass", "move it to the end")
        elif step.name == "evaluate":
            message = "evaluate is not among the last passes: it measures the model that enters and what all have left"
            step.error("evaluate-not-last", "", message, "move it to the end")


def tasks_run(plan: WrittenPlan) -> None:
    """Check that lm-eval is there, and can open the model, with a tokenizer."""
    for step in [step for step in plan.valid_steps if step.name == "evaluate"][:1]:
        checkpoint = plan.section("model").written.get("checkpoint")
        directory = plan.source.folder / checkpoint if isinstance(checkpoint, str) else None
        if plan.config is not None and card_of(plan.config).own_code:
            message = "lm-eval opens models of transformers that go on with a text, and this model is none"
            step.error("no-tasks", "pass", message, 'remove it: "evaluate": {} measures the loss on held-out text')
        elif directory is not None and os.path.isdir(directory) and not any(map(any, map(directory.glob, TOKENIZERS))):
            message = f"{directory} has no tokenizer, which tasks are read with"
            step.error("no-tokenizer", "pass", message, "put its tokenizer.json and tokenizer_config.json there")
        elif find_spec(task_files.PACKAGE) is None:
            tell, package = plan.error if plan.strict else plan.warn, task_files.PACKAGE
            tell("missing-package", step.at("pass"), f"evaluate needs the package {package}", task_files.INSTALL)


def data_fits(plan: WrittenPlan) -> None:
    """Check that there is data where something needs it, and that the model can be given what it is made of."""
    if "data" in plan.written:
        data, config = plan.options("data"), plan.config
        if config is not None and "source" in data:
            for finding in card_of(config).data_findings(config, data):
                plan.locate(finding)
        for source, what, (package, install) in READERS:
            if data.get("source") == source and find_spec(package) is None:
                tell = plan.error if plan.strict else plan.warn
                tell("missing-package", "/data/source", f"{what} the package {package}", install)
        return
    needing = [
        (step.at("pass"), step.name)
        for step in plan.steps
        if step.declared.trains or (step.declared.removes == "units" and needs_calibration(step.written))
    ]
    needing += [("/evaluate", "evaluate")] if "evaluate" in plan.written else []
    for pointer, name in needing[:1]:
        message = f"{name} needs data, and the plan names none"
        plan.error("missing-data", pointer, message, 'add "data": {"source": "python-docs"}')


def tokenizer_fits(plan: WrittenPlan) -> None:
    """Check that there is the tokenizer that packed texts and chats need."""
    data = plan.options("data")
    if isinstance(plan.tokenizer, Path) and is_fast(plan.tokenizer):
        return
    unseen = "tokenizer" not in plan.section("data").written and not _there(plan)  # the model may bring one
    needing = (("packing", "documents", "rows of whole documents"), ("template", "chat", "a chat template"))
    for key, value, what in needing:
        if data.get(key) == value and not (unseen or (key == "packing" and data.get("source") == "pairs")):
            message, hint = f"{what} need{'s' * what.startswith('a ')} a tokenizer.json", 'name one: "tokenizer"'
            plan.error("no-tokenizer", f"/data/{key}", message, hint)


def _there(plan: WrittenPlan) -> bool:
    """Tell whether the model's directory is there, or it has none."""
    checkpoint = plan.section("model").written.get("checkpoint")
    return checkpoint is None or os.path.exists(plan.source.folder / checkpoint)


def tokenizer_there(plan: WrittenPlan) -> None:
    """Warn where a library's model, which has learned tokens, would be given characters that nobody asked for."""
    model, data, config = plan.section("model").written, plan.section("data").written, plan.config
    if config is None or card_of(config).own_code or not data or "tokenizer" in data or "checkpoint" not in model:
        return
    directory = plan.source.folder / model["checkpoint"]
    if is_gguf(directory):
        if why := gguf_lacks(directory):
            message = f"text is read by characters, which this model has not learned: {directory}: {why}"
            plan.warn("no-tokenizer", "/data", message, 'name a tokenizer.json: "tokenizer"')
    elif os.path.exists(directory) and not os.path.isfile(directory / TOKENIZER):
        message = f"{directory} has no {TOKENIZER}: text is read by characters, which this model has not learned"
        plan.warn("no-tokenizer", "/data", message, 'name a tokenizer: "tokenizer"')


def data_set_whole(plan: WrittenPlan) -> None:
    """Check that a cpm-live set's meta.bin, where there is one, can be read; open no data file."""
    data = plan.options("data")
    if data.get("source") != "cpm-live":
        return
    from sprunec.bmcook.data.sets import META, read_set

    for key in ("path", "held_out"):
        folder, size = data.get(key), data.get("block_size")
        if isinstance(folder, str) and os.path.isfile(plan.source.folder / folder / META):
            try:
                version = read_set(plan.source.folder / folder, size).version
            except InputError as error:
                for told in error.diagnostics:
                    plan.error("bad-data-set", f"/data/{key}", f"{told.place} {told.message}", told.hint)
                continue
            if version == 2 and "/data/block_size" in plan.source.places:
                message = f"the set {plan.source.folder / folder} is of version 2 and knows its block sizes"
                plan.unused("/data/block_size", message)


def batches_used(plan: WrittenPlan) -> None:
    for step in plan.valid_steps:
        if "batches" in step.written and not needs_calibration(step.options):
            score = f"criterion {show(step.options['criterion'])} and " if "criterion" in step.options else ""
            step.unused("batches", f"batches is not used with {score}no compensation")


def _unit(units: Sequence[str]) -> str:
    return f"unit{'s' if len(units) > 1 else ''} {quoted(units)}"


CHECKS: tuple[Callable[[WrittenPlan], None], ...] = (
    *(
        units_fit,
        criteria_fit,
        budgets_fit,
        sizes_fit,
        searches_fit,
        weights_given,
        trained_first,
        sparsify_fits,
        last_passes,
        heads_tied,
        formats_fit,
    ),
    *(data_fits, tokenizer_fits, tokenizer_there, data_set_whole),
    *(training_fits, rates_fit, engine_fits, trained_fits, distillation_fits, batches_used, tasks_run),
    *(saved_files_fit, idle_patterns, files_there, task_files_fit),
)
