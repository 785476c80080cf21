"""Run a DeciLM by what its config.json says of its blocks: a script.

    python decilm_reader.py DIRECTORY TEXTS LOGITS

Sizes follow from the config by the rules of vLLM's loader of such models; the parts are those of Llama in
`transformers`, and weights stay in their files until they are used. TEXTS has ids (n,), one tensor a text; LOGITS gets
(n, V) for each, computed in float32.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm, LlamaRotaryEmbedding

from sprunec.checkpoint.file_tensors import file_tensors
from sprunec.families.huggingface.stock_model import parameters_on_meta

ROUNDED_TO = 256


def feed_forward_width(section: Any, width: int) -> int:
    """Read the width: a factor, where there is one, goes before a number."""
    if not hasattr(section, "ffn_mult"):
        return int(section.intermediate_size)
    return -(-int(2 * section.ffn_mult * width / 3) // ROUNDED_TO) * ROUNDED_TO


class Layer(nn.Module):
    """One layer, with what its block of the config has."""

    def __init__(self, config: Any, index: int) -> None:
        super().__init__()
        block, sizes = config.block_configs[index], copy.copy(config)
        self.attends, self.feeds = not block.attention.no_op, not block.ffn.no_op
        if self.attends:
            sizes.num_key_value_heads = config.num_attention_heads // block.attention.n_heads_in_group
            self.input_layernorm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
            self.self_attn = LlamaAttention(sizes, index)
        if self.feeds:
            sizes.intermediate_size = feed_forward_width(block.ffn, config.hidden_size)
            self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
            self.mlp = LlamaMLP(sizes)

    def forward(self, hidden: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        if self.attends:
            normed = self.input_layernorm(hidden)
            hidden = hidden + self.self_attn(normed, position_embeddings=rotary, attention_mask=None)[0]
        return hidden + self.mlp(self.post_attention_layernorm(hidden)) if self.feeds else hidden


class Body(nn.Module):
    """All but the head: ids (n,) -> hidden states (1, n, D)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = LlamaRotaryEmbedding(config)

    def forward(self, ids: Tensor) -> Tensor:
        hidden: Tensor = self.embed_tokens(ids[None])
        rotary = self.rotary(hidden, torch.arange(len(ids))[None])
        for layer in self.layers:
            hidden = layer(hidden, rotary)
        normed: Tensor = self.norm(hidden)
        return normed


class DeciLM(nn.Module):
    """The whole model: ids (n,) -> logits (n, V)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        first = next(block for block in config.block_configs if not (block.attention.no_op and block.ffn.no_op))
        assert not first.attention.no_op, "vLLM's loader starts the residual stream at an attention"
        assert len(config.block_configs) == config.num_hidden_layers, "as many blocks as layers"
        config._attn_implementation, config.attention_dropout = "sdpa", 0.0
        self.model = Body(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        head: nn.Module = getattr(self, "lm_head", self.model.embed_tokens)
        return F.linear(self.model(ids), head.get_parameter("weight"))[0]


def opened(directory: Path) -> DeciLM:
    """Open a directory in float32, its tensors name by name."""
    with parameters_on_meta():
        model = DeciLM(AutoConfig.from_pretrained(directory, trust_remote_code=True))
    model.load_state_dict(file_tensors(directory), strict=True, assign=True)
    return model.eval()


if __name__ == "__main__":
    model = opened(Path(sys.argv[1]))
    with torch.no_grad():
        torch.save([model(ids) for ids in torch.load(sys.argv[2], weights_only=True)], sys.argv[3])
