"""A checkpoint that a plan names, held against the model's config by the headers of its files alone."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

from sprunec.checkpoint.header import open_header
from sprunec.errors import Diagnostic, InputError
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.families.cpm_ant.fit import check_fit, refuse_unused
from sprunec.families.cpm_ant.head import head_and_embedding
from sprunec.families.cpm_ant.huggingface_names import native_shapes
from sprunec.families.cpm_ant.shapes import expected_tensors
from sprunec.families.unused import listed, unused_tensors
from sprunec.plan.pointer import show
from sprunec.plan.resolve import Draft


def checkpoint_findings(draft: Draft, pointer: str, path: Path, config: ModelConfig | None) -> Iterator[Diagnostic]:
    """Find what is wrong with its files, and with its tensors beside the config; only `run` opens some with torch."""
    unused = None
    try:
        header = open_header(path)
        if header is None or config is None:
            return
        # A head may be a copy of the embedding, which `run` finds out; a teacher's config is this one but for the head.
        tied = head_and_embedding(header) is None and (config.tie_word_embeddings or pointer != "/model/checkpoint")
        unused = check_fit(replace(config, tie_word_embeddings=tied), header, path, ignore_patterns(draft))
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
        shapes = native_shapes(config, header.shapes())
        matched |= unused_tensors(expected_tensors(config), shapes, header.dtypes(), patterns).matched
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
