"""Files that torch has saved, by anyone, as torch reads them; nothing in them runs, no tensor is larger than its file.

What torch's reader says of a file that it has not read is never repeated: `_reason` says why.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sprunec.checkpoint.safe_pickle import Refused, check_pickle
from sprunec.durable import naming
from sprunec.errors import InputError, is_disk
from sprunec.file_kinds import SAVED, foreign

OLD_PICKLES = 4  # of torch's older files: a number, a version, the system, and the content
_NAMED = re.compile(r"(?:Unsupported (?:global|class)|GLOBAL)[: ]+(?:GLOBAL )?([\w.]+)")


def load_torch(path: Path) -> Any:
    """Do as `torch.load(weights_only=True)`, on the CPU; raises whatever torch finds wrong with a file.

    Also Refused: it is compressed, stands for more than it holds, or a tensor has more entries than the file.
    """
    with naming(path):
        check_torch(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    for tensor in tensors_in(content):
        if tensor.layout is torch.strided and not tensor.is_meta and tensor.nbytes > tensor.untyped_storage().nbytes():
            raise Refused(f"a tensor of {tensor.numel():,} entries, and the file has fewer")
    return content


def check_torch(path: Path) -> None:
    """Check a file before anything is made of it; raises as `load_torch`."""
    with path.open("rb") as stream:
        if not zipfile.is_zipfile(stream):
            stream.seek(0)
            for _ in range(OLD_PICKLES):
                check_pickle(stream)
            return
        with zipfile.ZipFile(stream) as archive:
            if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
                raise Refused("compressed records, which torch.save never writes")
            for name in archive.namelist():
                if name.endswith("data.pkl"):
                    with archive.open(name) as record:
                        check_pickle(record)


def tensors_in(content: Any) -> Iterator[Tensor]:
    """List every tensor of a nested state, once: what holds itself twice, and again inside, would never end."""
    waiting, seen = [content], set[int]()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping | list | tuple):
            waiting += value.values() if isinstance(value, Mapping) else value


def not_read(path: Path, what: str, error: Exception, hint: str, remedy: str, code: str = "bad-input") -> InputError:
    """Make the error for a file of tensors on which torch's reader has failed.

    Args:
        what: it should have been, with an article.
        hint: what to do where it is of another kind; `remedy`: where it is damaged.
    """
    told = InputError.at(path, f"cannot be read as {what}: {_reason(error)}", remedy, code)
    if is_disk(error):
        told = InputError.of_disk(path, error)
    return foreign(path, what, SAVED, {"": hint}) or told


def _reason(error: Exception) -> str:
    text = str(error)
    if isinstance(error, Refused):
        return f"it holds {text}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, pickle.UnpicklingError) and "Weights only load failed" in text:
        named = _NAMED.search(text)
        what = f"{named[1]}, which is no tensor" if named else "objects that are no tensors"
        return f"it holds {what}; nothing in it was run"
    return "it is empty, or cut off" if isinstance(error, EOFError) else "it is damaged, or cut off"
