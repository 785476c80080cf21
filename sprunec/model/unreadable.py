"""Why torch's reader has not read a file, in words for whoever has the file; the reader's own are never repeated."""

from __future__ import annotations

import pickle
import re


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
