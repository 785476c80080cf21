"""Everything of CPM-Ant but its blocks: embeddings, the attention bias, the head, generation.

This file and `modules.py` need only torch, because they are copied as they stand into the `model.py` of every emitted
model; the blocks come from outside. Letters in shapes: B batch, P positions of the prompt, T of the text, N = P + T,
D width, H heads, V tokens, Q and K the positions of queries and of keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .modules import Embedding, Linear, RMSNorm, SegmentPositionBias, visible_pairs

Past = list["tuple[Tensor, Tensor] | None"]


class Encoder(nn.Module):
    """The blocks, and the norm after them."""

    def __init__(self, layers: Iterable[nn.Module], dim: int, eps: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.output_layernorm = RMSNorm(dim, eps)


class CPMAnt(nn.Module):
    """CPM-Ant around any blocks that take `(hidden (B, N, D), attention_bias (B, H, N, N))`.

    Args:
        config: CPM-Live's keys; only those of the parts outside the blocks are read.
        layers: one module a layer: `forward(hidden, attention_bias)` and
            `forward_cached(hidden, attention_bias, past_key, past_value) -> (hidden, key, value)`.
        cache_shapes: (heads, dim_head) of each layer's keys and values; None where a layer has no attention.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        layers: Iterable[nn.Module],
        cache_shapes: Iterable[tuple[int, int] | None],
    ) -> None:
        super().__init__()
        dim = config["dim_model"]
        self.prompt_length = config["prompt_length"]
        self.cache_shapes = list(cache_shapes)
        self.encoder = Encoder(layers, dim, config["eps"])
        self.prompt_embedding = Embedding(config["prompt_types"] * self.prompt_length, dim)
        self.segment_embedding = Embedding(config["segment_types"], dim)
        self.input_embedding = Embedding(config["vocab_size"], dim)
        self.position_bias = SegmentPositionBias(
            config["num_heads"],
            config["segment_types"],
            config["position_bias_num_buckets"],
            config["position_bias_max_distance"],
        )
        tied = config.get("tie_word_embeddings", True)
        self.lm_head = None if tied else Linear(dim, config["vocab_size"])

    def forward(
        self, input: Tensor, length: Tensor, context: Tensor, segment: Tensor, span: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run all positions at once, padded on the right.

        Args:
            input: (B, N) ids; the first P are prompt ids, the others tokens; see `look_up` for packed rows.
            length: (B,) positions in use, the prompt's included.
            context: (B, N) bool; what may be seen from anywhere in its span.
            segment: (B, N); 0 for the prompt.
            span: (B, N) document number of a packed row.

        Returns:
            logits (B, N, V), and the hidden states (B, N, D) they were projected from.
        """
        hidden = self.states(input, length, context, segment, span)
        return self.project(hidden), hidden

    def states(self, input: Tensor, length: Tensor, context: Tensor, segment: Tensor, span: Tensor) -> Tensor:
        """Run all positions at once as `forward`, without the logits: (B, N, D) in front of the head."""
        hidden, bias = self.embed(input, segment), self.full_bias(length, context, segment, span)
        for layer in self.encoder.layers:
            hidden = layer(hidden, bias)
        normed: Tensor = self.encoder.output_layernorm(hidden)
        return normed

    def inference(
        self,
        input: Tensor,
        length: Tensor,
        context: Tensor,
        position: Tensor | None,
        segment: Tensor,
        span: Tensor,
        past_key_values: Past | None = None,
    ) -> tuple[Tensor, Tensor, Past]:
        """Run one step with past keys and values, padded on the left: [prompt | pad | text].

        Args:
            input: (B, N) on the first call, then only the (B, Q) new tokens.
            length: (B,) positions of the text in use, without the prompt's.
            context, segment, span: (B, N) over past and new positions.
            position: unused, as in CPM-Live; distances come from where tokens stand.
            past_key_values: what the last call returned.

        Returns:
            logits (B, Q, V), hidden states (B, Q, D) and per layer the keys and values (B, H, N, dim_head), or None.
        """
        past = past_key_values if past_key_values is not None else self.empty_past(input.size(0))
        hidden = self.embed_new(input, segment, first=past_key_values is None)
        bias = self.cached_bias(input.size(1), length, context, segment, span)
        present: Past = []
        for layer, entry in zip(self.encoder.layers, past, strict=True):
            key, value = entry if entry is not None else (None, None)
            hidden, key, value = layer.forward_cached(hidden, bias, key, value)  # type: ignore[operator]
            present.append(None if key is None else (key, value))
        return (*self.leave(hidden), present)

    def embed(self, input: Tensor, segment: Tensor) -> Tensor:
        prompt = self.prompt_embedding(input[:, : self.prompt_length])
        text = self.look_up(input[:, self.prompt_length :])
        hidden: Tensor = torch.cat([prompt, text], dim=1) + self.segment_embedding(segment)
        return hidden

    def embed_new(self, input: Tensor, segment: Tensor, *, first: bool) -> Tensor:
        """Make what `inference` starts from; `segment` is over past and new positions."""
        if first:
            return self.embed(input, segment)
        new = segment[:, segment.size(1) - input.size(1) :]
        hidden: Tensor = self.look_up(input) + self.segment_embedding(new)
        return hidden

    def leave(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Turn what leaves the last block (..., D) into logits (..., V), and the hidden states that give them."""
        hidden = self.encoder.output_layernorm(hidden)
        return self.project(hidden), hidden

    def project(self, hidden: Tensor) -> Tensor:
        """Project normed (..., D) to logits (..., V), by the embedding or a head of its own, which is scaled alike."""
        if self.lm_head is None:
            return self.input_embedding.project(hidden)
        logits: Tensor = self.lm_head(hidden / self.input_embedding.divisor)
        return logits

    def look_up(self, ids: Tensor) -> Tensor:
        """Embed tokens; from vocab_size on, ids mean prompt rows, as the prompts inside a packed row need them."""
        count = self.input_embedding.weight.size(0)
        prompt = self.prompt_embedding((ids - count).clamp(min=0))
        return torch.where((ids >= count)[:, :, None], prompt, self.input_embedding(ids.clamp(max=count - 1)))

    def attention_bias(self, query_segment: Tensor, key_segment: Tensor, visible: Tensor) -> Tensor:
        """Make the position bias, -inf where a position must not be seen: (B, H, Q, K)."""
        bias: Tensor = self.position_bias(query_segment, key_segment)
        return bias.masked_fill(~visible[:, None], float("-inf"))

    def full_bias(self, length: Tensor, context: Tensor, segment: Tensor, span: Tensor) -> Tensor:
        """Make what `forward` gives its blocks: (B, H, N, N)."""
        valid = torch.arange(segment.size(1), device=segment.device)[None, :] < length[:, None]
        return self.attention_bias(segment, segment, visible_pairs(context, span, valid))

    def cached_bias(self, new: int, length: Tensor, context: Tensor, segment: Tensor, span: Tensor) -> Tensor:
        """Make what `inference` gives its blocks, for the `new` last positions: (B, H, new, N)."""
        index = torch.arange(segment.size(1), device=segment.device)[None, :]
        valid = (index < self.prompt_length) | (segment.size(1) - 1 - index < length[:, None])
        queries = slice(segment.size(1) - new, None)
        visible = visible_pairs(context, span, valid)[:, queries]
        return self.attention_bias(segment[:, queries], segment, visible)

    def empty_past(self, batch: int) -> Past:
        def empty(heads: int, dim_head: int) -> Tensor:
            return self.input_embedding.weight.new_empty(batch, heads, 0, dim_head)

        return [None if shape is None else (empty(*shape), empty(*shape)) for shape in self.cache_shapes]

    def behind_prompt(self, tokens: Tensor, task: int, segment: int, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Put a task's prompt in front of (B, T) tokens; `context` (B, T) says what may be seen from anywhere.

        Returns:
            ids, segments and context, (B, P + T) each.
        """
        prompt = torch.arange(self.prompt_length, device=tokens.device) + task * self.prompt_length
        ids = torch.cat([prompt.to(tokens.dtype).expand(tokens.size(0), -1), tokens], dim=1)
        front = (self.prompt_length, 0)
        return ids, F.pad(torch.full_like(tokens, segment), front, value=0), F.pad(context, front, value=True)

    @torch.no_grad()
    def generate(
        self,
        input: Tensor,
        length: Tensor | None = None,
        *,
        max_new_tokens: int = 100,
        task: int = 2,
        segment: int = 2,
        context: bool = True,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        stop: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Continue (B, T) tokens, padded on the left, `length` (B,) of them in use -> (B, T + new).

        The tokens given are seen as `context` says; what is generated sees everything before it. `temperature` 0 takes
        the likeliest token, else one is drawn from the `top_k` likeliest that fill `top_p` (Holtzman et al. 2020);
        `repetition_penalty` divides the logits of tokens already generated (Keskar et al. 2019). A row that has
        reached the token `stop` repeats it.
        """
        (batch, width), device = input.shape, input.device
        length = torch.full((batch,), width, device=device) if length is None else length.to(device)
        visible = torch.full_like(input, context, dtype=torch.bool)
        tokens, segments, flags = self.behind_prompt(input, task, segment, visible)
        new, past = tokens, None
        for _ in range(max_new_tokens):
            spans = torch.zeros_like(segments)
            logits, _, past = self.inference(new, length, flags, None, segments, spans, past)
            made = tokens[:, self.prompt_length + width :]
            scores = penalize(logits[:, -1].float(), made, repetition_penalty)
            new = pick(scores, temperature, top_k, top_p, generator)[:, None].to(tokens.dtype)
            if stop is not None:
                new = torch.where((made == stop).any(1, keepdim=True), stop, new)
            tokens = torch.cat([tokens, new], dim=1)
            flags = F.pad(flags, (0, 1), value=False)
            segments = F.pad(segments, (0, 1), value=segment)
            length = length + 1
            if stop is not None and bool((tokens[:, self.prompt_length + width :] == stop).any(1).all()):
                break
        return tokens[:, self.prompt_length :]


def penalize(logits: Tensor, made: Tensor, penalty: float) -> Tensor:
    """Make the (B, M) tokens already made less likely in logits (B, V)."""
    if penalty == 1.0 or made.size(1) == 0:
        return logits
    old = logits.gather(1, made.long())
    return logits.scatter(1, made.long(), torch.where(old > 0, old / penalty, old * penalty))


def pick(logits: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator | None) -> Tensor:
    """Choose one token a row: logits (B, V) -> (B,)."""
    if temperature == 0.0:
        return logits.argmax(-1)
    ranked, tokens = (logits / temperature).sort(-1, descending=True)
    shares = ranked.softmax(-1)
    drop = shares.cumsum(-1) - shares >= top_p
    if top_k:
        drop = drop | (torch.arange(drop.size(1), device=drop.device) >= top_k)
    drop[:, 0] = False
    drawn = torch.multinomial(shares.masked_fill(drop, 0.0), 1, generator=generator)
    return tokens.gather(1, drawn)[:, 0]
