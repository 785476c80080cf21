"""Other families of models, by the keys of their configs and the names of their tensors; needs no torch.

`sprunec` prunes CPM-Ant. Configs and checkpoints of its relatives fit half of the way, and would be pruned into
something else: they are refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

TODAY = "sprunec prunes CPM-Ant, and the models of transformers that docs/families.md lists"
ANY = object()  # a key with whatever value


@dataclass(frozen=True)
class Family:
    """What tells a family.

    Attributes:
        keys: of a config, all of them, with one of these values; `lacks` are keys that it must not have.
        tensors: a pattern of the beginning of a tensor's or a module's name.
        model_types: Hugging Face's names for it.
    """

    name: str
    keys: Mapping[str, Any] = field(default_factory=dict)
    lacks: tuple[str, ...] = ()
    tensors: str = ""
    model_types: tuple[str, ...] = ()


_LLAMA_LAYER = r"(model\.)?layers\.\d+\."
# Of a row that fits and a later one that does, too, the first is told.
RELATIVES: tuple[Family, ...] = (  # in the keys of CPM-Live and ModelCenter
    Family("CPM-Bee", {"position_bias_num_segment_buckets": ANY}, (), r"cpmbee\.", ("cpmbee",)),
    Family("CPM-3", {"max_exact_rate": ANY}),
    Family("T5", {"num_decoder_layers": ANY, "attn_scale": (False,)}, (), "", ("t5", "mt5", "umt5")),
    Family("CPM-2", {"num_decoder_layers": ANY, "length_scale": ANY}),
    Family("T5 or CPM-2", {"num_decoder_layers": ANY}, (), r"decoder\.layers\.\d+(\.(self_att|cross_att|ffn)\b|$)"),
    Family("LLaMA", {"pos_bias_type": ("rotary",), "ffn_activate_fn": ("gated_silu",)}),
    Family("GPT-J", {"pos_bias_type": ("rotary",)}, (), r"(transformer\.)?h\.\d+\.attn\.[qkv]_proj", ("gptj",)),
    Family("BERT or RoBERTa", {"post_layer_norm": (True,)}, (), r"token_type_embedding|pooler\."),
    Family("BERT or RoBERTa", {"type_size": ANY}),
    Family("BERT", {"vocab_size": (21128, 28996, 30522, 105879, 119547)}, ("dim_model", "dim_ff", "hidden_size")),
    Family("GPT-2", {"pos_bias_type": ("none",)}, (), r"(gpt2\.)?position_embedding\."),
    Family("CPM-1", {"length_scale": ANY}, ("prompt_types", "segment_types", "absolute_inner_segment")),
)
OTHERS: tuple[Family, ...] = (  # in Hugging Face's
    Family("ViT", {"patch_size": ANY}, (), r"(vit\.)?patch_embed", ("vit",)),
    Family("GPT-2", {"n_embd": ANY, "n_head": ANY}, (), r"(transformer\.)?h\.\d+\.attn\.c_attn", ("gpt2",)),
    Family("T5", {"d_kv": ANY}, (), r"(encoder|decoder)\.block\.\d+\.layer"),
    Family("BERT", {"type_vocab_size": ANY}, (), r"(bert\.|roberta\.)?encoder\.layer\.\d+", ("bert", "roberta")),
    Family("OPT", {"word_embed_proj_dim": ANY}, (), r"(model\.)?decoder\.layers\.\d+\.(self_attn|fc)", ("opt",)),
    Family("BLOOM or Falcon", {"alibi": ANY}, (), r"(transformer\.)?h\.\d+\.self_attention", ("bloom", "falcon")),
    Family("GPT-NeoX", {"rotary_emb_base": ANY}, (), r"gpt_neox\.", ("gpt_neox",)),
    Family("ChatGLM", {"multi_query_group_num": ANY}, (), r"transformer\.encoder\.layers\.\d+", ("chatglm",)),
    Family("MiniCPM", {"scale_depth": ANY}, (), "", ("minicpm", "minicpm3")),
    Family("Mixtral", {"num_local_experts": ANY}, (), _LLAMA_LAYER + "block_sparse_moe", ("mixtral",)),
    Family("Qwen3-MoE", {"moe_intermediate_size": ANY}, (), _LLAMA_LAYER + r"mlp\.experts", ("qwen3_moe",)),
    Family("Gemma", {"query_pre_attn_scalar": ANY}, (), _LLAMA_LAYER + "pre_feedforward", ("gemma2", "gemma3_text")),
    Family("Phi-3", {"original_max_position_embeddings": ANY}, (), _LLAMA_LAYER + r"self_attn\.qkv_proj", ("phi3",)),
    Family("Qwen3", {}, (), _LLAMA_LAYER + r"self_attn\.q_norm", ("qwen3",)),
    Family("Qwen2", {"use_sliding_window": ANY}, (), _LLAMA_LAYER + r"self_attn\.q_proj\.bias", ("qwen2",)),
    Family("Mistral", {"sliding_window": ANY}, (), "", ("mistral",)),
    Family("Llama", {"num_key_value_heads": ANY}, (), _LLAMA_LAYER + r"(self_attn\.q_proj|attention\.wq)", ("llama",)),
    Family("Llama", {"rms_norm_eps": ANY}),
)
FAMILIES = RELATIVES + OTHERS
_ADAPTER = re.compile(r"\.lora_(A|B|embedding_A|embedding_B)\b|\.lora\.")
_TOKENS, _PROMPTS, _SEGMENTS = "input_embedding.weight", "prompt_embedding.weight", "segment_embedding.weight"
# CPM-Live's relatives, by which of its tables they lack: tokens, prompts, segments.
_BY_TABLES = {(True, False, False): "CPM-Bee or CPM-1", (True, True, False): "CPM-3", (True, False, True): "CPM-Ant+"}


def is_config(value: Mapping[str, Any]) -> bool:
    """Tell whether a file describes a model, whosever."""
    return "dim_model" in value or is_huggingface(value)


def is_huggingface(value: Mapping[str, Any]) -> bool:
    """Tell whether a config follows Hugging Face's conventions, of whatever family."""
    return "model_type" in value or "architectures" in value


def config_family(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """Tell whose config it is by its keys, if it is not CPM-Ant's, and by which key."""
    for family in RELATIVES if "dim_model" in config else FAMILIES:
        keys = family.keys
        fits = (key in config and (values is ANY or config[key] in values) for key, values in keys.items())
        if keys and all(fits) and not any(key in config for key in family.lacks):
            return family.name, next(iter(keys))
    return None


def type_family(model_type: Any) -> str | None:
    """Tell whose a Hugging Face `model_type` is."""
    return next((family.name for family in FAMILIES if model_type in family.model_types), None)


def tensor_family(names: Collection[str]) -> tuple[str, str] | None:
    """Tell whose tensors these are, if they are not CPM-Ant's, and by which one."""
    if names and all(_ADAPTER.search(name) for name in names):
        return "a LoRA adapter", next(iter(names))
    for family in FAMILIES:
        if (found := _first(family, names)) is not None:
            return family.name, found
    name = _BY_TABLES.get((_TOKENS in names, _PROMPTS in names, _SEGMENTS in names))
    if name is None or not any(name.startswith("encoder.layers.") for name in names):
        return None
    return name, f"there is no {_PROMPTS if _PROMPTS not in names else _SEGMENTS}"


def foreign_tensors(names: Collection[str]) -> str | None:
    """Say `these are GPT-2's tensors (transformer.h.0.attn.c_attn.weight)`; None where they may be CPM-Ant's."""
    found = tensor_family(names)
    return f"these are {found[0]}'s tensors ({found[1]})" if found is not None else None


def module_family(name: str) -> str | None:
    """Tell whose module a name stands for, if it is none of CPM-Ant's."""
    return next((family.name for family in FAMILIES if _first(family, [name])), None)


def _first(family: Family, names: Iterable[str]) -> str | None:
    if not family.tensors:
        return None
    pattern = re.compile(family.tensors)
    return next((name for name in names if pattern.match(name)), None)


def remedy(names: Collection[str]) -> str:
    """Say what to do about a checkpoint that lacks tensors of its config: wrappers add to the names."""
    first = {name.partition(".")[0] for name in names}
    if len(first) == 1 and first <= {"module", "model", "_orig_mod"}:
        return f'every name begins with "{first.pop()}.": save it without that word'
    if any(_ADAPTER.search(name) for name in names):
        return "it has a LoRA adapter inside: merge it with merge_and_unload(), and save that"
    return "give the checkpoint's own config"
