"""A checkpoint's tensors by name, each read when it is asked for; nothing unpickles.

So a checkpoint of any size can be walked through, one tensor or a few rows at a time. Nothing is mapped: where a disk
fails, or a file has become shorter meanwhile, a read says so, and a map would end the process without a word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sprunec.checkpoint.dtypes import FIX_NUMBERS, FLOATS, NAMES, SAVE_AS
from sprunec.checkpoint.gguf_file import Packed
from sprunec.checkpoint.gguf_numbers import read_packed
from sprunec.checkpoint.header import Header, read_places
from sprunec.checkpoint.safetensors_file import SIZES, Shape, Stored
from sprunec.checkpoint.torch_file import load_torch, not_read
from sprunec.durable import read_into
from sprunec.errors import InputError

DTYPES: dict[str, torch.dtype] = {word: getattr(torch, NAMES[word]) for word in SIZES}
FLOATING = frozenset(getattr(torch, name) for name in FLOATS)  # what is checked for NaN


class Tensors(Header, Mapping[str, Tensor]):
    """Names to tensors on the CPU, in their own dtype; shapes and dtypes are known without reading.

    Each time that one is asked for, all of it is read; whoever wants its size, or a part, asks for that.
    """

    _strided: tuple[str, Tensor] | None = None

    def __getitem__(self, name: str) -> Tensor:
        place = self.places[name]
        return place if isinstance(place, Tensor) else _read(place, name)

    def copy(self, name: str) -> Tensor:
        """Read the tensor into memory of its own: it may be written to."""
        found = self[name]
        return found.clone() if found is self.places[name] else found

    def rows(self, name: str, kept: Sequence[int], buffer: Tensor | None = None) -> Tensor:
        """Copy the entries `kept` along the first dim, in their order; of a file, nothing else is read.

        Args:
            buffer: where the copy may go, (len(kept) or more, ...) of the tensor's dtype.
        """
        place = self.places[name]
        if (
            isinstance(place, Tensor)
            or place.strides is not None
            or (isinstance(place, Packed) and not place.row_bytes)
        ):
            # The last one is kept: its rows may lie between each other, and are asked for in turn.
            if self._strided is None or self._strided[0] != name:
                self._strided = name, self[name].detach()
            return self._strided[1].index_select(0, torch.tensor(kept, dtype=torch.long))
        found = torch.empty((len(kept), *place.shape[1:]), dtype=_dtype(place)) if buffer is None else buffer
        found = found[: len(kept)]
        if isinstance(place, Packed):
            if found.numel():
                found.copy_(read_packed(place, name, runs(kept)))
        elif found.numel():  # what follows each other is read at once
            width = place.nbytes // place.shape[0]
            spans = [(place.start + first * width, place.start + last * width) for first, last in runs(kept)]
            read_into(place.file, spans, _memory(found))
        return found

    def shape(self, name: str) -> Shape:
        return tuple(self.places[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        place = self.places[name]
        return place.dtype if isinstance(place, Tensor) else _dtype(place)

    def only(self, names: Iterable[str]) -> Tensors:
        """Choose those of `names` that are here."""
        return self.renamed({name: name for name in names})

    def renamed(self, names: Mapping[str, str]) -> Tensors:
        """Choose those that are keys of `names`, and call them by their values."""
        return Tensors({new: self.places[old] for old, new in names.items() if old in self.places})


def _read(place: Stored, name: str) -> Tensor:
    """Read a tensor; of one with strides what lies between its entries, too."""
    if isinstance(place, Packed):
        return read_packed(place, name)
    dtype = _dtype(place)
    entries = torch.empty(place.extent // dtype.itemsize, dtype=dtype)
    if entries.numel():
        read_into(place.file, [(place.start, place.start + place.extent)], _memory(entries))
    return entries.view(place.shape) if place.strides is None else entries.as_strided(place.shape, place.strides)


def _dtype(place: Stored) -> torch.dtype:
    """Raises InputError for a dtype that no weights have."""
    if place.dtype not in DTYPES:
        message = f"a tensor in it is {NAMES.get(place.dtype, place.dtype)}, and weights are floats"
        raise InputError.at(place.file, message, SAVE_AS, code="checkpoint-dtype")
    return DTYPES[place.dtype]


def _memory(tensor: Tensor) -> memoryview:
    """Give the bytes of a contiguous tensor on the CPU."""
    return tensor.view(torch.uint8).numpy().data.cast("B")


def runs(indices: Sequence[int]) -> list[tuple[int, int]]:
    """List the [first, last + 1) of entries that follow each other."""
    if not len(indices):
        return []
    if isinstance(indices, range) and indices.step == 1:
        return [(indices.start, indices.stop)]
    places = np.asarray(indices)
    breaks = np.flatnonzero(np.diff(places) != 1) + 1
    firsts, lasts = places[np.r_[0, breaks]], places[np.r_[breaks - 1, -1]]
    return list(zip(firsts.tolist(), (lasts + 1).tolist(), strict=True))


def open_tensors(path: Path) -> Tensors:
    """Open a checkpoint file, an index, or a directory that holds one; only headers are read. Raises InputError."""
    return Tensors(read_places(path, _in_torch))


def _in_torch(path: Path) -> Mapping[str, Tensor]:
    """Let torch read a file: it knows more ways to write a state dict than `pt_header`, and what else may be there."""
    try:
        state = load_torch(path)
    except Exception as error:  # damaged bytes may fail anywhere in the reader
        raise not_read(path, "a checkpoint", error, "", "copy or save it again", "bad-checkpoint") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        inner = [key for key, value in state.items() if isinstance(value, dict)] if isinstance(state, dict) else []
        what = f"; {inner[0]!r} in it may be one" if inner else ""
        raise InputError.at(path, f"is no state dict: it must map names to tensors{what}", "save model.state_dict()")
    for name, tensor in state.items():  # for NaN, too: what lies where a header says is checked while it is hashed
        if tensor.is_meta:
            raise InputError.at(path, f"{name} has no data: it was saved from torch's meta device", FIX_NUMBERS)
        if not tensor.numel() or tensor.layout is not torch.strided or tensor.dtype not in FLOATING:
            continue
        if len(bad := (~torch.isfinite(tensor)).nonzero()):
            numbers = "number that is" if len(bad) == 1 else "numbers that are"
            message = f"{name} has {len(bad):,} {numbers} not finite, the first at {bad[0].tolist()}"
            raise InputError.at(path, message, FIX_NUMBERS, code="not-finite")
    return state


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a checkpoint into memory: what is trained or changed must not hang on a file; raises as `open_tensors`."""
    tensors = open_tensors(path)
    return {name: tensors.copy(name) for name in tensors}
