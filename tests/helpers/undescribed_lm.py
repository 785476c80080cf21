"""Causal language models that only these tests have, with names of their own for modules and for keys of configs."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast


class OwnConfig(PretrainedConfig):
    model_type = "sprunec-test-own"
    attribute_map: ClassVar[dict[str, str]] = {"num_hidden_layers": "depth", "hidden_size": "channels"}

    def __init__(
        self,
        channels: int = 48,
        depth: int = 3,
        queries: int = 6,
        groups: int = 2,
        per_head: int = 10,
        inner: int = 56,
        vocab_size: int = 97,
        normed: bool = False,
        turns: float = 100.0,
        **kwargs: Any,
    ) -> None:
        self.channels, self.depth, self.queries, self.groups = channels, depth, queries, groups
        self.per_head, self.inner, self.vocab_size, self.normed = per_head, inner, vocab_size, normed
        self.turns = turns
        super().__init__(**{"tie_word_embeddings": False} | kwargs)  # in release 4 the default is that it is


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


class Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.gain


class Mixer(nn.Module):
    """Attention with fused projections, and queries in groups; with norms of queries and keys if the config says so."""

    def __init__(self, config: OwnConfig, place: int) -> None:
        super().__init__()
        self.layer_idx, self.queries, self.groups, self.each = place, config.queries, config.groups, config.per_head
        out = (config.queries + 2 * config.groups) * config.per_head
        self.into = nn.Linear(config.channels, out, bias=False)
        self.out = nn.Linear(config.queries * config.per_head, config.channels, bias=False)
        self.of_query, self.of_key = (Scale(config.per_head) if config.normed else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: Any) -> Tensor:
        batch, length, _ = x.shape
        fused = self.into(x).view(batch, length, self.queries + 2 * self.groups, self.each).transpose(1, 2)
        query, key, value = fused.split([self.queries, self.groups, self.groups], dim=1)
        query, key = turned(self.of_query(query), cos, sin), turned(self.of_key(key), cos, sin)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        found = F.scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)
        return self.out(found.transpose(1, 2).reshape(batch, length, -1))


class Expander(nn.Module):
    def __init__(self, config: OwnConfig) -> None:
        super().__init__()
        self.wide = nn.Linear(config.channels, 2 * config.inner, bias=False)
        self.narrow = nn.Linear(config.inner, config.channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.wide(x).chunk(2, dim=-1)
        return self.narrow(F.silu(gate) * up)


class Floor(nn.Module):
    def __init__(self, config: OwnConfig, place: int) -> None:
        super().__init__()
        self.before, self.mixer = Scale(config.channels), Mixer(config, place)
        self.between, self.expander = Scale(config.channels), Expander(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None, cache: Any = None) -> Tensor:
        x = x + self.mixer(self.before(x), cos, sin, mask, cache)
        return x + self.expander(self.between(x))


class OwnForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = OwnConfig
    base_model_prefix = "tower"
    _tied_weights_keys: Any = None
    _supports_sdpa = True

    def __init__(self, config: OwnConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.channels)
        self.floors = nn.ModuleList(Floor(config, place) for place in range(config.depth))
        self.top = Scale(config.channels)
        self.say = nn.Linear(config.channels, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def get_output_embeddings(self) -> nn.Module:
        return self.say

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        x = self.words(input_ids) if inputs_embeds is None else inputs_embeds
        cache = past_key_values if past_key_values is not None else DynamicCache() if use_cache else None
        past = 0 if cache is None else cache.get_seq_length()
        places = torch.arange(past, past + x.shape[1], device=x.device)
        half = self.config.per_head // 2
        angles = places[:, None] * self.config.turns ** (-torch.arange(half, device=x.device) / half)
        angles = torch.cat((angles, angles), dim=-1).to(x.dtype)[None, None]
        seen = torch.ones(x.shape[1], past + x.shape[1], dtype=torch.bool, device=x.device).tril(past)[None, None]
        for floor in self.floors:
            x = floor(x, angles.cos(), angles.sin(), seen, cache)
        return CausalLMOutputWithPast(logits=self.say(self.top(x)), past_key_values=cache)


AutoConfig.register(OwnConfig.model_type, OwnConfig, exist_ok=True)
AutoModelForCausalLM.register(OwnConfig, OwnForCausalLM, exist_ok=True)
