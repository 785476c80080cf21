"""Why torch's reader has not read a file, in words for whoever has the file; the reader's own tell how to run it."""

from __future__ import annotations

import pickle
import re

_NAMED = re.compile(r"(?:Unsupported (?:global|class)|GLOBAL)[: ]+(?:GLOBAL )?([\w.]+)")


def reason(error: Exception) -> str:
    """What is wrong, in a line."""
    text = str(error)
    if isinstance(error, pickle.UnpicklingError) and "Weights only load failed" in text:
        named = _NAMED.search(text)
        what = f"{named[1]}, which is no tensor" if named else "objects that are no tensors"
        return f"it holds {what}; nothing in it was run"
    if isinstance(error, EOFError):
        return "it is empty, or cut off"
    if isinstance(error, KeyError) or "mmap can only be used" in text:
        return "it is no file that torch.save writes today"
    line = (text.strip().splitlines() or [type(error).__name__])[0]
    return "".join(character for character in line if character.isprintable())
