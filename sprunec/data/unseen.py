"""What of some text other text has, too: of batches, whose windows may overlap, and of the part that is held out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sprunec.data.batches import IGNORED, Batch
from sprunec.data.saved import SavedIds

RUN = 32  # tokens in a row that come twice by chance in no text
LOOKED, AT_ONCE, SAMPLED = 2**24, 2**20, 2**12  # tokens that are looked at, and at a time; runs that are looked for
BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64


def unseen(batches: Sequence[Batch], seen: Iterable[Batch]) -> list[Tensor]:
    """Mark, of each batch, the positions (B, N) that ask for a token, but those of a run of tokens that was seen."""
    known = {run for batch in seen for _, _, run in _runs(batch)}
    found = [batch.targets != IGNORED for batch in batches]
    for batch, new in zip(batches, found, strict=True):
        for row, first, run in _runs(batch):
            if run in known:
                new[row, first : first + RUN] = False
    return found


def _runs(batch: Batch) -> Iterator[tuple[int, int, bytes]]:
    """Give all runs of tokens that are asked for: of which row, from which position on, and themselves."""
    asked = (batch.targets != IGNORED).int().cumsum(1)
    counts = torch.nn.functional.pad(asked, (1, 0))
    ids = batch.targets.int().numpy()
    for row, first in (counts[:, RUN:] - counts[:, :-RUN] == RUN).nonzero().tolist():
        yield row, first, ids[row, first : first + RUN].tobytes()


def seen_share(train: SavedIds, held_out: SavedIds, run: int = RUN) -> float:
    """Tell which share of the held-out text's runs of tokens is in the text that is trained on, word for word.

    Some runs are looked for, at even distances, in the first 17 million tokens.

    Args:
        run: tokens in a row that come twice by chance in no text.
    """
    if held_out.size < run:
        return 0.0
    starts = np.unique(np.linspace(0, held_out.size - run, SAMPLED).astype(np.int64)).tolist()
    wanted = np.sort(np.concatenate([_hashes(held_out[start : start + run], run) for start in starts]))
    seen = np.zeros(len(wanted), dtype=bool)
    for first in range(0, min(train.size, LOOKED), AT_ONCE):
        there = _hashes(train[first : first + AT_ONCE + run - 1], run)
        places = np.searchsorted(wanted, there).clip(max=len(wanted) - 1)
        seen |= np.isin(wanted, wanted[places[wanted[places] == there]])
    return float(seen.mean())


def _hashes(ids: NDArray[np.int32], run: int) -> NDArray[np.uint64]:
    """Hash every run of tokens (n,) -> (n - run + 1,): sums of powers modulo 2**64, moved back to the first power."""
    if ids.size < run:
        return np.empty(0, dtype=np.uint64)
    powers, back = (_powers(base, ids.size) for base in (BASE, pow(BASE, -1, 2**64)))
    sums = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum((ids.astype(np.uint64) + np.uint64(1)) * powers)])
    found: NDArray[np.uint64] = (sums[run:] - sums[:-run]) * back[: ids.size - run + 1]
    return found


def _powers(base: int, count: int) -> NDArray[np.uint64]:
    return np.cumprod(np.concatenate([np.ones(1, dtype=np.uint64), np.full(count - 1, base, dtype=np.uint64)]))
