"""Why torch's reader has not read a file, in words for whoever has the file; the reader's own are never repeated."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

from sprunec.errors import InputError, is_disk
from sprunec.file_kinds import SAVED, foreign

FIX_NUMBERS = "fix the file, or export it again from a good copy"


class Unsafe(ValueError):  # noqa: N818
    """What a file holds must not be made of it; says why, in words for whoever has the file."""


_NAMED = re.compile(r"(?:Unsupported (?:global|class)|GLOBAL)[: ]+(?:GLOBAL )?([\w.]+)")


def reason(error: Exception) -> str:
    """What is wrong, in a line."""
    text = str(error)
    if isinstance(error, Unsafe):
        return text
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, pickle.UnpicklingError) and "Weights only load failed" in text:
        named = _NAMED.search(text)
        what = f"{named[1]}, which is no tensor" if named else "objects that are no tensors"
        return f"it holds {what}; nothing in it was run"
    if isinstance(error, EOFError):
        return "it is empty, or cut off"
    return "it is damaged, or cut off"


def not_read(path: Path, what: str, error: Exception, hint: str, remedy: str) -> InputError:
    """The error for a file of tensors on which torch's reader has failed.

    Args:
        what: it should have been, with an article.
        hint: what to do where it is of another kind; `remedy`: where it is damaged.
    """
    if is_disk(error):
        told = InputError.of_disk(path, error)
    else:
        told = InputError.at(path, f"cannot be read as {what}: {reason(error)}", remedy)
    return foreign(path, what, SAVED, {"": hint}) or told
