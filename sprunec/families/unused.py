"""Tensors in a checkpoint that the model has no place for: where it was trained they computed something; no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from sprunec.checkpoint.layouts import first_names
from sprunec.checkpoint.safetensors_file import Shape

# Buffers that follow from a config, whoever has saved them.
HARMLESS = ("*.inv_freq", "inv_freq", "*position_ids", "*num_batches_tracked")
WHOLE_NUMBERS = ("int", "uint", "bool")


@dataclass(frozen=True)
class Unused:
    """A checkpoint's tensors beyond the model's.

    Attributes:
        refused: those that would have changed what the model computes.
        ignored: those of them that the user's patterns name.
        matched: the patterns that name any.
    """

    refused: tuple[str, ...]
    ignored: tuple[str, ...]
    matched: frozenset[str]


def unused_tensors(
    expected: Collection[str], shapes: Mapping[str, Shape], dtypes: Mapping[str, str], patterns: Iterable[str] = ()
) -> Unused:
    """Find what of a checkpoint is not in the model; integers and buffers that a config gives anyway are left out.

    Args:
        expected: the model's tensors.
        shapes: the checkpoint's, by the model's names where it has them.
        dtypes: of the checkpoint's tensors by its own names, by torch's names.
        patterns: as shells have them; what they name is the user's to answer for.
    """
    extra = [name for name in shapes if name not in expected and not dtypes[name].startswith(WHOLE_NUMBERS)]
    extra = [name for name in extra if not any(fnmatchcase(name, pattern) for pattern in HARMLESS)]
    matching = {name: [pattern for pattern in patterns if fnmatchcase(name, pattern)] for name in extra}
    return Unused(
        tuple(name for name in extra if not matching[name]),
        tuple(name for name in extra if matching[name]),
        frozenset(pattern for found in matching.values() for pattern in found),
    )


def refusal(names: tuple[str, ...]) -> tuple[str, str]:
    """Say which tensors would be left out silently, and what to do."""
    some = "a tensor" if len(names) == 1 else f"{len(names)} tensors"
    message = f"it has {some} that this model has no place for and that may change what it computes: {listed(names)}"
    hint = "give the config that the checkpoint was trained with"
    if any("lora_" in name for name in names):
        hint = "merge the adapter with merge_and_unload() and save that"
    return message, f'{hint}; or ignore them with "ignore_tensors": ["{names[0]}"] in the plan\'s model'


def listed(names: tuple[str, ...]) -> str:
    return first_names(names, 3)
