"""A checkpoint that a plan names, held against the model's config by the headers of its files alone."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from sprunec.checkpoint.dtypes import dtype_refusal, weight_names
from sprunec.checkpoint.headers import dtype_names, known_places
from sprunec.checkpoint.safetensors_file import Stored
from sprunec.errors import Diagnostic, InputError
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.families.cpm_ant.head import head_and_words
from sprunec.families.cpm_ant.huggingface_names import native_shapes
from sprunec.families.cpm_ant.shapes import Shape, expected_tensors
from sprunec.families.detect import TODAY, foreign_tensors, remedy
from sprunec.families.unused import Unused, listed, refusal, unused_tensors
from sprunec.plan.pointer import show
from sprunec.plan.resolve import Draft


def checkpoint_findings(draft: Draft, pointer: str, path: Path, config: ModelConfig | None) -> Iterator[Diagnostic]:
    """What is wrong with its files, and with its tensors beside the config; what only torch can read is left to it."""
    try:
        places = known_places(path)
    except InputError as error:
        yield from retold(draft, pointer, error)
        return
    if places is None or config is None:
        return
    # A head may be a copy of the embedding, which `run` finds out; a teacher's config is this one but for the head.
    tied = head_and_words(places) is None and (config.tie_word_embeddings or pointer != "/model/checkpoint")
    config = replace(config, tie_word_embeddings=tied)
    told = dtype_refusal(dtype_names(places), weight_names(config, places))
    if told is not None:
        message, hint = told
        yield draft.source.find("checkpoint-dtype", pointer, f"{path}: {message}", hint)
        return
    found, expected = native_shapes(config, shapes_of(places)), expected_tensors(config)
    message, hint = _unlike(found, expected, places)
    if message:
        yield draft.source.find("checkpoint-mismatch", pointer, f"{path}: {message}", hint)
        return
    unused = _unused(places, config, ignore_patterns(draft))
    if unused.refused:
        message, hint = refusal(unused.refused)
        yield draft.source.find("checkpoint-extra", pointer, f"{path}: {message}", hint)
    if unused.ignored:
        text = f"{path}: ignored as ignore_tensors asks: {listed(unused.ignored)}"
        yield draft.source.warn("tensors-ignored", pointer, text)


def idle_patterns(draft: Draft, paths: Collection[Path], config: ModelConfig | None) -> Iterator[Diagnostic]:
    """Patterns of `ignore_tensors` that no checkpoint of the plan has a tensor for."""
    patterns = ignore_patterns(draft)
    if not patterns or config is None or not all(os.path.exists(path) for path in paths):
        return
    matched: set[str] = set()
    for path in paths:
        try:
            places = known_places(path)
        except InputError:
            return
        if places is None:
            return
        matched |= _unused(places, config, patterns).matched
    for index, pattern in enumerate(patterns):
        if pattern not in matched:
            message = f"{show(pattern)} is the name of no tensor that is left over"
            hint = "remove it" if paths else "remove it: the plan names no checkpoint"
            yield draft.source.warn("matches-nothing", f"/model/ignore_tensors/{index}", message, hint)


def ignore_patterns(draft: Draft) -> tuple[str, ...]:
    return tuple(draft.section("model").get("ignore_tensors", ()))


def shapes_of(places: Mapping[str, Stored]) -> dict[str, Shape]:
    return {name: place.shape for name, place in places.items()}


def _unused(places: Mapping[str, Stored], config: ModelConfig, patterns: tuple[str, ...]) -> Unused:
    found = native_shapes(config, shapes_of(places))
    return unused_tensors(expected_tensors(config), found, dtype_names(places), patterns)


def retold(draft: Draft, pointer: str, error: InputError) -> Iterator[Diagnostic]:
    """The findings about a file, at the place in the plan that names it."""
    for found in error.diagnostics:
        yield draft.source.find(found.code, pointer, f"{found.place}: {found.message}", found.hint)


def _unlike(found: Mapping[str, Shape], expected: Mapping[str, Shape], names: Collection[str]) -> tuple[str, str]:
    """What the file lacks or has in another shape, and what to do; empty when it fits."""
    missing = [name for name in expected if name not in found]
    other = [name for name in expected if name in found and found[name] != expected[name]]
    if other:
        name = other[0]
        more = f" ({len(other) - 1} more differ)" if len(other) > 1 else ""
        message = f"{name} is {list(found[name])} and the config says {list(expected[name])}{more}"
        return message, "give the checkpoint's own config"
    if not missing:
        return "", ""
    foreign = foreign_tensors(names)
    whose = f"{foreign}, with " if foreign else ""
    return f"{whose}no tensor {_first(missing)}", TODAY if foreign else remedy(found)


def _first(names: list[str]) -> str:
    return names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")
