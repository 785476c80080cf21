"""Whether an opened checkpoint is a config's: said once, for plans, `inspect` and `load`; needs no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from sprunec.checkpoint.dtypes import dtype_refusal
from sprunec.checkpoint.header import Header, misfit
from sprunec.errors import InputError
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.families.cpm_ant.huggingface_names import native_shapes, parts
from sprunec.families.cpm_ant.shapes import expected_tensors
from sprunec.families.detect import TODAY, foreign_tensors, remedy
from sprunec.families.unused import Unused, refusal, unused_tensors


@dataclass(frozen=True)
class Misfit:
    """What is wrong with a checkpoint, and what to do about it."""

    code: str
    message: str
    hint: str

    def error(self, path: Path) -> InputError:
        return InputError.at(path, self.message, self.hint, self.code)


def dtype_misfit(header: Header, weights: Collection[str] = ()) -> Misfit | None:
    """Say that `weights`, the tensors that a model takes, are no floats, or that a checkpoint is quantised."""
    told = dtype_refusal(header.dtypes(), weights)
    if told is None:
        return None
    foreign = foreign_tensors(header)
    return Misfit("checkpoint-dtype", *((foreign, TODAY) if foreign else told))


def config_misfit(config: ModelConfig, header: Header) -> Misfit | None:
    """Say what the file lacks, or has in another shape or dtype; None when it fits."""
    found = dtype_misfit(header, {part.name for part in parts(config, header).values()})
    shapes = native_shapes(config, header.shapes())
    problem = misfit(expected_tensors(config), shapes, exact=False)
    if found is not None or not problem:
        return found
    foreign = foreign_tensors(header)
    if foreign is not None:
        return Misfit("checkpoint-mismatch", f"{foreign}, with {problem}", TODAY)
    return Misfit("checkpoint-mismatch", problem, remedy(shapes))


def unused_in(config: ModelConfig, header: Header, patterns: Iterable[str] = ()) -> Unused:
    """Find the file's tensors beyond the model's; see `unused_tensors`."""
    return unused_tensors(expected_tensors(config), native_shapes(config, header.shapes()), header.dtypes(), patterns)


def check_dtypes(header: Header, path: Path, weights: Collection[str] = ()) -> None:
    """Raises InputError where `dtype_misfit` finds something."""
    found = dtype_misfit(header, weights)
    if found is not None:
        raise found.error(path)


def check_fit(config: ModelConfig, header: Header, path: Path) -> None:
    """Raises InputError where `config_misfit` finds something."""
    found = config_misfit(config, header)
    if found is not None:
        raise found.error(path)


def check_unused(config: ModelConfig, header: Header, path: Path) -> None:
    """Raises InputError for tensors beyond the model's that changed what was computed where they come from."""
    refused = unused_in(config, header).refused
    if refused:
        raise InputError.at(path, *refusal(refused), code="checkpoint-extra")
