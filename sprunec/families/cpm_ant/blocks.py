"""CPM-Ant's blocks in plain torch.nn, with CPM-Live's tensor names; any sublayer may be absent, widths may differ.

Letters in shapes: B batch, N positions, D width, H heads of this layer, E dim_head, F dim_ff.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import Divisors, LayerShape, ModelConfig
from .model import CPMAnt
from .modules import Linear, RMSNorm

EMBEDDING_STD = 0.02


class Attention(nn.Module):
    """Multi-head attention whose heads may be a part of those the shared bias table has columns for."""

    kept_heads: Tensor | None

    def __init__(self, dim: int, shape: LayerShape, divisors: Divisors) -> None:
        super().__init__()
        inner = shape.heads * shape.dim_head
        self.heads, self.dim_head = shape.heads, shape.dim_head
        self.scale = 1.0 / math.sqrt(divisors.score)
        self.divisor, self.out_divisor = math.sqrt(dim), math.sqrt(divisors.attention_out)
        self.project_q = Linear(dim, inner)
        self.project_k = Linear(dim, inner)
        self.project_v = Linear(dim, inner)
        self.attention_out = Linear(inner, dim)
        # An index is never meta: it is made from the config, no checkpoint has it.
        columns = None if shape.kept_heads is None else torch.tensor(shape.kept_heads, device="cpu")
        self.register_buffer("kept_heads", columns, persistent=False)

    def forward(self, hidden: Tensor, attention_bias: Tensor) -> Tensor:
        """Map hidden (B, N, D) to (B, N, D); attention_bias is (B, table heads, N, N)."""
        key, value = self.keys_values(hidden)
        return self.attend(hidden, attention_bias, key, value)

    def forward_cached(
        self, hidden: Tensor, attention_bias: Tensor, past: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Map hidden (B, Q, D) and past keys and values (B, H, past, E) to (B, Q, D) and the longer past."""
        new = self.keys_values(hidden)
        key, value = (torch.cat(pair, dim=2) for pair in zip(past, new, strict=True))
        return self.attend(hidden, attention_bias, key, value), key, value

    def keys_values(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return self.split(self.project_k(hidden)), self.split(self.project_v(hidden))

    def split(self, projected: Tensor) -> Tensor:
        """Split what q, k or v projects (B, N, H * E), over the root of the width, into (B, H, N, E)."""
        heads: Tensor = (projected / self.divisor).unflatten(-1, (self.heads, self.dim_head))
        return heads.transpose(1, 2)

    def attend(self, hidden: Tensor, attention_bias: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query = self.split(self.project_q(hidden))
        if self.kept_heads is not None:
            attention_bias = attention_bias.index_select(1, self.kept_heads)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_bias, scale=self.scale)
        out: Tensor = self.attention_out(mixed.transpose(1, 2).flatten(2)) / self.out_divisor
        return out


class SelfAttentionBlock(nn.Module):
    def __init__(self, dim: int, eps: float, shape: LayerShape, divisors: Divisors) -> None:
        super().__init__()
        self.layernorm_before_attention = RMSNorm(dim, eps)
        self.self_attention = Attention(dim, shape, divisors)


class GatedLinear(nn.Module):
    """GELU(w_0 x) * w_1 x (Shazeer 2020)."""

    def __init__(self, dim: int, dim_ff: int) -> None:
        super().__init__()
        self.w_0 = Linear(dim, dim_ff)
        self.w_1 = Linear(dim, dim_ff)
        self.divisor = math.sqrt(dim)

    def forward(self, x: Tensor) -> Tensor:
        gated: Tensor = F.gelu(self.w_0(x) / self.divisor) * (self.w_1(x) / self.divisor)
        return gated


class FeedForward(nn.Module):
    def __init__(self, dim: int, dim_ff: int, divisor: int) -> None:
        super().__init__()
        self.w_in = GatedLinear(dim, dim_ff)
        self.w_out = Linear(dim_ff, dim)
        self.divisor = math.sqrt(divisor)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w_out(self.w_in(x) / self.divisor)  # before the sum, which keeps fp16 in range
        return out


class FeedForwardBlock(nn.Module):
    def __init__(self, dim: int, eps: float, dim_ff: int, divisor: int) -> None:
        super().__init__()
        self.layernorm_before_ffn = RMSNorm(dim, eps)
        self.ffn = FeedForward(dim, dim_ff, divisor)

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = hidden + self.ffn(self.layernorm_before_ffn(hidden))
        return out


class Block(nn.Module):
    """One layer: attention, then feed-forward, each added to the hidden states (B, N, D); either may be absent."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        shape, dim, eps = config.layers[index], config.dim_model, config.eps
        self.self_att = SelfAttentionBlock(dim, eps, shape, config.divisors) if shape.heads else None
        self.ffn = FeedForwardBlock(dim, eps, shape.dim_ff, config.divisors.feed_forward_out) if shape.dim_ff else None

    def forward(self, hidden: Tensor, attention_bias: Tensor) -> Tensor:
        if self.self_att is not None:
            normed = self.self_att.layernorm_before_attention(hidden)
            hidden = hidden + self.self_att.self_attention(normed, attention_bias)
        return self.ffn(hidden) if self.ffn is not None else hidden

    def forward_cached(
        self, hidden: Tensor, attention_bias: Tensor, past_key: Tensor, past_value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run new positions only; a layer without attention is given None for its past, and returns it."""
        key, value = past_key, past_value
        if self.self_att is not None:
            normed = self.self_att.layernorm_before_attention(hidden)
            attention = self.self_att.self_attention
            mixed, key, value = attention.forward_cached(normed, attention_bias, (past_key, past_value))
            hidden = hidden + mixed
        return (self.ffn(hidden) if self.ffn is not None else hidden), key, value


def build(config: ModelConfig) -> CPMAnt:
    """Build the model on the current default device, its weights not yet set (see `initialize`)."""
    layers = [Block(config, index) for index in range(config.num_layers)]
    return CPMAnt(config.to_dict(), layers, cache_shapes(config))


def cache_shapes(config: ModelConfig) -> list[tuple[int, int] | None]:
    return [(layer.heads, layer.dim_head) if layer.heads else None for layer in config.layers]


@torch.no_grad()
def initialize(model: nn.Module, seed: int) -> None:
    """Initialize as CPM-Live: N(0, 1) for linears and the bias table, N(0, 0.02²) for embeddings, ones for norms.

    A head of its own starts as an embedding does.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "layernorm" in name:
            parameter.fill_(1.0)
        else:
            std = EMBEDDING_STD if "embedding" in name or name == "lm_head.weight" else 1.0
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


def block_kinds(config: ModelConfig) -> dict[str, tuple[int, int, int, bool]]:
    """Tell, by path, what decides a block's code; which heads it reads of the bias table is a tensor, and does not."""
    return {
        f"encoder.layers.{index}": (layer.heads, layer.dim_head, layer.dim_ff, layer.kept_heads is None)
        for index, layer in enumerate(config.layers)
    }


def example_inputs(config: ModelConfig) -> dict[str, dict[str, tuple[Tensor | None, ...]]]:
    """Make what each block is given, on the meta device: by block path, then by method."""
    batch, new, past = 2, 3, 5

    def meta(*shape: int) -> Tensor:
        return torch.empty(*shape, device="meta")

    hidden = meta(batch, new, config.dim_model)
    bias, longer = (meta(batch, config.num_heads, new, new + extra) for extra in (0, past))
    inputs: dict[str, dict[str, tuple[Tensor | None, ...]]] = {}
    for index, shape in enumerate(cache_shapes(config)):
        cache = (None, None) if shape is None else (meta(batch, shape[0], past, shape[1]),) * 2
        methods = {"forward": (hidden, bias), "forward_cached": (hidden, longer, *cache)}
        inputs[f"encoder.layers.{index}"] = methods
    return inputs
