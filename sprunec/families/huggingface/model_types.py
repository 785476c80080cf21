"""The families of `transformers` that sprunec knows, by the `model_type` of their configs; see `tensor_layouts.py`."""

from __future__ import annotations

from sprunec.families.huggingface.tensor_layouts import Layout


def biases(names: str, sizes: str, condition: str = "") -> dict[str, str]:
    """Give the biases of modules: `names` and `sizes` are parted by blanks."""
    suffix = f".bias?{condition}" if condition else ".bias"
    return {name + suffix: size for name, size in zip(names.split(), sizes.split(), strict=True)}


def norms(*names: str) -> dict[str, str]:
    """Give the tensors of LayerNorms."""
    return {f"{name}.{tensor}": "D" for name in names for tensor in ("weight", "bias")}


QKV = "self_attn.q_proj self_attn.k_proj self_attn.v_proj"
MLP = {f"mlp.dense_{name}": size for name, size in (("h_to_4h.weight", "F D"), ("h_to_4h.bias", "F"))}
MLP |= {f"mlp.dense_{name}": size for name, size in (("4h_to_h.weight", "D F"), ("4h_to_h.bias", "D"))}
ROTARY = "its rotary pairs are numbered"
TIED = {"tie_word_embeddings": True}

LLAMA = Layout(
    "Llama",
    "model.layers",
    attention={
        "input_layernorm.weight": "D",
        "self_attn.q_proj.weight": "HE D",
        "self_attn.k_proj.weight": "GE D",
        "self_attn.v_proj.weight": "GE D",
        "self_attn.o_proj.weight": "D HE",
        **biases(f"{QKV} self_attn.o_proj", "HE GE GE D", "attention_bias"),
    },
    feed_forward={
        "post_attention_layernorm.weight": "D",
        "mlp.gate_proj.weight": "F D",
        "mlp.up_proj.weight": "F D",
        "mlp.down_proj.weight": "D F",
        **biases("mlp.gate_proj mlp.up_proj mlp.down_proj", "F F D", "mlp_bias"),
    },
    tables={"model.embed_tokens.weight": "V D", "model.norm.weight": "D", "lm_head.weight": "V D"},
    fixed={"dim_head": ROTARY},
)
QWEN3 = LLAMA.but(
    "Qwen3",
    attention={"self_attn.q_norm.weight": "E", "self_attn.k_norm.weight": "E"},
    defaults={"head_dim": 128},
)
GEMMA2 = LLAMA.but(
    "Gemma 2",
    attention={"post_attention_layernorm.weight": "D"},
    feed_forward={
        "post_attention_layernorm.weight": None,
        "pre_feedforward_layernorm.weight": "D",
        "post_feedforward_layernorm.weight": "D",
    },
    defaults=TIED | {"head_dim": 256},
    heads_divide_width=True,
)
GPT2 = Layout(
    "GPT-2",
    "transformer.h",
    inputs_first=True,
    attention={
        **norms("ln_1"),
        "attn.c_attn.weight": "D 3HE",
        "attn.c_attn.bias": "3HE",
        "attn.c_proj.weight": "HE D",
        "attn.c_proj.bias": "D",
    },
    feed_forward={
        **norms("ln_2"),
        "mlp.c_fc.weight": "D F",
        "mlp.c_fc.bias": "F",
        "mlp.c_proj.weight": "F D",
        "mlp.c_proj.bias": "D",
    },
    tables={
        "transformer.wte.weight": "V D",
        "transformer.wpe.weight": "P D",
        **norms("transformer.ln_f"),
        "lm_head.weight": "V D",
    },
    input_first=("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"),
    defaults=TIED,
    uneven_heads=False,
)
OPT = Layout(
    "OPT",
    "model.decoder.layers",
    attention=norms("self_attn_layer_norm")
    | {f"self_attn.{name}_proj.weight": "HE D" for name in ("q", "k", "v")}
    | {"self_attn.out_proj.weight": "D HE"}
    | biases(f"{QKV} self_attn.out_proj", "HE HE HE D", "enable_bias"),
    feed_forward=norms("final_layer_norm")
    | {"fc1.weight": "F D", "fc2.weight": "D F"}
    | biases("fc1 fc2", "F D", "enable_bias"),
    tables={"model.decoder.embed_tokens.weight": "V D", "model.decoder.embed_positions.weight": "P+2 D"}
    | norms("model.decoder.final_layer_norm")
    | {"lm_head.weight": "V D"},
    defaults=TIED | {"enable_bias": True, "do_layer_norm_before": True},
    uneven_heads=False,
    needs={"do_layer_norm_before": True},
)
NEOX = Layout(
    "GPT-NeoX",
    "gpt_neox.layers",
    attention={
        **norms("input_layernorm"),
        "attention.query_key_value.weight": "3HE D",
        "attention.dense.weight": "D HE",
        **biases("attention.query_key_value attention.dense", "3HE D", "attention_bias"),
    },
    feed_forward=norms("post_attention_layernorm") | MLP,
    tables={"gpt_neox.embed_in.weight": "V D", **norms("gpt_neox.final_layer_norm"), "embed_out.weight": "V D"},
    head="embed_out.weight",
    defaults={"attention_bias": True, "tie_word_embeddings": False},
    fixed={"dim_head": ROTARY},
    uneven_heads=False,
)
LAYOUTS = {
    "llama": LLAMA.but("Llama", heads_divide_width=True),
    "mistral": LLAMA.but("Mistral"),
    "qwen2": LLAMA.but("Qwen2", attention=biases(QKV, "HE GE GE")),
    "qwen3": QWEN3,
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA2.but("Gemma 3", attention={"self_attn.q_norm.weight": "E", "self_attn.k_norm.weight": "E"}),
    "phi3": LLAMA.but(
        "Phi-3",
        attention=dict.fromkeys([f"{name}.weight" for name in QKV.split()]) | {"self_attn.qkv_proj.weight": "HE+2GE D"},
        feed_forward=dict.fromkeys(("mlp.gate_proj.weight", "mlp.up_proj.weight"))
        | {"mlp.gate_up_proj.weight": "2F D"},
    ),
    "smollm3": LLAMA.but("SmolLM3", defaults=TIED, by_layer=("layer_types", "no_rope_layers")),
    "granite": LLAMA.but("Granite"),
    "starcoder2": LLAMA.but(
        "StarCoder2",
        attention=norms("input_layernorm") | biases(f"{QKV} self_attn.o_proj", "HE GE GE D", "use_bias"),
        feed_forward=dict.fromkeys(("mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"))
        | norms("post_attention_layernorm")
        | {"mlp.c_fc.weight": "F D", "mlp.c_proj.weight": "D F"}
        | biases("mlp.c_fc mlp.c_proj", "F D", "use_bias"),
        tables={"model.norm.bias": "D"},
        defaults=TIED | {"use_bias": True},
    ),
    "olmo2": LLAMA.but(
        "OLMo 2",
        attention={
            "input_layernorm.weight": None,
            "post_attention_layernorm.weight": "D",
            "self_attn.q_norm.weight": "HE",
            "self_attn.k_norm.weight": "GE",
        },
        feed_forward={"post_attention_layernorm.weight": None, "post_feedforward_layernorm.weight": "D"},
        fixed=dict.fromkeys(("head", "kv_group"), "a norm over all heads counts them"),
    ),
    "cohere2": LLAMA.but(
        "Cohere 2",
        attention={"input_layernorm.weight": None},
        feed_forward={"post_attention_layernorm.weight": None},
        both={"input_layernorm.weight": "D"},
        defaults=TIED,
    ),
    "minicpm3": LLAMA.but(
        "MiniCPM3",
        attention=dict.fromkeys(f"{name}.weight" for name in QKV.split())
        | dict.fromkeys(biases(f"{QKV} self_attn.o_proj", "HE GE GE D", "attention_bias"))
        | {
            "self_attn.q_a_proj.weight": "Q D",
            "self_attn.q_a_layernorm.weight": "Q",
            "self_attn.q_b_proj.weight": "HN+HR Q",
            "self_attn.kv_a_proj_with_mqa.weight": "K+R D",
            "self_attn.kv_a_layernorm.weight": "K",
            "self_attn.kv_b_proj.weight": "HN+HU K",
            "self_attn.o_proj.weight": "D HU",
        },
        keys={
            "Q": ("q_lora_rank",),
            "K": ("kv_lora_rank",),
            "N": ("qk_nope_head_dim",),
            "R": ("qk_rope_head_dim",),
            "U": ("v_head_dim",),
        },
        by_depth=("scale_depth",),
        cache="K+R",
        defaults=TIED,
    ),
    "opt": OPT,
    "gpt2": GPT2,
    "gpt_neox": NEOX,
    "gptj": GPT2.but(
        "GPT-J",
        inputs_first=False,
        attention=dict.fromkeys(("ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias"))
        | dict.fromkeys(("attn.c_proj.weight", "attn.c_proj.bias"))
        | {f"attn.{name}_proj.weight": "HE D" for name in ("q", "k", "v")}
        | {"attn.out_proj.weight": "D HE"},
        feed_forward=dict.fromkeys(GPT2.feed_forward)
        | {"mlp.fc_in.weight": "F D", "mlp.fc_in.bias": "F", "mlp.fc_out.weight": "D F", "mlp.fc_out.bias": "D"},
        both=norms("ln_1"),
        tables={"transformer.wpe.weight": None, "lm_head.bias": "V"},
        input_first=(),
        defaults={"tie_word_embeddings": False},
        fixed={"dim_head": ROTARY},
    ),
    "bloom": Layout(
        "BLOOM",
        "transformer.h",
        attention=norms("input_layernorm")
        | {"self_attention.query_key_value.weight": "3HE D", "self_attention.dense.weight": "D HE"}
        | biases("self_attention.query_key_value self_attention.dense", "3HE D"),
        feed_forward=norms("post_attention_layernorm") | MLP,
        tables={"transformer.word_embeddings.weight": "V D"}
        | norms("transformer.word_embeddings_layernorm", "transformer.ln_f")
        | {"lm_head.weight": "V D"},
        defaults=TIED,
        keys={"F": ()},
        fixed={"head": "its positions' slopes go by head, which is not supported yet"},
        uneven_heads=False,
    ),
    "falcon": Layout(
        "Falcon",
        "transformer.h",
        attention=norms("ln_attn")
        | {"self_attention.query_key_value.weight": "HE+2GE D", "self_attention.dense.weight": "D HE"}
        | biases("self_attention.query_key_value self_attention.dense", "HE+2GE D", "bias"),
        feed_forward=norms("ln_mlp")
        | {name: size for name, size in MLP.items() if name.endswith("weight")}
        | biases("mlp.dense_h_to_4h mlp.dense_4h_to_h", "F D", "bias"),
        tables={"transformer.word_embeddings.weight": "V D"} | norms("transformer.ln_f") | {"lm_head.weight": "V D"},
        defaults=TIED | {"alibi": False},
        fixed={"dim_head": ROTARY},
        uneven_heads=False,
        cache="2HE",
        needs={"new_decoder_architecture": True, "alibi": False},
    ),
}
UNDIVIDED = {"bloom": "BloomForCausalLM takes no position_ids"}  # why a row of it can have but one document
