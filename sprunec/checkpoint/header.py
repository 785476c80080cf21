"""An opened checkpoint: names, shapes, dtypes and places of its tensors, from its files' headers; needs no torch."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from sprunec.checkpoint.dtypes import NAMES
from sprunec.checkpoint.gguf_file import is_gguf, read_gguf
from sprunec.checkpoint.layouts import check_index, is_index, weight_files, weight_map
from sprunec.checkpoint.pt_header import Unknown, read_pt
from sprunec.checkpoint.safetensors_file import Shape, Stored, read_safetensors
from sprunec.errors import InputError, and_more
from sprunec.file_kinds import file_kind, foreign

Place = Any  # `Stored`, or the torch.Tensor itself where only torch could read its file
Reader = Callable[[Path], Mapping[str, Place]]


class Header(Collection[str]):
    """The names of a checkpoint's tensors, and what is known of them without reading any."""

    def __init__(self, places: Mapping[str, Place]) -> None:
        self.places = dict(places)

    def __contains__(self, name: object) -> bool:
        return name in self.places

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    @property
    def is_whole(self) -> bool:
        """Tell whether the files' headers know all tensors: what only torch can read is in memory."""
        return all(isinstance(place, Stored) for place in self.places.values())

    def shapes(self) -> dict[str, Shape]:
        return {name: tuple(place.shape) for name, place in self.places.items()}

    def dtypes(self) -> dict[str, str]:
        """Name the dtypes as torch does."""
        words = {name: str(place.dtype).removeprefix("torch.") for name, place in self.places.items()}
        return {name: NAMES.get(word, word) for name, word in words.items()}


def open_header(path: Path) -> Header | None:
    """Open a checkpoint without torch; None where only torch can read a file. Raises as `read_places`."""
    try:
        return Header(read_places(path))
    except Unknown:
        return None


def item_bytes(path: Path) -> float | None:
    """Tell how many bytes a stored number has on average; None where no header that can be read says so."""
    try:
        header = open_header(path)
    except (InputError, OSError):
        return None
    numbers = 0 if header is None else sum(map(math.prod, header.shapes().values()))
    return None if header is None or not numbers else float(sum(p.nbytes for p in header.places.values()) / numbers)


def read_places(path: Path, otherwise: Reader | None = None) -> dict[str, Place]:
    """Find every tensor of a checkpoint file, of an index, or of a directory that holds one; raises InputError.

    Args:
        otherwise: reads what torch has saved in a way that is not known here; without it, `Unknown` is raised.
    """
    files = weight_files(path)
    index = files.pop(0) if is_index(files[0]) else None
    found = {file: _places_in(file, otherwise) for file in files}
    if index is not None:
        check_index(index, found)
        return {name: found[index.parent / shard][name] for name, shard in weight_map(index).items()}
    return {name: place for places in found.values() for name, place in places.items()}


def _places_in(file: Path, otherwise: Reader | None) -> Mapping[str, Place]:
    if not os.path.exists(file):
        there = os.path.realpath(file) if file.is_symlink() else file  # the store links to the user's own
        raise InputError.at(there, "there is no such file", "give the path of a checkpoint", code="missing-file")
    safe = file.suffix == ".safetensors"
    fine, wanted = ({"safetensors", "unknown"}, "a safetensors file") if safe else ({"torch"}, "a PyTorch checkpoint")
    try:
        if is_gguf(file):
            return read_gguf(file).tensors
        if file_kind(file) == "old torch":
            wanted = "one as it writes today"
        hints = {"": "give safetensors, or a state dict that torch.save wrote"}
        hints |= {"gguf": f"rename it to {file.stem}.gguf"}
        hints |= {"safetensors": f"rename it to {file.stem}.safetensors", "torch": f"rename it to {file.stem}.pt"}
        if told := foreign(file, wanted, fine, hints):
            raise told
        return read_safetensors(file) if safe else read_pt(file)
    except Unknown:
        if otherwise is None:
            raise
        return otherwise(file)
    except OSError as error:
        raise InputError.of_disk(file, error) from error


def misfit(wanted: Mapping[str, Shape], given: Mapping[str, Shape], *, exact: bool = True) -> str:
    """Say what keeps tensors from being those that are wanted, and no others if `exact`; empty when nothing does."""
    wrong = [name for name in wanted if name in given and given[name] != wanted[name]]
    missing = [name for name in wanted if name not in given]
    extra = [name for name in given if exact and name not in wanted]
    told = [
        f"{name} is {list(given[name])} and the config says {list(wanted[name])}{and_more(wrong, '{} more differ')}"
        for name in wrong[:1]
    ]
    told += [f"no tensor {name}{and_more(missing)}" for name in missing[:1]]
    return "; ".join(told + [f"{name}{and_more(extra)} is not in the model" for name in extra[:1]])
