"""Models from directories: built by their config, filled with their weights; no code of a directory runs."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from sprunec.checkpoint.provenance import check_files
from sprunec.checkpoint.reader import Tensors, open_tensors
from sprunec.errors import InputError
from sprunec.families.base_config import ModelConfig
from sprunec.families.fit import check_dtypes
from sprunec.families.model_directory import check_shapes, fill, open_model_tensors, read_config
from sprunec.models.meta_models import empty_model


def load_model(directory: Path, device: torch.device | str = "cpu") -> nn.Module:
    """Build an artifact's model from `config.json` and fill it with its weights; runs no code from the directory."""
    return _filled(read_config(directory), open_model_tensors(directory), directory).to(device)


def _filled(config: ModelConfig, tensors: Tensors, directory: Path) -> nn.Module:
    """Read a model into memory: what is used for long must not hang on a file. Shapes first: claims take no memory."""
    check_shapes(config.tensors(), tensors.shapes(), directory)
    check_dtypes(tensors, directory, tensors)
    model = empty_model(config)
    fill(model, {name: tensors.copy(name) for name in tensors}, directory)
    return model


def load(path: str | Path, device: torch.device | str = "cpu") -> nn.Module:
    """Load an emitted directory, in eval mode, from its config and weights; its `model.py` is never executed.

    Raises:
        InputError: the directory holds no such model, or its files do not fit each other, or are not what was emitted.
    """
    directory = Path(path)
    if not (directory / "config.json").is_file():
        raise InputError.at(directory, "has no config.json", "give a directory that `emit` wrote, OUT/model/sprunec")
    model = _filled(read_config(directory), open_tensors(directory), directory)
    check_files(directory)
    return model.to(device).eval()
