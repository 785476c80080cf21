"""Names, shapes and places of a checkpoint's tensors, from the headers of all its files; needs no torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn, TypeVar

from sprunec.checkpoint.dtypes import NAMES, dtype_refusal
from sprunec.checkpoint.layouts import check_index, is_index, weight_files
from sprunec.checkpoint.pt_header import Unknown, read_pt
from sprunec.checkpoint.safetensors_file import SIZES, Stored, check_kind, read_safetensors
from sprunec.errors import InputError

T = TypeVar("T")


def read_places(path: Path, otherwise: Callable[[Path], Mapping[str, T]]) -> dict[str, Stored | T]:
    """Every tensor of a checkpoint file, of an index, or of a directory that holds one.

    Args:
        otherwise: reads what torch has saved in a way that is not known here.

    Raises:
        InputError: a file is missing or damaged, or is something else, or the index says otherwise.
    """
    files = weight_files(path)
    index = files.pop(0) if is_index(files[0]) else None
    found: dict[Path, Mapping[str, Stored | T]] = {file: _places_in(file, otherwise) for file in files}
    if index is not None:
        check_index(index, found)
    return {name: place for places in found.values() for name, place in places.items()}


def known_places(path: Path) -> dict[str, Stored] | None:
    """As `read_places`, for whoever goes without torch; None where only torch can read a file."""
    try:
        return read_places(path, _only_torch)
    except Unknown:
        return None


def _only_torch(path: Path) -> NoReturn:
    raise Unknown(str(path))


def _places_in(file: Path, otherwise: Callable[[Path], Mapping[str, T]]) -> Mapping[str, Stored | T]:
    if not os.path.exists(file):
        there = os.path.realpath(file) if file.is_symlink() else file  # the store links to the user's own
        raise InputError.at(there, "there is no such file", "give the path of a checkpoint", code="missing-file")
    try:
        check_kind(file)
        return _known(file, otherwise)
    except OSError as error:
        raise InputError.of_disk(file, error) from error


def _known(file: Path, otherwise: Callable[[Path], Mapping[str, T]]) -> Mapping[str, Stored | T]:
    try:
        if file.suffix != ".safetensors":
            return read_pt(file)
        places = read_safetensors(file)
    except Unknown:
        return otherwise(file)
    except InputError as error:
        raise unreadable(file, error.diagnostics[0].message) from error
    strange = [name for name, place in places.items() if place.dtype not in SIZES]
    told = dtype_refusal(dtype_names(places), strange) if strange else None
    if told is not None:
        raise InputError.at(file, *told, code="checkpoint-dtype")
    return places


def dtype_names(places: Mapping[str, Stored]) -> dict[str, str]:
    """The dtypes of all tensors, in torch's words."""
    return {name: NAMES.get(place.dtype, place.dtype) for name, place in places.items()}


def unreadable(file: Path, why: str) -> InputError:
    message = f"cannot be read as a checkpoint: {why}"
    return InputError.at(file, message, "copy or save it again", code="bad-checkpoint")
