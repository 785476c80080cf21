"""What llama.cpp computes of a GGUF file, in plain torch over its keys and tensors alone, in float64.

As `src/models/` of llama.cpp loads and runs them: a tensor must be of the size that the keys ask for, every tensor must
be asked for, and a key that is absent has the graph's own default.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from gguf import GGUFReader, quants
from torch import Tensor

NEOX = ("qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gptneox")  # halves are turned together, and not neighbours
GEMMA = {"gemma2": (2, 46), "gemma3": (6, 62)}  # every so many layers without a window; so many layers: other scores
FREE = ("llama", "deci", "qwen3", "gemma2", "gemma3")  # heads that need not be as wide together as the model
LAYER_NORMS = ("gpt2", "gptneox")


class Graph:
    """A file."""

    def __init__(self, path: Path) -> None:
        reader = GGUFReader(path)
        self.keys = {name: field.contents() for name, field in reader.fields.items()}
        self.arch: str = self.keys["general.architecture"]
        self.state = {
            tensor.name: torch.from_numpy(quants.dequantize(tensor.data, tensor.tensor_type).copy()).double()
            for tensor in reader.tensors
        }
        self.asked: set[str] = set()
        self.width, self.layers = self.key("embedding_length"), self.key("block_count")
        tokens = self.keys.get("tokenizer.ggml.tokens")
        self.tokens: int = len(tokens) if tokens else self.key("vocab_size")
        self.heads, self.groups, self.inner = (
            value if isinstance(value, list) else [value] * self.layers
            for value in (
                self.key("attention.head_count"),
                self.key("attention.head_count_kv"),
                self.key("feed_forward_length"),
            )
        )
        self.dims: int = self.key("attention.key_length", self.width // max(self.heads[0], 1)) if self.heads[0] else 0
        self.turned: int = self.key("rope.dimension_count", self.dims)
        if self.arch in ("llama", "deci"):
            assert self.turned == self.dims
        assert self.arch == "deci" or not any(isinstance(self.key(key), list) for key in ("attention.head_count",))

    def key(self, name: str, *default: Any) -> Any:
        return self.keys.get(f"{self.arch}.{name}", *default) if default else self.keys[f"{self.arch}.{name}"]

    def take(self, name: str, *shape: int) -> Tensor:
        assert self.state[name].shape == shape, (name, self.state[name].shape, shape)
        self.asked.add(name)
        return self.state[name]

    def linear(self, name: str, hidden: Tensor, outputs: int) -> Tensor:
        bias = self.take(f"{name}.bias", outputs) if f"{name}.bias" in self.state else None
        return F.linear(hidden, self.take(f"{name}.weight", outputs, hidden.size(-1)), bias)

    def norm(self, name: str, hidden: Tensor) -> Tensor:
        weight = self.take(f"{name}.weight", hidden.size(-1))
        if self.arch in LAYER_NORMS:
            eps, bias = self.key("attention.layer_norm_epsilon"), self.take(f"{name}.bias", self.width)
            return F.layer_norm(hidden, (self.width,), weight, bias, eps)
        return F.rms_norm(hidden, (hidden.size(-1),), weight, self.key("attention.layer_norm_rms_epsilon"))

    def window(self, layer: int) -> int | None:
        if self.arch not in GEMMA or (self.arch == "gemma3" and not self.key("attention.sliding_window", 0)):
            return None
        every, pattern = GEMMA[self.arch][0], self.key("attention.sliding_window_pattern", None)
        sliding = pattern[layer] if pattern else layer % every < every - 1
        return self.key("attention.sliding_window", 4096) if sliding else None

    def rotated(self, tensor: Tensor, layer: int, context: int) -> Tensor:
        """Turn (heads, n, E)."""
        local = self.arch == "gemma3" and self.window(layer) is not None
        base = self.key("rope.freq_base_swa", 10_000.0) if local else self.key("rope.freq_base", 10_000.0)
        pairs = self.turned // 2
        kind = self.key("rope.scaling.type", "linear")
        trained = self.key("rope.scaling.original_context_length", self.key("context_length"))
        frequency = base ** (-torch.arange(pairs, dtype=torch.double) / pairs) / self.divisors(kind, context > trained)
        plain = frequency / (1.0 if local else self.key("rope.scaling.factor", 1.0))
        size = self.key("rope.scaling.attn_factor", 1.0)
        if kind == "yarn":
            ends = [self.turned * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(base)) for turns in (32, 1)]
            low, high = max(0, math.floor(ends[0])), min(self.turned - 1, math.ceil(ends[1]))
            kept = 1 - ((torch.arange(pairs) - low) / max(0.001, high - low)).clamp(0, 1)
            plain = plain * (1 - kept) + frequency * kept
            size = 1 + 0.1 * math.log(self.key("rope.scaling.factor"))
        angles = torch.arange(tensor.size(1))[:, None] * plain
        cos, sin, (turned, rest) = angles.cos() * size, angles.sin() * size, tensor.tensor_split([self.turned], -1)
        if self.arch in NEOX:
            first, second = turned.chunk(2, -1)
            found = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
        else:
            first, second = turned[..., ::2], turned[..., 1::2]
            found = torch.stack([first * cos - second * sin, second * cos + first * sin], -1).flatten(-2)
        return torch.cat([found, rest], -1)

    def divisors(self, kind: str, long: bool) -> Tensor:
        name = f"rope_factors_{'long' if long else 'short'}" if kind == "longrope" else "rope_freqs"
        if kind == "longrope":
            self.asked |= {"rope_factors_long.weight", "rope_factors_short.weight"}
        return self.take(f"{name}.weight", self.turned // 2) if f"{name}.weight" in self.state else torch.ones(1)

    def attention(self, layer: int, hidden: Tensor, context: int) -> Tensor:
        block, heads, groups = f"blk.{layer}", self.heads[layer], self.groups[layer]
        sizes = [heads * self.dims, groups * self.dims, groups * self.dims]
        if f"{block}.attn_qkv.weight" in self.state:
            whole = self.linear(f"{block}.attn_qkv", hidden, self.width + 2 * groups * self.dims)
            parts = whole.split(sizes, dim=-1)
        else:
            parts = tuple(
                self.linear(f"{block}.attn_{name}", hidden, size) for name, size in zip("qkv", sizes, strict=True)
            )
        q, k, v = (part.view(len(hidden), -1, self.dims).transpose(0, 1) for part in parts)
        if self.arch in ("qwen3", "gemma3"):
            q, k = self.norm(f"{block}.attn_q_norm", q), self.norm(f"{block}.attn_k_norm", k)
        if self.arch != "gpt2":
            q, k = self.rotated(q, layer, context), self.rotated(k, layer, context)
        whole_scale = self.arch in GEMMA and self.layers == GEMMA[self.arch][1]
        scores = q @ k.repeat_interleave(heads // groups, 0).mT
        scores = scores / math.sqrt(self.width // heads if whole_scale else self.dims)
        if self.arch == "gemma2":
            cap = self.key("attn_logit_softcapping", 50.0)
            scores = (scores / cap).tanh() * cap
        places = torch.arange(len(hidden))
        apart = places[:, None] - places
        seen = (apart >= 0) & (apart < (self.window(layer) or len(hidden)))
        context_ = scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v.repeat_interleave(heads // groups, 0)
        mixed = context_.transpose(0, 1).flatten(1)
        if self.arch not in FREE:
            assert mixed.size(-1) == self.width, "heads as wide together as the model"
        return self.linear(f"{block}.attn_output", mixed, self.width)

    def feed_forward(self, layer: int, hidden: Tensor) -> Tensor:
        block, inner = f"blk.{layer}", self.inner[layer]
        if self.arch == "phi3":
            gate, up = self.linear(f"{block}.ffn_up", hidden, 2 * inner).chunk(2, -1)
            states = F.silu(gate) * up
        elif self.arch in LAYER_NORMS:
            states = F.gelu(self.linear(f"{block}.ffn_up", hidden, inner), approximate="tanh")
        else:
            gate = self.linear(f"{block}.ffn_gate", hidden, inner)
            gate = F.gelu(gate, approximate="tanh") if self.arch in GEMMA else F.silu(gate)
            states = gate * self.linear(f"{block}.ffn_up", hidden, inner)
        return self.linear(f"{block}.ffn_down", states, self.width)

    def block(self, layer: int, hidden: Tensor, context: int) -> Tensor:
        name = f"blk.{layer}"
        if self.arch == "gptneox" and self.key("use_parallel_residual"):
            mixed = self.attention(layer, self.norm(f"{name}.attn_norm", hidden), context)
            return hidden + mixed + self.feed_forward(layer, self.norm(f"{name}.ffn_norm", hidden))
        mixed = hidden
        if self.heads[layer]:
            mixed = self.attention(layer, self.norm(f"{name}.attn_norm", hidden), context)
            mixed = self.norm(f"{name}.post_attention_norm", mixed) if self.arch in GEMMA else mixed
        if not self.inner[layer]:
            return hidden  # as it leaves a layer that has no feed-forward
        mixed = mixed + hidden if self.heads[layer] else mixed
        states = self.feed_forward(layer, self.norm(f"{name}.ffn_norm", mixed))
        return mixed + (self.norm(f"{name}.post_ffw_norm", states) if self.arch in GEMMA else states)

    def logits(self, ids: Tensor, context: int = 0) -> Tensor:
        """Ids (n,) -> (n, V).

        Args:
            context: what the runtime is opened for; longrope chooses by it.
        """
        table = self.take("token_embd.weight", self.tokens, self.width)
        hidden = table[ids] * (math.sqrt(self.width) if self.arch in GEMMA else 1.0)
        if self.arch == "gpt2":
            hidden = hidden + self.take("position_embd.weight", self.key("context_length"), self.width)[: len(ids)]
        for layer in range(self.layers):
            hidden = self.block(layer, hidden, context or len(ids))
        hidden = self.norm("output_norm", hidden)
        own = "output.weight" in self.state or self.arch == "gptneox"
        found = F.linear(hidden, self.take("output.weight", self.tokens, self.width) if own else table)
        if self.arch in GEMMA and (cap := self.key("final_logit_softcapping", 30.0 if self.arch == "gemma2" else None)):
            found = (found / cap).tanh() * cap
        assert self.asked == set(self.state), "tensors that the graph does not know"
        return found
