"""A transformer that sprunec knows nothing about: pre-norm, fused qkv with biases, a plain MLP, other names."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Unit(nn.Module):
    def __init__(self, width: int, heads: int, inner: int, fused: str) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.norm_one, self.norm_two = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.back = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.act, self.drop = nn.GELU(), nn.Dropout(0.1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, length, width = x.shape
        fused = self.qkv(self.norm_one(x))
        if self.fused == "chunk":
            query, key, value = fused.chunk(3, dim=-1)
            parts = [p.view(batch, length, self.heads, -1).transpose(1, 2) for p in (query, key, value)]
        elif self.fused == "view":
            stacked = fused.view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
            parts = [stacked[0], stacked[1], stacked[2]]
        else:
            pieces = fused.reshape(batch, length, self.heads, 3 * (width // self.heads))
            query, key, value = pieces.split(width // self.heads, dim=-1)
            parts = [p.transpose(1, 2) for p in (query, key, value)]
        if self.fused == "view":
            scores = parts[0] @ parts[1].transpose(-2, -1) * (width // self.heads) ** -0.5 + mask
            mixed = F.softmax(scores, dim=-1) @ parts[2]
        else:
            mixed = F.scaled_dot_product_attention(*parts, attn_mask=mask)
        x = x + self.drop(self.back(mixed.transpose(1, 2).reshape(batch, length, -1)))
        return self.drop(self.down(self.act(self.up(self.norm_two(x))))) + x


class Strange(nn.Module):
    def __init__(self, fused: str = "chunk", width: int = 24, heads: int = 4, inner: int = 40, depth: int = 3) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(50, width), nn.Embedding(64, width)
        self.slopes = nn.Parameter(torch.randn(heads))
        self.units = nn.ModuleList(Unit(width, heads, inner, fused) for _ in range(depth))
        self.last, self.head = nn.LayerNorm(width), nn.Linear(width, 50)

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.size(1), device=ids.device)
        distance = places[None, :] - places[:, None]
        mask = (self.slopes[:, None, None] * distance).masked_fill(distance > 0, float("-inf"))[None]
        x = self.words(ids) + self.places(places)
        for unit in self.units:
            x = unit(x, mask)
        return self.head(self.last(x))
