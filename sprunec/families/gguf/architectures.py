"""The architectures of llama.cpp that models of `transformers` have, as rows of data, which are read both ways."""

from __future__ import annotations

from dataclasses import replace

from sprunec.families.gguf.architecture import (
    FINAL_CAP,
    LAYER_NORM,
    RMS,
    SCORE_CAP,
    WINDOW,
    Architecture,
    Module,
    Number,
    Order,
)

LLAMA = Architecture(
    "llama",
    "llama",
    block={
        "input_layernorm": Module("attn_norm"),
        "self_attn.q_proj": Module("attn_q", Order.QUERIES),
        "self_attn.k_proj": Module("attn_k", Order.KEYS),
        "self_attn.v_proj": Module("attn_v"),
        "self_attn.o_proj": Module("attn_output"),
        "post_attention_layernorm": Module("ffn_norm"),
        **{f"mlp.{name}_proj": Module(f"ffn_{name}") for name in ("gate", "up", "down")},
    },
    tables={
        "model.embed_tokens": Module("token_embd"),
        "model.norm": Module("output_norm"),
        "lm_head": Module("output"),
    },
    numbers={RMS: Number("rms_norm_eps", 1e-6)},
    activation=("hidden_act", "silu"),
    defaults={"max_position_embeddings": 2048, "rope_theta": 10_000.0},
    scalings=("default", "linear", "llama3", "yarn"),
)
MISTRAL = LLAMA.but("llama", "mistral", defaults={"max_position_embeddings": 131_072, "sliding_window": 4096})
QWEN2 = LLAMA.but(
    "qwen2",
    "qwen2",
    block={f"self_attn.{name}_proj": Module(f"attn_{name}") for name in "qk"},  # halves are turned as they lie
    defaults={"max_position_embeddings": 32_768},
    scalings=("default", "linear", "yarn"),
    free_heads=False,
)
# Of the graphs that read sizes by layer, the one of Nemotron-NAS computes what these do, their biases too.
DECI, DECI_MISTRAL, DECI_QWEN2 = (
    LLAMA.but("deci", row.model_type, defaults=dict(row.defaults), by_layer=True) for row in (LLAMA, MISTRAL, QWEN2)
)
QWEN3 = QWEN2.but(
    "qwen3",
    "qwen3",
    block={f"self_attn.{name}_norm": Module(f"attn_{name}_norm") for name in "qk"},
    needs={"attention_bias": False},
    free_heads=True,
)
GEMMA2 = QWEN2.but(
    "gemma2",
    "gemma2",
    block={
        "input_layernorm": Module("attn_norm", Order.PLUS_ONE),
        "post_attention_layernorm": Module("post_attention_norm", Order.PLUS_ONE),
        "pre_feedforward_layernorm": Module("ffn_norm", Order.PLUS_ONE),
        "post_feedforward_layernorm": Module("post_ffw_norm", Order.PLUS_ONE),
    },
    tables={"model.norm": Module("output_norm", Order.PLUS_ONE)},
    numbers={
        SCORE_CAP: Number("attn_logit_softcapping", 50.0),
        FINAL_CAP: Number("final_logit_softcapping", 30.0),
        WINDOW: Number("sliding_window", 4096),
    },
    activation=("hidden_activation", "gelu_pytorch_tanh"),
    defaults={"max_position_embeddings": 8192},
    needs={"attention_bias": False, "use_bidirectional_attention": None},
    scalings=("default",),
    free_heads=True,
    pattern=2,
    tied=True,
    score_scale="query_pre_attn_scalar",
    whole_scale=46,
)
GEMMA3 = GEMMA2.but(
    "gemma3",
    "gemma3_text",
    block={f"self_attn.{name}_norm": Module(f"attn_{name}_norm", Order.PLUS_ONE) for name in "qk"},
    numbers={FINAL_CAP: Number("final_logit_softcapping", None), SCORE_CAP: Number("attn_logit_softcapping", None)},
    defaults={"max_position_embeddings": 131_072, "rope_theta": 1_000_000.0},
    needs={"use_bidirectional_attention": False, "attn_logit_softcapping": None},
    scalings=("default", "linear"),
    pattern=6,
    local_base=10_000.0,
    tied=None,
    whole_scale=62,
)
PHI3 = replace(
    LLAMA,
    name="phi3",
    model_type="phi3",
    block={
        "input_layernorm": Module("attn_norm"),
        "self_attn.qkv_proj": Module("attn_qkv"),
        "self_attn.o_proj": Module("attn_output"),
        "post_attention_layernorm": Module("ffn_norm"),
        "mlp.gate_up_proj": Module("ffn_up"),
        "mlp.down_proj": Module("ffn_down"),
    },
    numbers={RMS: Number("rms_norm_eps", 1e-5)},
    defaults={"max_position_embeddings": 4096, "rope_theta": 10_000.0},
    needs={"attention_bias": False},
    rotary_share=Number("partial_rotary_factor", 1.0),
    scalings=("default", "longrope"),
    free_heads=False,
)
GPT2 = Architecture(
    "gpt2",
    "gpt2",
    block={
        "ln_1": Module("attn_norm"),
        "attn.c_attn": Module("attn_qkv", Order.TURNED),
        "attn.c_proj": Module("attn_output", Order.TURNED),
        "ln_2": Module("ffn_norm"),
        "mlp.c_fc": Module("ffn_up", Order.TURNED),
        "mlp.c_proj": Module("ffn_down", Order.TURNED),
    },
    tables={
        "transformer.wte": Module("token_embd"),
        "transformer.wpe": Module("position_embd"),
        "transformer.ln_f": Module("output_norm"),
        "lm_head": Module("output"),
    },
    numbers={LAYER_NORM: Number("layer_norm_epsilon", 1e-5)},
    activation=("activation_function", "gelu_new", "gelu_pytorch_tanh", "gelu"),
    defaults={"n_positions": 1024},
    needs={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
    positions=False,
    free_heads=False,
)
GPTNEOX = Architecture(
    "gptneox",
    "gpt_neox",
    block={
        "input_layernorm": Module("attn_norm"),
        "attention.query_key_value": Module("attn_qkv", Order.PARTS),
        "attention.dense": Module("attn_output"),
        "post_attention_layernorm": Module("ffn_norm"),
        "mlp.dense_h_to_4h": Module("ffn_up"),
        "mlp.dense_4h_to_h": Module("ffn_down"),
    },
    tables={
        "gpt_neox.embed_in": Module("token_embd"),
        "gpt_neox.final_layer_norm": Module("output_norm"),
        "embed_out": Module("output"),
    },
    numbers={
        LAYER_NORM: Number("layer_norm_eps", 1e-5),
        "use_parallel_residual": Number("use_parallel_residual", True),
    },
    activation=("hidden_act", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast"),
    defaults={"max_position_embeddings": 2048, "rope_theta": 10_000.0},
    needs={"attention_bias": True},
    rotary_share=Number("rotary_pct", 0.25),  # newer ones say `partial_rotary_factor` in `rope_parameters`
    scalings=("default",),
    free_heads=False,
    tied=False,
)
ARCHITECTURES = (
    *(LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3, PHI3, GPT2, GPTNEOX),
    *(DECI, DECI_MISTRAL, DECI_QWEN2),
)
