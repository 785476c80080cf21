"""Which positions of some batches ask for what no other batches have asked for: windows of one text may overlap."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from sprunec.data.batches import IGNORED, Batch

RUN = 32  # tokens in a row that come twice by chance in no text


def unseen(batches: Sequence[Batch], seen: Iterable[Batch]) -> list[Tensor]:
    """Mark, of each batch, the positions (B, N) that ask for a token, but those where a run that was seen ends."""
    known = {run for batch in seen for run in _runs(batch) if run is not None}
    found = []
    for batch in batches:
        new = torch.tensor([run not in known for run in _runs(batch)], dtype=torch.bool)
        found.append(new.view(batch.targets.shape) & (batch.targets != IGNORED))
    return found


def _runs(batch: Batch) -> list[bytes | None]:
    """Give, for each position, the tokens asked for at it and before it; None where these are less than a run."""
    found = list[bytes | None]()
    for row in batch.targets.cpu().int().numpy():
        for end in range(1, len(row) + 1):
            run = row[max(0, end - RUN) : end]
            found.append(run.tobytes() if len(run) == RUN and (run != IGNORED).all() else None)
    return found
