"""The modules that a CPM-Ant is made of: norm, linear, embedding, the shared position bias; and what sees what.

Letters in shapes: see `model.py`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Divides by the root of the mean square, taken in float32, then scales (Zhang & Sennrich 2019)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        mean_square = hidden.float().square().mean(-1, keepdim=True)
        return (hidden * torch.rsqrt(mean_square + self.eps)).type_as(hidden) * self.weight


class Linear(nn.Linear):
    """torch's, without a bias. It does not divide: an adapter adds to a linear's output and merges into its weight."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__(dim_in, dim_out, bias=False)

    def reset_parameters(self) -> None:
        """Leave the weight unset, as `build` leaves all; torch's own would draw numbers."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., dim_in) to (..., dim_out); arguments are named as torch's own."""
        return F.linear(input, self.weight)


class Embedding(nn.Module):
    """A table of width D; what is looked up, and what is projected on it, is divided by sqrt(D)."""

    def __init__(self, rows: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, dim))
        self.divisor = math.sqrt(dim)

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight) / self.divisor

    def project(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden / self.divisor, self.weight)


class SegmentPositionBias(nn.Module):
    """A bias by distance between positions of one segment, by the pair of segments otherwise; one table for all layers.

    Distances fall in buckets as in T5 (Raffel et al. 2020), half of them for each direction.
    """

    def __init__(self, heads: int, segment_types: int, buckets: int, max_distance: int) -> None:
        super().__init__()
        self.relative_attention_bias = nn.Parameter(torch.empty(segment_types**2 + buckets, heads))
        self.segment_types, self.buckets, self.max_distance = segment_types, buckets, max_distance

    def forward(self, query_segment: Tensor, key_segment: Tensor) -> Tensor:
        """Turn query_segment (B, Q), the last Q of the positions key_segment (B, K) has, into (B, H, Q, K)."""
        keys = torch.arange(key_segment.size(1), device=key_segment.device)
        queries = torch.arange(query_segment.size(1), device=key_segment.device)
        queries = queries + (key_segment.size(1) - query_segment.size(1))
        near = self.bucket(keys[None, :] - queries[:, None])
        asks, asked = query_segment[:, :, None].long(), key_segment[:, None, :].long()
        rows = torch.where(asks == asked, near[None], self.buckets + asks * self.segment_types + asked)
        return F.embedding(rows, self.relative_attention_bias).permute(0, 3, 1, 2)

    def bucket(self, distance: Tensor) -> Tensor:
        """Sort signed distances: one row each while near, then logarithmically wider, the far ones share the last."""
        half, exact = self.buckets // 2, self.buckets // 4
        far = distance.abs().clamp(min=exact)
        steps = torch.log(far.float() / exact) / math.log(self.max_distance / exact) * (half - exact)
        wide = (exact + steps.long()).clamp(max=half - 1)
        return (distance > 0).long() * half + torch.where(distance.abs() < exact, distance.abs(), wide)


def visible_pairs(context: Tensor, span: Tensor, valid: Tensor) -> Tensor:
    """Say who sees whom: (B, N) each -> (B, N, N) bool.

    Context sees the context of its span; the others see it too, and every position up to themselves.
    """
    index = torch.arange(context.size(1), device=context.device)
    earlier = index[None, :] <= index[:, None]
    context = context.bool()
    pairs = context[:, None, :] | (~context[:, :, None] & earlier[None])
    return pairs & (span[:, None, :] == span[:, :, None]) & valid[:, None, :] & valid[:, :, None]
