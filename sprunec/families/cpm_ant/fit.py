"""Whether an opened checkpoint is a config's: what `run` and `inspect` say of it before its weights are used."""

from __future__ import annotations

from pathlib import Path

from sprunec.checkpoint.dtypes import weight_names
from sprunec.checkpoint.tensors import Tensors, check_dtypes
from sprunec.errors import InputError
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.families.cpm_ant.huggingface_names import native_shapes
from sprunec.families.cpm_ant.shapes import Shape, expected_tensors, misfit
from sprunec.families.detect import TODAY, foreign_tensors, remedy
from sprunec.families.unused import refusal, unused_tensors


def check_fit(config: ModelConfig, tensors: Tensors, path: Path) -> dict[str, Shape]:
    """The shapes of a checkpoint's tensors, by the model's names where it has them.

    Raises:
        InputError: they are no floats, are another family's, or are not the config's.
    """
    check_dtypes(path, tensors, weight_names(config, tensors))
    shapes = native_shapes(config, tensors.shapes())
    problem = misfit(expected_tensors(config), shapes, exact=False)
    if problem:
        foreign = foreign_tensors(tensors)
        message = f"{foreign}, and " if foreign else ""
        hint = TODAY if foreign else remedy(tensors)
        raise InputError.at(path, f"{message}the checkpoint does not fit the config: {problem}", hint)
    return shapes


def check_unused(config: ModelConfig, tensors: Tensors, path: Path) -> None:
    """Raises InputError for tensors beyond the model's that changed what was computed where they come from."""
    shapes = native_shapes(config, tensors.shapes())
    refused = unused_tensors(expected_tensors(config), shapes, tensors.dtypes()).refused
    if refused:
        raise InputError.at(path, *refusal(refused), code="checkpoint-extra")
