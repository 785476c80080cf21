"""Tiny models of the families that Hugging Face has, with sizes that tell their axes apart; weights are random."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM

VOCABULARY = 97
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "vocab_size": VOCABULARY}
GROUPED = {
    "hidden_size": 48, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 64, **IDS,
}  # fmt: skip
WIDE = {"head_dim": 10}
GEMMA = {**GROUPED, **WIDE, "query_pre_attn_scalar": 10, "sliding_window": 8}
OLD = {"n_positions": 64, "n_embd": 48, "n_layer": 2, "n_head": 6, "n_inner": 56, **IDS}
LATENT = {
    "num_key_value_heads": 6, "q_lora_rank": 20, "kv_lora_rank": 12, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4,
    "v_head_dim": 9,
}  # fmt: skip


def supports_sdpa(name: str) -> bool:
    """Release 4.57 has no GPT-J with it."""
    return bool(MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[name]]._supports_sdpa)


EVERY: dict[str, dict[str, Any]] = {
    "llama": {**GROUPED, **WIDE, "attention_bias": True},
    "mistral": {**GROUPED, **WIDE, "sliding_window": 8},
    "qwen2": GROUPED,
    "qwen3": GROUPED | WIDE,
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
    "phi3": GROUPED,
    "smollm3": GROUPED | {"no_rope_layers": [1, 0]},
    "granite": GROUPED | {"residual_multiplier": 0.5},
    "starcoder2": GROUPED,
    "cohere2": GROUPED | {"sliding_window": 8},
    "olmo2": GROUPED,
    "minicpm3": GROUPED | LATENT,
    "gpt2": OLD | {"scale_attn_by_inverse_layer_idx": True},
    "opt": {
        "hidden_size": 48, "num_hidden_layers": 2, "ffn_dim": 56, "num_attention_heads": 6, "dropout": 0.0,
        "max_position_embeddings": 64, "word_embed_proj_dim": 48, **IDS,
    },
    "gpt_neox": {key: GROUPED[key] for key in GROUPED if key != "num_key_value_heads"},
    "gptj": OLD | {"rotary_dim": 4},
    "bloom": {"hidden_size": 48, "n_layer": 2, "n_head": 6, **IDS},
    "falcon": {
        "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6, "num_kv_heads": 2, "ffn_hidden_size": 56,
        "new_decoder_architecture": True, **IDS,
    },
}  # fmt: skip
CONFIGS = {name: sizes for name, sizes in EVERY.items() if name in CONFIG_MAPPING}  # release 4.57 has no MiniCPM3
PLAIN: dict[str, dict[str, Any]] = {"gpt2": {"scale_attn_by_inverse_layer_idx": False}}  # what 4.57 would pass over
OFTEN = {"llama", "qwen3", "gemma3_text", "gpt2", "gpt_neox", "phi3", "falcon", "minicpm3"}  # no two are alike


def families(*often: str) -> list[Any]:
    """All families; those that are not named, or by default have a relative that runs often, are slow."""
    kept = set(often) or OFTEN
    return [name if name in kept else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]


EAGER_ONLY = [name for name in CONFIGS if name in ("gemma2", "bloom") or not supports_sdpa(name)]
CALLS = [
    pytest.param(name, how, marks=[pytest.mark.slow] * (how == "sdpa" and name not in OFTEN))
    for name in CONFIGS
    for how in ("eager", "sdpa")
    if how == "eager" or name not in EAGER_ONLY
]


def causal_lm(name: str, attention: str = "eager", **changes: Any) -> Any:
    """A model of a family with random weights, far from those that a fresh one has, so that what is wrong shows."""
    config = AutoConfig.for_model(name, **(CONFIGS[name] | changes))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.3 if parameter.dim() > 1 else 1.0 + noise * 0.2)
    return model


def token_ids(batch: int, length: int) -> Tensor:
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(length))
