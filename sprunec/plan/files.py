"""Check the files that a plan names, a checkpoint by its header against the config, and those that it writes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sprunec.checkpoint.header import open_header
from sprunec.checkpoint.layouts import checkpoint_files
from sprunec.data.file_sets import expanded, without_files
from sprunec.data.task_files import PACKAGE, read_task_file
from sprunec.errors import InputError, show
from sprunec.families.cards import card_of
from sprunec.families.fit import check_fit, refuse_unused
from sprunec.families.unused import listed, unused_tensors
from sprunec.file_kinds import SAVED, TEXT, foreign
from sprunec.plan.model_config import teacher_config
from sprunec.plan.schema import properties
from sprunec.plan.schema_errors import schema_findings
from sprunec.plan.search.latency_table import LatencyTable
from sprunec.plan.source import has_errors, read_source
from sprunec.plan.targets import quoted
from sprunec.plan.written_plan import WrittenPlan, as_list
from sprunec.text_files import ANY_TEXT, PACKED_LINES, foreign_text
from sprunec.units import INSIDE

MASKS, PATTERN, TASK, DATA, TIMES = "mask file", "2:4 mask file", "task file", "data file", "latency table"
MASK_HINTS = {"": "give a mask file as BMCook, or save_mask of a pass, writes it, or of a form in docs/masks.md"}
NOTE = ".json"


def files_there(plan: WrittenPlan) -> None:
    """Check that what the plan names is there, and is what it is named as; a missing file may be made before a run."""
    source = plan.options("data").get("source", "")
    for pointer, path, what in named_files(plan):
        if pointer in plan.source.assumed and not plan.strict:
            continue  # that nobody has given it has been told
        if not os.path.exists(path):
            tell, hint = (plan.error, plan.paths_start) if plan.strict else (plan.warn, "run will need it")
            tell("missing-file", pointer, f"there is no {what} {path}", hint)
        elif what == "checkpoint":
            _checkpoint_fits(plan, pointer, path)
        elif os.path.isdir(path):
            if what == DATA:
                plan.error("not-a-file", pointer, f"{path} {without_files(source)}", "name the files in it")
            elif what != MASKS:  # a folder with a file for each layer
                plan.error("not-a-file", pointer, f"{what} {path} is a folder", "name the files in it")
        elif what == TIMES:
            _times_fit(plan, pointer, path)
        elif what in (MASKS, PATTERN):
            fine = {".json": TEXT, ".safetensors": {"safetensors"}} if what == MASKS else {}
            _retell(plan, pointer, foreign(path, f"a {what}", fine.get(path.suffix, SAVED), MASK_HINTS))
        elif what not in ("data set", "file of the data set", TASK):  # `data_set_whole`, `tasks_fit` look inside
            _retell(plan, pointer, _foreign_data(path, "vocabulary" if what == "vocabulary file" else source))


def _foreign_data(path: Path, source: Any) -> InputError | None:
    """Make the error for a data file that its source cannot be."""
    if source == "parquet":
        hint = 'choose "source": "text" or "jsonl" for text'
        return foreign(path, "a Parquet table", {"parquet"}, {"": hint})
    wanted = {"vocabulary": "a vocabulary", "jsonl": "JSON lines", "pairs": "JSON lines"}.get(source, "text")
    hints = {"parquet": 'choose "source": "parquet"'} if source in ("text", "jsonl") else {}
    return foreign_text(path, wanted, {"text": ANY_TEXT, "JSON lines": PACKED_LINES}.get(wanted, TEXT), hints)


def named_files(plan: WrittenPlan) -> Iterator[tuple[str, Path, str]]:
    """Yield where a file is named, its path, and what it is."""
    data = plan.options("data")
    source, tokenizer = data.get("source", ""), data.get("tokenizer")
    named: list[tuple[str, Any, str]] = [("/model/checkpoint", plan.options("model").get("checkpoint"), "checkpoint")]
    if source == "cpm-live":
        from sprunec.bmcook.data.sets import set_files

        for key in ("path", "held_out"):
            if isinstance(folder := data.get(key), str):
                meta, *files = set_files(plan.source.folder / folder, data.get("block_size"))
                named.append((f"/data/{key}", meta, "data set"))
                named += [(f"/data/{key}", path, "file of the data set") for path in files]
    named += [
        ("/data/path", data.get("path") if source in ("text", "jsonl", "parquet", "pairs") else None, DATA),
        ("/data/held_out", data.get("held_out") if source not in ("cpm-live", "datasets") else None, "held-out file"),
        ("/data/vocab", data.get("vocab"), "vocabulary file"),
        ("/data/tokenizer", tokenizer if tokenizer != "characters" else None, "vocabulary file"),
    ]
    masks = (step for step in plan.steps if step.is_known and "path" in properties(f"passes/{step.name}"))
    named += [
        (step.at("path"), step.written.get("path"), MASKS if step.declared.removes == "units" else PATTERN)
        for step in masks
    ]
    for place, options in [("/training", plan.options("training")), *((s.pointer, s.written) for s in plan.steps)]:
        if isinstance(distillation := options.get("distillation"), dict):
            named.append((f"{place}/distillation/teacher", distillation.get("teacher"), "checkpoint"))
    for step in (step for step in plan.steps if step.name == "evaluate"):
        named += [(step.at(f"tasks/{i}"), task, TASK) for i, task in enumerate(step.options.get("tasks", ()))]
    tables = (step for step in plan.steps if step.is_known and "latency_table" in properties(f"passes/{step.name}"))
    named += [(step.at("latency_table"), step.written.get("latency_table"), TIMES) for step in tables]
    for pointer, written, what in named:
        if what == TASK and not isinstance(written, Path):
            continue  # the name of one that lm-eval has
        if isinstance(written, Path):
            yield pointer, written, what
        elif isinstance(written, str | list) and plan.is_valid(pointer):
            for index, name in enumerate(as_list(written)):
                place, path = f"{pointer}/{index}" if isinstance(written, list) else pointer, plan.source.folder / name
                for each in expanded(path, source) if what == DATA else (path,):
                    yield place, each, what


def _checkpoint_fits(plan: WrittenPlan, pointer: str, path: Path) -> None:
    """Check its files, and its tensors beside the config; only `run` opens some with torch."""
    unused, config, patterns = None, plan.config, plan.options("model").get("ignore_tensors", [])
    try:
        if config is not None and pointer != "/model/checkpoint":
            config = teacher_config(path, config)
        header = open_header(path)
        if header is None or config is None:
            return
        # A head may be a copy of the embedding, which `run` finds out; a teacher's config is this one but for the head.
        its_own = config.tie_word_embeddings or pointer != "/model/checkpoint"
        tied = its_own and card_of(config).head_names(header) is None
        unused = check_fit(config.with_head(own=not tied), header, path, patterns)
        refuse_unused(unused, path)
    except InputError as error:
        _retell(plan, pointer, error)
    if unused is not None and unused.ignored:
        plan.warn("tensors-ignored", pointer, f"{path}: ignored as ignore_tensors asks: {listed(unused.ignored)}")


def _times_fit(plan: WrittenPlan, pointer: str, path: Path) -> None:
    try:
        read_latency_table(path)
    except InputError as error:
        _retell(plan, pointer, error)


def task_files_fit(plan: WrittenPlan) -> None:
    """Check task files, and that no task is named twice; names of lm-eval's own are for `run` to look up."""
    named: dict[str, str] = {}
    for step in (step for step in plan.valid_steps if step.name == "evaluate"):
        for index, task in enumerate(step.options["tasks"]):
            pointer = step.at(f"tasks/{index}")
            name = _task_name(plan, pointer, task) if isinstance(task, Path) else task
            if name in named:
                plan.error("task-twice", pointer, f"{show(name)} is a task of {named[name]} already", "remove one")
            elif name is not None:
                named[name] = pointer


def _task_name(plan: WrittenPlan, pointer: str, path: Path) -> str | None:
    """Read a task file, where it is there and what reads it, and tell what is wrong in it."""
    if not os.path.isfile(path) or find_spec(PACKAGE) is None:
        return None
    try:
        found = read_task_file(path)
    except InputError as error:
        _retell(plan, pointer, error)
        return None
    tell = plan.error if plan.strict else plan.warn
    for file in found.lacking:
        tell("missing-file", pointer, f"there is no {file}, which {path} names", "its data is beside a task file")
    return found.name


def idle_patterns(plan: WrittenPlan) -> None:
    """Find patterns of `ignore_tensors` that no checkpoint of the plan has a tensor for."""
    patterns, config = plan.options("model").get("ignore_tensors", []), plan.config
    paths = [path for _, path, what in named_files(plan) if what == "checkpoint"]
    if not patterns or config is None or not all(os.path.exists(path) for path in paths):
        return
    matched: set[str] = set()
    for path in paths:
        try:
            header = open_header(path)
        except InputError:
            return
        if header is None:
            return
        shapes = card_of(config).native_shapes(config, header.shapes())
        matched |= unused_tensors(config.tensors(), shapes, header.dtypes(), patterns).matched
    for index, pattern in enumerate(patterns):
        if pattern not in matched:
            message = f"{show(pattern)} is the name of no tensor that is left over"
            hint = "remove it" if paths else "remove it: the plan names no checkpoint"
            plan.warn("matches-nothing", f"/model/ignore_tensors/{index}", message, hint)


def _retell(plan: WrittenPlan, pointer: str, error: InputError | None) -> None:
    """Repeat the findings about a file, if there are any, at the place in the plan that names it."""
    for found in error.diagnostics if error is not None else ():
        plan.error(found.code, pointer, f"{found.place}: {found.message}", found.hint)


def saved_files_fit(plan: WrittenPlan) -> None:
    """Check that a file is written once, can say what its pass cuts, and is no file that the plan reads."""
    read = {
        file: ("overwritten-input", f"is read by the plan, as its {what}", "name another file")
        for file, what in _files_read(plan).items()
    }
    written: dict[str, tuple[str, str, str]] = {}
    for step in plan.valid_steps:
        if "mask_form" in step.written and "save_mask" not in step.options:
            step.unused("mask_form", "mask_form is not used without save_mask", "add save_mask, or remove it")
        if (key := next((key for key in ("save_mask", "save_table") if key in step.options), None)) is None:
            continue
        path, real = step.options[key], os.path.realpath(step.options[key])
        names = (real, real + NOTE) if key == "save_mask" else (real,)  # a note lies beside a mask
        if users := [taken[name] for taken in (read, written) for name in names if name in taken]:
            code, use, hint = users[0]
            step.error(code, key, f"{path} {use}", hint)
        elif os.path.isdir(path):
            step.error("not-a-file", key, f"{path} is a folder", "name a file in it")
        instead = "name another file: each pass writes its own"
        written |= dict.fromkeys(names, ("written-twice", f"is written by {step.pointer} already", instead))
        inside = [unit for unit in step.units if unit in INSIDE]
        if step.options.get("mask_form") == "mask_modules" and inside:
            message = f'"mask_modules" says which sublayers are removed, and the pass cuts {quoted(inside)}'
            step.error("form-mismatch", "mask_form", message, 'choose "bmcook" or "plugin"')


def _files_read(plan: WrittenPlan) -> dict[str, str]:
    """Say what the plan reads, by real path: itself, its model config, and the files it names."""
    own = [plan.source, *(origin for origin, _ in plan.source.origins.values())]
    read = {os.path.realpath(Path(source.file)): "own file" for source in own}
    config = plan.options("model").get("config")
    if isinstance(config, str):
        read[os.path.realpath(plan.source.folder / config)] = "model config"
    for _, path, what in named_files(plan):
        files = (path, *checkpoint_files(path)) if what == "checkpoint" else (path,)
        read |= {os.path.realpath(file): what for file in files}
    return read


def read_latency_table(path: Path) -> LatencyTable:
    """Read a table of seconds that `measure-latency` has written, here or elsewhere.

    Raises:
        InputError: it is none.
    """
    source = read_source(path, "a latency table", "name a table that measure-latency has written")
    found = [*source.problems, *schema_findings(source, "latency")]
    if has_errors(found):
        raise InputError(*found)
    return LatencyTable(source.value, str(path))
