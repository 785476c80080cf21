"""Whether an opened checkpoint is a config's: said once, for plans, `inspect` and `load`; needs no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from sprunec.checkpoint.dtypes import dtype_refusal
from sprunec.checkpoint.header import Header, misfit
from sprunec.errors import InputError
from sprunec.families.base_config import ModelConfig
from sprunec.families.cards import card_of
from sprunec.families.detect import TODAY, foreign_tensors, remedy
from sprunec.families.unused import Unused, refusal, unused_tensors


def check_dtypes(header: Header, path: Path, weights: Collection[str] = (), config: ModelConfig | None = None) -> None:
    """Raises InputError where `weights`, the tensors that a model takes, are no floats, or it is quantised.

    Args:
        config: what the file should be; None: our own family's.
    """
    if told := dtype_refusal(header.dtypes(), weights):
        foreign = _foreign(header, config)
        raise InputError.at(path, *((foreign, TODAY) if foreign else told), code="checkpoint-dtype")


def _foreign(header: Header, config: ModelConfig | None) -> str | None:
    """Say whose tensors these are, if they are not of our own family and should be."""
    return foreign_tensors(header) if card_of(config).own_code else None


def check_fit(config: ModelConfig, header: Header, path: Path, patterns: Iterable[str] = ()) -> Unused:
    """Find a checkpoint's tensors beyond the model's; see `unused_tensors`.

    Raises:
        InputError: the others are not the model's: another family's, missing, or of another shape or dtype.
    """
    about = card_of(config)
    check_dtypes(header, path, {part.name for part in about.parts(config, header).values()}, config)
    expected, shapes = config.tensors(), about.native_shapes(config, header.shapes())
    if problem := misfit(expected, shapes, exact=False):
        foreign = _foreign(header, config)
        message, hint = (f"{foreign}, with {problem}", TODAY) if foreign else (problem, remedy(shapes))
        raise InputError.at(path, message, hint, code="checkpoint-mismatch")
    return unused_tensors(expected, shapes, header.dtypes(), patterns)


def refuse_unused(unused: Unused, path: Path) -> None:
    """Raises InputError for tensors beyond the model's that changed what was computed where they come from."""
    if unused.refused:
        raise InputError.at(path, *refusal(unused.refused), code="checkpoint-extra")
