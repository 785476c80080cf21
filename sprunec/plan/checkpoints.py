"""A checkpoint that a plan names, held against the model's config by the headers of its files alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from sprunec.errors import Diagnostic, InputError
from sprunec.model.config import ModelConfig
from sprunec.model.head import head_and_words
from sprunec.model.headers import read_places
from sprunec.model.hf import native_shapes
from sprunec.model.pt_header import Unknown
from sprunec.model.shapes import Shape, expected_tensors
from sprunec.plan.draft import Draft


def checkpoint_findings(draft: Draft, pointer: str, path: Path, config: ModelConfig | None) -> Iterator[Diagnostic]:
    """What is wrong with its files, and with its tensors beside the config; what only torch can read is left to it."""
    try:
        places = read_places(path, _only_torch)
    except InputError as error:
        yield from retold(draft, pointer, error)
        return
    except Unknown:
        return
    if config is None:
        return
    # A head may be a copy of the embedding, which `run` finds out; a teacher's config is this one but for the head.
    tied = head_and_words(places) is None and (config.tie_word_embeddings or pointer != "/model/checkpoint")
    config = replace(config, tie_word_embeddings=tied)
    found = native_shapes(config, {name: place.shape for name, place in places.items()})
    expected = expected_tensors(config)
    message, hint = _unlike(found, expected)
    if message:
        yield draft.source.find("checkpoint-mismatch", pointer, f"{path}: {message}", hint)
    extra = [name for name in found if name not in expected]
    if extra and not message:
        text = f"{path} has tensors that the config doesn't name: {_first(extra)}"
        yield draft.source.warn("checkpoint-extra", pointer, text, "they are ignored")


def retold(draft: Draft, pointer: str, error: InputError) -> Iterator[Diagnostic]:
    """The findings about a file, at the place in the plan that names it."""
    for found in error.diagnostics:
        yield draft.source.find(found.code, pointer, f"{found.place}: {found.message}", found.hint)


def _only_torch(path: Path) -> NoReturn:
    raise Unknown(str(path))


def _unlike(found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> tuple[str, str]:
    """What the file lacks or has in another shape, and what to do; empty when it fits."""
    missing = [name for name in expected if name not in found]
    other = [name for name in expected if name in found and found[name] != expected[name]]
    if other:
        name = other[0]
        more = f" ({len(other) - 1} more differ)" if len(other) > 1 else ""
        message = f"{name} is {list(found[name])} and the config says {list(expected[name])}{more}"
        return message, "give the checkpoint's own config"
    return (f"no tensor {_first(missing)}", "give the checkpoint's own config") if missing else ("", "")


def _first(names: list[str]) -> str:
    return names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")
