"""What a teacher says of sequences, in files: at each position its most likely tokens, and how much is left to others.

A folder has parts, each of some sequences, their positions one behind the other:

    00000-ids.npy                 (P k,) int32
    00000-log-probabilities.npy   (P k,) float16
    00000-rest.npy                (P,) float32, see `TopTokens`
    keys.npy, starts.npy, parts.npy   of R sequences the hashes (R, 16) and where each begins among all positions
                                      (R + 1,); and the first sequence of each part, and R

A sequence is found by a hash of all that a model is given of it and asked for. So it does not matter in which batch it
comes, in which part of it, or how often: an epoch that is gone through again has the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sprunec.data.batches import Batch
from sprunec.data.saved import SavedIds, load_array, save_array
from sprunec.engines.distilling.divergences import TopTokens
from sprunec.errors import PassError

IDS, LOG_PROBABILITIES, REST = KINDS = ("ids", "log-probabilities", "rest")
KEY_BYTES = 16


def sequence_keys(batch: Batch) -> list[bytes]:
    """Hash each sequence of a batch."""
    named = sorted((batch.inputs | {"targets": batch.targets}).items())
    arrays = [(name.encode(), np.ascontiguousarray(tensor.cpu().numpy())) for name, tensor in named]
    found = []
    for row in range(len(batch.targets)):
        made = hashlib.blake2b(digest_size=KEY_BYTES)
        for name, array in arrays:
            made.update(name)
            made.update(array[row].tobytes())
        found.append(made.digest())
    return found


def write_part(folder: Path, number: int, found: Iterable[TopTokens]) -> list[Path]:
    """Write what was found at the positions of some sequences, in their order; give the files."""
    each = list(found)
    arrays: dict[str, NDArray[Any]] = {
        IDS: torch.cat([some.ids.flatten() for some in each]).cpu().numpy().astype(np.int32),
        LOG_PROBABILITIES: torch.cat([some.log_probabilities.flatten() for some in each]).half().cpu().numpy(),
        REST: torch.cat([some.rest for some in each]).cpu().numpy(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = [_path(folder, number, kind) for kind in arrays]
    for path, array in zip(paths, arrays.values(), strict=True):
        save_array(path, array)
    return paths


def _path(folder: Path, number: int, kind: str) -> Path:
    return folder / f"{number:05d}-{kind}.npy"


def write_index(folder: Path, keys: Sequence[bytes], positions: Sequence[int], parts: Sequence[int]) -> None:
    """Write how sequences are found.

    Args:
        keys, positions: of each sequence its hash, and how many of its positions there are.
        parts: how many sequences each part has.
    """
    save_array(folder / "keys.npy", np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES))
    for name, counts in (("starts", positions), ("parts", parts)):
        save_array(folder / f"{name}.npy", np.cumsum([0, *counts], dtype=np.int64))


class CachedTeacher:
    """Reads of such a folder what is asked for; `rest` of every part is small beside it, and read, too, as needed."""

    def __init__(self, folder: Path) -> None:
        keys = load_array(folder / "keys.npy")
        self._sequences = {key.tobytes(): number for number, key in enumerate(keys)}
        self._starts, self._parts = load_array(folder / "starts.npy"), load_array(folder / "parts.npy")
        files = range(len(self._parts) - 1)
        self._files = [[SavedIds(_path(folder, number, kind)) for kind in KINDS] for number in files]

    def of(self, batch: Batch) -> TopTokens:
        """Read what is known at all positions of a batch that were asked for, in their order, onto its device.

        Raises:
            PassError: there is a sequence that the cache was not made for.
        """
        found = [self._read(key) for key in sequence_keys(batch)]
        known, ids, rest = (torch.cat(tensors).to(batch.targets.device) for tensors in zip(*found, strict=True))
        return TopTokens(known, ids.long(), rest)

    def _read(self, key: bytes) -> tuple[Tensor, Tensor, Tensor]:
        if (number := self._sequences.get(key)) is None:
            raise PassError("the teacher's cache was made for other sequences than these: the data have changed")
        part = int(np.searchsorted(self._parts, number, side="right")) - 1
        first, last = (self._starts[[number, number + 1]] - self._starts[self._parts[part]]).tolist()
        ids, known, rest = self._files[part]
        top_k = ids.size // max(1, rest.size)
        some = slice(first * top_k, last * top_k)
        shape = (last - first, top_k)
        return (
            torch.from_numpy(known[some]).view(shape),
            torch.from_numpy(ids[some]).view(shape),
            torch.from_numpy(rest[first:last]),
        )
