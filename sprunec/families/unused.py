"""Tensors in a checkpoint that the model has no place for: where it was trained they computed something; no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from sprunec.checkpoint.layouts import first_names
from sprunec.checkpoint.safetensors_file import Shape

# Buffers that follow from a config, whoever has saved them; and attention's mask, which older classes saved as a bias.
HARMLESS = ("*.inv_freq", "inv_freq", "*position_ids", "*num_batches_tracked", "*.masked_bias")
CAUSAL_MASK = ("*attn.bias", "*attention.bias")
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
    extra = [name for name in extra if not _is_named(name, HARMLESS) and not _is_mask(name, shapes[name])]
    matching = {name: [pattern for pattern in patterns if fnmatchcase(name, pattern)] for name in extra}
    return Unused(
        tuple(name for name in extra if not matching[name]),
        tuple(name for name in extra if matching[name]),
        frozenset(pattern for found in matching.values() for pattern in found),
    )


def _is_named(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _is_mask(name: str, shape: Shape) -> bool:
    """Tell whether a bias is of (1, 1, N, N): what a position may see, of any batch and head."""
    return _is_named(name, CAUSAL_MASK) and len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3]


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
