"""Check the files that a plan names, a checkpoint by its header against the config, and those that it writes."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sprunec.checkpoint.header import open_header
from sprunec.checkpoint.layouts import checkpoint_files
from sprunec.errors import Diagnostic, InputError, show
from sprunec.families.base_config import ModelConfig
from sprunec.families.cards import card_of
from sprunec.families.fit import check_fit, refuse_unused
from sprunec.families.unused import listed, unused_tensors
from sprunec.file_kinds import SAVED, TEXT, foreign
from sprunec.plan.export_formats import package_findings
from sprunec.plan.resolve import Draft, as_list
from sprunec.plan.schema import properties
from sprunec.text_files import ANY_TEXT, foreign_text
from sprunec.units import INSIDE

MASK_HINTS = {"": "give a mask file as BMCook, or save_mask of a pass, writes it"}
NOTE = ".json"


def input_findings(draft: Draft, config: ModelConfig | None, strict: bool) -> Iterator[Diagnostic]:
    """Tell what is wrong with checkpoint, data, masks and packages; a missing one is a warning unless `strict`."""
    yield from package_findings(draft, strict)
    checkpoints = [path for _, path, what in named_files(draft) if what == "checkpoint"]
    yield from idle_patterns(draft, checkpoints, config)
    for pointer, path, what in named_files(draft):
        if pointer in draft.source.assumed and not strict:
            continue  # that nobody has given it has been told
        if not os.path.exists(path):
            finding = draft.source.warn("missing-file", pointer, f"there is no {what} {path}", "run will need it")
            yield (replace(finding, severity="error", hint=draft.paths_start) if strict else finding)
        elif what != "checkpoint" and os.path.isdir(path):
            yield draft.source.find("not-a-file", pointer, f"{what} {path} is a folder", "name the files in it")
        elif what == "checkpoint":
            yield from checkpoint_findings(draft, pointer, path, config)
        elif told := _foreign(draft, path, what):
            yield from retold(draft, pointer, told)


def _foreign(draft: Draft, path: Path, what: str) -> InputError | None:
    """Tell what a file is, where it is not what it was named as."""
    if what == "mask file":
        return foreign(path, "a mask file", TEXT if path.suffix == ".json" else SAVED, MASK_HINTS)
    if what in ("data set", "file of the data set"):
        return None
    plain = what != "vocabulary file" and draft.section("data").get("source") not in ("jsonl", "pairs")
    wanted = "a vocabulary" if what == "vocabulary file" else "text" if plain else "JSON lines"
    return foreign_text(path, wanted, ANY_TEXT if plain else TEXT)


def named_files(draft: Draft) -> Iterator[tuple[str, Path, str]]:
    """Yield where a file is named, its path, and what it is."""
    model, data = draft.section("model"), draft.section("data")
    yield from _files(draft, "/model/checkpoint", model.get("checkpoint"), "checkpoint")
    if data.get("source") == "cpm-live":
        from sprunec.bmcook.data.sets import set_files

        for key in ("path", "held_out"):
            if isinstance(folder := data.get(key), str):  # what is wrong inside the set, `data_set_whole` tells
                meta, *files = set_files(draft.folder / folder, data.get("block_size"))
                yield f"/data/{key}", meta, "data set"
                yield from ((f"/data/{key}", path, "file of the data set") for path in files)
    else:
        if data.get("source") in ("text", "jsonl", "pairs"):
            yield from _files(draft, "/data/path", data.get("path"), "data file")
        yield from _files(draft, "/data/held_out", data.get("held_out"), "held-out file")
    yield from _files(draft, "/data/vocab", data.get("vocab"), "vocabulary file")
    if data.get("tokenizer") != "characters":
        yield from _files(draft, "/data/tokenizer", data.get("tokenizer"), "vocabulary file")
    for step in draft.steps:
        if step.name and "path" in properties(f"passes/{step.name}") and draft.sound(f"{step.pointer}/path"):
            yield from _files(draft, f"{step.pointer}/path", step.given.get("path"), "mask file")
    written = {"/training": draft.section("training")} | {step.pointer: step.given for step in draft.steps}
    for place, options in written.items():
        distillation, pointer = options.get("distillation"), f"{place}/distillation/teacher"
        if isinstance(distillation, dict) and draft.sound(pointer):
            yield from _files(draft, pointer, distillation.get("teacher"), "checkpoint")


def _files(draft: Draft, pointer: str, written: Any, what: str) -> Iterator[tuple[str, Path, str]]:
    if isinstance(written, str | list):
        for index, name in enumerate(as_list(written)):
            yield f"{pointer}/{index}" if isinstance(written, list) else pointer, draft.folder / name, what


def checkpoint_findings(draft: Draft, pointer: str, path: Path, config: ModelConfig | None) -> Iterator[Diagnostic]:
    """Find what is wrong with its files, and with its tensors beside the config; only `run` opens some with torch."""
    unused = None
    try:
        header = open_header(path)
        if header is None or config is None:
            return
        # A head may be a copy of the embedding, which `run` finds out; a teacher's config is this one but for the head.
        its_own = config.tie_word_embeddings or pointer != "/model/checkpoint"
        tied = its_own and card_of(config).head_names(header) is None
        unused = check_fit(config.with_head(own=not tied), header, path, ignore_patterns(draft))
        refuse_unused(unused, path)
    except InputError as error:
        yield from retold(draft, pointer, error)
    if unused is not None and unused.ignored:
        text = f"{path}: ignored as ignore_tensors asks: {listed(unused.ignored)}"
        yield draft.source.warn("tensors-ignored", pointer, text)


def idle_patterns(draft: Draft, paths: Collection[Path], config: ModelConfig | None) -> Iterator[Diagnostic]:
    """Find patterns of `ignore_tensors` that no checkpoint of the plan has a tensor for."""
    patterns = ignore_patterns(draft)
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
            yield draft.source.warn("matches-nothing", f"/model/ignore_tensors/{index}", message, hint)


def ignore_patterns(draft: Draft) -> tuple[str, ...]:
    return tuple(draft.section("model").get("ignore_tensors", ()))


def retold(draft: Draft, pointer: str, error: InputError) -> Iterator[Diagnostic]:
    """Repeat the findings about a file, at the place in the plan that names it."""
    for found in error.diagnostics:
        yield draft.source.find(found.code, pointer, f"{found.place}: {found.message}", found.hint)


def saved_masks_fit(draft: Draft, config: ModelConfig | None) -> Iterator[Diagnostic]:
    """A mask file is written once, has a form that can say what its pass cuts, and is no file that the plan reads."""
    read = _files_read(draft)
    written: dict[str, str] = {}
    for step, options in draft.valid():
        form = f"{step.pointer}/mask_form"
        if "save_mask" not in options:
            if "mask_form" in step.given:
                message = "mask_form is not used without save_mask"
                yield draft.source.warn("unused-option", form, message, "add save_mask, or remove it", key=True)
            continue
        yield from _path_fits(draft, f"{step.pointer}/save_mask", options["save_mask"], read, written)
        written |= dict.fromkeys(_names(options["save_mask"]), step.pointer)
        inside = [unit for unit in options.get("unit", ()) if unit in INSIDE]
        if options.get("mask_form") == "mask_modules" and inside:
            cut = " and ".join(map(show, inside))
            message = f'"mask_modules" says which sublayers are removed, and the pass cuts {cut}'
            yield draft.source.find("form-mismatch", form, message, 'choose "bmcook" or "plugin"')


def _path_fits(
    draft: Draft, pointer: str, path: Path, read: Mapping[str, str], written: Mapping[str, str]
) -> Iterator[Diagnostic]:
    names = _names(path)
    reader, writer = (next((users[name] for name in names if name in users), None) for users in (read, written))
    if reader is not None:
        message = f"{path} is read by the plan, as its {reader}"
        yield draft.source.find("overwritten-input", pointer, message, "name another file")
    elif writer is not None:
        message = f"{path} is written by {writer} already"
        yield draft.source.find("written-twice", pointer, message, "name another file: each pass writes its own")
    elif os.path.isdir(path):
        yield draft.source.find("not-a-file", pointer, f"{path} is a folder", "name a file in it")


def _names(path: Path) -> tuple[str, str]:
    """The real paths of a mask file and of the note beside it."""
    return os.path.realpath(path), os.path.realpath(path) + NOTE


def _files_read(draft: Draft) -> dict[str, str]:
    """What the plan reads, by real path: itself, its model config, and the files it names."""
    read = {os.path.realpath(Path(origin.file)): "own file" for origin, _ in draft.source.origins.values()}
    read[os.path.realpath(Path(draft.source.file))] = "own file"
    config = draft.section("model").get("config")
    if isinstance(config, str):
        read[os.path.realpath(draft.folder / config)] = "model config"
    for _, path, what in named_files(draft):
        files = (path, *checkpoint_files(path)) if what == "checkpoint" else (path,)
        read |= {os.path.realpath(file): what for file in files}
    return read
