"""The table of forms: how a mask file is recognised, what 1 means in it, and how it is read.

A file is of the one form that recognises what it holds; where several do, or a form does not say what its entries mean,
the file is refused, and an option of the pass says it: nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sprunec.bmcook.masks.mask_forms import MaskTensor
from sprunec.masks.layer_masks import LayerMask
from sprunec.registry import Registry

MASK_FILE = "a mask file"
UNLISTED = 'say "lists": "kept" or "removed"'


class Rules(NamedTuple):
    """What the options of a pass say of its files, where these do not say it themselves.

    Attributes:
        threshold: of soft masks: what is above it is kept.
        lists: what is listed, or true, is `kept` or `removed`.
        lists_of: the unit that is listed.
    """

    threshold: float | None = None
    lists: str | None = None
    lists_of: str | None = None


NO_RULES = Rules()


@dataclass(frozen=True)
class MaskForm:
    """One form.

    Attributes:
        known: what a file of it holds, and what 1 or an entry means.
        recognises: tells by what a file holds, sound or not.
        read: gives its masks; raises InputError where they are not sound.
    """

    name: str
    known: str
    recognises: Callable[[Any, Rules], bool]
    read: Callable[[Path, Any, Rules], Sequence[LayerMask | MaskTensor]]


FORMS = Registry(MaskForm, "sprunec.mask_files")


def has_key(content: Any, keys: Mapping[str, Any] | Sequence[str]) -> bool:
    """Tell whether it is a dict with one of these keys."""
    return isinstance(content, Mapping) and any(isinstance(key, str) and key in keys for key in content)
