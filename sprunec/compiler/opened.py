"""Open the model that a command names, by its config and by the headers of its weights; needs no torch.

Only what torch alone can read, and a class of `transformers` that has no card, take more than that.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from sprunec.checkpoint.gguf_file import is_gguf
from sprunec.checkpoint.header import Header, open_header
from sprunec.checkpoint.hub import find_snapshot, hub_cache, is_hub_name
from sprunec.checkpoint.layouts import CONFIG, has_weights, is_index
from sprunec.errors import InputError
from sprunec.families.base_config import ModelConfig
from sprunec.families.cards import card
from sprunec.families.fit import check_dtypes, check_fit, refuse_unused
from sprunec.families.head import own_head
from sprunec.file_kinds import JSON, file_kind, foreign
from sprunec.plan.model_config import read_config

HINT = "name a config, safetensors, a GGUF file, what torch.save wrote, or a directory of these"


@dataclass(frozen=True)
class Opened:
    """A model that a command names.

    Attributes:
        path: the file or the directory; of a model of the hub, that of the cache.
        weights: whether weights were seen, which fit the config.
    """

    config: ModelConfig
    path: Path
    weights: bool


def open_model(path: Path) -> Opened:
    """Open a config, a checkpoint, a GGUF file or a directory; a model of the hub is looked for in the local cache.

    Raises:
        InputError: nothing of these, or a checkpoint and a config that do not fit each other.
    """
    if not os.path.exists(path) and is_hub_name(str(path)):
        if (found := find_snapshot(str(path))) is None:
            message = f"there is no such file, and no model of this name in {hub_cache()}"
            raise InputError.at(path, message, "check the path, or fetch the model", code="missing-file")
        path = found
    if os.path.isdir(path):
        if not os.path.exists(path / CONFIG):
            return _guessed(path)
        config = _read(path / CONFIG)
        if not has_weights(path):
            return Opened(config, path, weights=False)
        return Opened(_fitting(config, _header(path), path), path, weights=True)
    if not os.path.exists(path):
        raise InputError.at(path, "there is no such file", "check the path", code="missing-file")
    if is_gguf(path):
        return Opened(_fitting(_read(path), _header(path), path), path, weights=True)
    if not is_index(path):
        fine = {*JSON, "safetensors", "torch", "unknown"}
        told = None if path.suffix == ".json" else foreign(path, "a model config or a checkpoint", fine, {"": HINT})
        if told is not None:
            raise told
        if path.suffix == ".json" or file_kind(path) in JSON:
            return Opened(_read(path), path, weights=False)
    return _guessed(path)


def _read(path: Path) -> ModelConfig:
    config, found = read_config(str(path))
    if config is None:
        raise InputError(*found)
    return config


def _header(path: Path) -> Header:
    if (header := open_header(path)) is not None:
        return header
    from sprunec.checkpoint.reader import open_tensors

    return open_tensors(path)


def _guessed(path: Path) -> Opened:
    """Guess the config of weights alone, as much as their shapes tell."""
    header = _header(path)
    check_dtypes(header, path)
    return Opened(_fitting(card().guess(header.shapes(), path), header, path), path, weights=True)


def _fitting(config: ModelConfig, header: Header, path: Path) -> ModelConfig:
    """Untie the head from the embedding where the weights have it so, and check that weights and config fit."""
    if config.tie_word_embeddings and own_head(config, header) is not None:
        config = config.with_head(own=True)
    refuse_unused(check_fit(config, header, path), path)
    return config
