"""Check the files that a plan names: whether they are there and what they should be, and a checkpoint the config's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from sprunec.errors import Diagnostic, InputError
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.file_kinds import SAVED, TEXT, foreign
from sprunec.plan.checkpoint_checks import checkpoint_findings, idle_patterns, retold
from sprunec.plan.export_formats import package_findings
from sprunec.plan.resolve import Draft, as_list
from sprunec.plan.schema import properties
from sprunec.text_files import ANY_TEXT, foreign_text

MASK_HINTS = {"": "give a mask file as BMCook, or save_mask of a pass, writes it"}


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
        for key in ("path", "held_out"):
            yield from _set_files(draft, f"/data/{key}", data.get(key), data.get("block_size"))
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


def _set_files(draft: Draft, pointer: str, written: Any, block_size: Any) -> Iterator[tuple[str, Path, str]]:
    """Yield a data set's meta.bin and the files it names; what is wrong inside it, `data_set_whole` tells."""
    if isinstance(written, str):
        from sprunec.bmcook.data.sets import set_files

        meta, *files = set_files(draft.folder / written, block_size)
        yield pointer, meta, "data set"
        yield from ((pointer, path, "file of the data set") for path in files)
