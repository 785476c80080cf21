"""A model as a directory: config.json, kept.json and the weights beside them.

What is written is what `reader` and `writer` make of it; the weights of a plan's input may be a link to the user's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sprunec.checkpoint.header import misfit
from sprunec.checkpoint.reader import Tensors, open_tensors
from sprunec.checkpoint.safetensors_file import Shape
from sprunec.checkpoint.writer import Output, as_outputs, write_outputs
from sprunec.durable import read_file, write_new
from sprunec.errors import InputError
from sprunec.families import cards
from sprunec.families.base import family_of
from sprunec.families.base_config import ModelConfig
from sprunec.text_files import read_json
from sprunec.units import Kept


def save_model(directory: Path, config: ModelConfig, kept: Kept, state: Mapping[str, Tensor]) -> None:
    """Write a model; `kept` says in the plan's input model's indices what it still has."""
    save_outputs(directory, config, kept, as_outputs(state))


def save_outputs(directory: Path, config: ModelConfig, kept: Kept, outputs: Mapping[str, Output]) -> None:
    """Do as `save_model`, with tensors that are made while they are written; they must be the config's.

    They get the names that the family emits them by, so that a format can be these very files.

    Raises:
        PassError: the disk has no room for them; nothing has been written.
    """
    wrong = misfit(config.tensors(), {name: output.shape for name, output in outputs.items()})
    assert not wrong, wrong
    describe(directory, config, kept)
    names = {name: name for name in outputs} | {**family_of(config).stored_names(config)}
    write_outputs({names[name]: output for name, output in outputs.items()}, directory)


def describe(directory: Path, config: ModelConfig, kept: Kept) -> None:
    """Write what stands beside a model's weights."""
    directory.mkdir(parents=True, exist_ok=True)
    write_new(directory / "config.json", json.dumps(config.to_dict(), indent=1))
    write_new(directory / "kept.json", json.dumps(kept.to_json()))


def open_model_tensors(directory: Path) -> Tensors:
    """Open the tensors of an artifact's model; others in the user's file are left out.

    Raises:
        InputError: a tensor is missing or of another shape.
    """
    config, tensors = read_config(directory), open_tensors(directory)
    tensors = tensors.renamed({stored: name for name, stored in names_on_disk(config, tensors).items()})
    check_shapes(config.tensors(), tensors.shapes(), directory, exact=False)
    return tensors


def names_on_disk(config: ModelConfig, tensors: Tensors) -> dict[str, str]:
    """Tell what a config's tensors are called in an artifact of these."""
    names = {name: name for name in config.tensors()}
    there = all(name in tensors for name in names)
    return names if there else names | {**family_of(config).stored_names(config)}


def check_shapes(
    wanted: Mapping[str, Shape], given: Mapping[str, Shape], source: object, *, exact: bool = True
) -> None:
    if wrong := misfit(wanted, given, exact=exact):
        raise InputError.at(source, wrong, "give the checkpoint's own config", code="checkpoint-mismatch")


def read_config(directory: Path) -> ModelConfig:
    """Raises InputError for anything but a model config."""
    path, hint = directory / "config.json", "give a directory that `emit` wrote"
    data = read_json(path, "a model config", hint)
    try:
        config = None if data.get("num_layers", 0) > cards.MOST_LAYERS else cards.read_config(data)
        why = _wrong(config, data) if config else f"it says {data['num_layers']} layers, above {cards.MOST_LAYERS}"
    except (ValueError, TypeError, KeyError, AttributeError):
        config, why = None, "a value in it is of another kind than its key has"
    if config is None or why:
        raise InputError.at(path, f"is no model config: {why}", hint)
    return config


def _wrong(config: ModelConfig, data: Mapping[str, Any]) -> str:
    if len(config.layers) != data.get("num_layers", len(config.layers)):
        return f"it has {len(config.layers)} layers and says {data['num_layers']}"
    negative = any(count < 0 for layer in config.layers for count in layer.counts.values())
    return "it has a negative size" if negative else ""


def read_kept(directory: Path) -> Kept:
    return Kept.from_json(json.loads(read_file(directory / "kept.json")))


def fill(model: nn.Module, state: Mapping[str, Tensor], source: object) -> None:
    """Put `state` into a model on the meta device, names and shapes exactly.

    Raises:
        InputError: a tensor is missing, left over, or of another shape; names the first of each.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    check_shapes(wanted, given, source)
    model.load_state_dict(state, strict=True, assign=True)
