"""The tokens that a model of any size thinks most likely at each position, and how much it leaves to all others."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sprunec.data.batches import places_of
from sprunec.engines.device import Place
from sprunec.engines.distilling.divergences import TopTokens
from sprunec.models.block_by_block import BlockByBlock
from sprunec.models.held_out import logits_in_parts


def top_tokens(
    way: BlockByBlock, place: Place, top_k: int, *, temperature: float, on: str, before: Any
) -> Iterator[TopTokens]:
    """Find them at all places of each batch, see `places_of`, in this order.

    Args:
        before: see `cross_entropy_sum`.
    """
    asked = [places_of(batch, on) for batch in way.batches]
    found = [_Top(int(used.sum()), top_k, place.device) for used in asked]
    for number, tokens, logits in logits_in_parts(way, place, asked, before):
        found[number].add(logits / temperature, tokens)
    return (top.found() for top in found)


class _Top:
    """The largest of logits that come some tokens after the others, and the log-sum-exp of all that fell out."""

    def __init__(self, positions: int, top_k: int, device: torch.device) -> None:
        self._top_k = top_k
        self._logits = torch.empty(positions, 0, device=device)
        self._ids = torch.empty(positions, 0, device=device, dtype=torch.long)
        self._rest = torch.full((positions,), -math.inf, device=device)

    def add(self, logits: Tensor, tokens: range) -> None:
        """Take logits (n, tokens)."""
        before = self._ids.size(1)
        candidates = torch.cat([self._logits, logits], 1)
        self._logits, places = candidates.topk(min(self._top_k, candidates.size(1)), 1)
        old = F.pad(self._ids, (0, 1)).gather(1, places.clamp(max=before))
        self._ids = torch.where(places < before, old, places - before + tokens.start)
        self._rest = torch.logaddexp(self._rest, candidates.scatter_(1, places, -math.inf).logsumexp(1))

    def found(self) -> TopTokens:
        whole = torch.logaddexp(self._logits.logsumexp(1), self._rest)
        return TopTokens(self._logits - whole[:, None], self._ids, self._rest - whole)
