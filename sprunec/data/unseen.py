"""Which positions of some batches ask for what no other batches have asked for: windows of one text may overlap."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from sprunec.data.batches import IGNORED, Batch

RUN = 32  # tokens in a row that come twice by chance in no text


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
