"""Configs, checkpoints and plans of other families are refused by name, and no CPM-Ant is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from sprunec.cli import app
from sprunec.compiler.inspect import inspect_model
from sprunec.errors import InputError
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.families.detect import config_family, module_family, tensor_family
from sprunec.plan.bmcook_flags import Flags
from sprunec.plan.model_config import read_config
from sprunec.plan.plan import check_plan
from tests.bmcook.test_real_files import OLD_CONFIG
from tests.helpers.bmcook_files import CONFIG, bmcook
from tests.helpers.bmcook_files import write as write_file
from tests.helpers.small_plans import EMIT, MODEL, TINY, TRAIN, plan, save_weights, write

SIZES = {"vocab_size": 1000, "dim_model": 64, "num_heads": 4, "dim_head": 16, "dim_ff": 128}
ONE, TWO = {"num_layers": 2}, {"num_encoder_layers": 2, "num_decoder_layers": 2}
RELATIVE = {"pos_bias_type": "relative", "position_bias_num_buckets": 32, "position_bias_max_distance": 128}
BIASES = {"norm_bias": True, "att_bias": True, "ffn_bias": True, "proj_bias": False}
PLAIN = dict.fromkeys(BIASES, False)
GATED, SCALED = (
    {"ffn_activate_fn": "gated_gelu"},
    {"length_scale": True, "attn_scale": True, "tied": True, "half": True},
)
# As their authors' own files have them: the keys that matter, and the sizes made small.
BEE = (
    SIZES
    | ONE
    | {"position_bias_num_buckets": 256, "position_bias_num_segment_buckets": 256, "eps": 1e-6, "int4": False}
)
CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "CPM-Bee": (BEE, "CPM-Bee"),
    "CPM-1": (SIZES | ONE | RELATIVE | PLAIN | GATED | SCALED, "CPM-1"),
    "CPM-2": (SIZES | TWO | RELATIVE | PLAIN | GATED | SCALED, "CPM-2"),
    "CPM-3": (OLD_CONFIG | {"max_exact_rate": 0.25, "max_distance_rate": 1.0}, "CPM-3"),
    "T5": (
        SIZES | TWO | RELATIVE | PLAIN | {"ffn_activate_fn": "relu", "length_scale": False, "attn_scale": False},
        "T5",
    ),
    "mT5": (SIZES | TWO | RELATIVE | PLAIN | GATED | {"length_scale": False, "attn_scale": False}, "T5"),
    "GPT-2": (SIZES | ONE | BIASES | {"pos_bias_type": "none", "length_scale": False, "tied": True}, "GPT-2"),
    "GPT-2 without words": (
        {k: v for k, v in (SIZES | ONE | BIASES).items() if k != "vocab_size"} | {"pos_bias_type": "none"},
        "GPT-2",
    ),
    "GPT-J": (SIZES | ONE | {"pos_bias_type": "rotary", "pos_rotary_dim": 64, "length_scale": False}, "GPT-J"),
    "LLaMA": (
        SIZES | ONE | {"pos_bias_type": "rotary", "ffn_activate_fn": "gated_silu", "length_scale": False},
        "LLaMA",
    ),
    "RoBERTa": (
        SIZES | ONE | BIASES | {"type_size": 1, "pos_bias_type": "none", "post_layer_norm": True},
        "BERT or RoBERTa",
    ),
    "BERT's words": ({"vocab_size": 30522}, "BERT"),
    "BERT's words and width": ({"dim_head": 64, "vocab_size": 28996}, "BERT"),
    "ViT": ({"img_size": 256, "patch_size": 16, "hidden_size": 768, "num_layers": 12, "mlp_size": 3072}, "ViT"),
    "Llama": ({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64}, "Llama"),
    "Qwen2": ({"model_type": "qwen2", "hidden_size": 64, "use_sliding_window": False}, "Qwen2"),
    "Qwen3": ({"model_type": "qwen3", "hidden_size": 64}, "Qwen3"),
    "GPT-2 of Hugging Face": ({"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 2}, "GPT-2"),
    "T5 of Hugging Face": ({"model_type": "t5", "d_kv": 16, "d_model": 64}, "T5"),
    "BERT of Hugging Face": ({"model_type": "bert", "hidden_size": 64, "type_vocab_size": 2}, "BERT"),
    "CPM-Bee of Hugging Face": ({"model_type": "cpmbee", "hidden_size": 64}, "CPM-Bee"),
    "one nobody knows": ({"model_type": "xyzzy", "hidden_size": 64}, "xyzzy"),
    "a class alone": ({"architectures": ["LlamaForCausalLM"], "hidden_size": 64}, "LlamaForCausalLM"),
    "Llama without its type": ({"hidden_size": 64, "rms_norm_eps": 1e-5, "num_key_value_heads": 2}, "Llama"),
    "GPT-2 without its type": ({"n_embd": 64, "n_head": 4, "n_layer": 2, "vocab_size": 100}, "GPT-2"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_refused_by_name_everywhere(name: str, tmp_path: Path) -> None:
    content, family = CONFIGS[name]
    (tmp_path / "c.json").write_text(json.dumps(content))
    words = f"this is {family}'s config"
    with pytest.raises(InputError) as caught:
        inspect_model(tmp_path / "c.json")
    (found,) = caught.value.diagnostics
    assert found.message.startswith(words) and found.hint.startswith("sprunec prunes CPM-Ant")
    assert (found.code, found.line) == ("foreign-config", 1)
    for config in ("c.json", content):
        path = write(tmp_path, plan(TRAIN, EMIT, model={"config": config}))
        read, told = check_plan(path)
        assert read is None
        assert [each.severity for each in told if each.message.startswith(words)] == ["error"]
        assert not [each for each in told if each.code == "default-size"]


@pytest.mark.parametrize("command", ["run", "validate", "inspect"])
def test_commands_exit_with_3(command: str, tmp_path: Path) -> None:
    (tmp_path / "bee.json").write_text(json.dumps(BEE))
    path = write(tmp_path, plan(TRAIN, EMIT, model={"config": "bee.json"}))
    result = CliRunner().invoke(app, [command, str(tmp_path / "bee.json" if command == "inspect" else path)])
    assert 3 in (result.exit_code, getattr(result.exception, "exit_code", 0))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "content",
    [
        MODEL,
        OLD_CONFIG,
        CONFIG,
        MODEL | {"a_note_of_mine": 3},
        MODEL | {"sliding_window": None, "n_head": 4, "num_key_value_heads": 8},
        MODEL | {"vocab_size": 30522},
    ],
)
def test_our_own_configs_are_read_whatever_stands_in_them_besides(content: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps(content))
    config, found = read_config(str(tmp_path / "c.json"))
    assert config is not None
    assert {each.severity for each in found} <= {"warning"}
    assert config_family(content) is None


OURS = ModelConfig.from_dict(MODEL).tensors()
LAYER = "model.layers.0."
TENSORS: dict[str, tuple[list[str], str]] = {
    "CPM-Bee": ([name for name in OURS if not name.startswith(("prompt", "segment"))], "CPM-Bee or CPM-1"),
    "CPM-3": ([name for name in OURS if not name.startswith("segment")], "CPM-3"),
    "CPM-Ant+": ([name for name in OURS if not name.startswith("prompt")], "CPM-Ant+"),
    "CPM-Bee of Hugging Face": (["cpmbee.encoder.layers.0.self_att.layernorm_before_attention.weight"], "CPM-Bee"),
    "T5 or CPM-2": ([*OURS, "decoder.layers.0.cross_att.layernorm_before_attention.weight"], "T5 or CPM-2"),
    "GPT-2 of ModelCenter": ([*OURS, "position_embedding.weight"], "GPT-2"),
    "BERT of ModelCenter": ([*OURS, "position_embedding.weight", "token_type_embedding.weight"], "BERT or RoBERTa"),
    "Llama": ([LAYER + "self_attn.q_proj.weight", "lm_head.weight"], "Llama"),
    "Meta's Llama": (["layers.0.attention.wq.weight", "tok_embeddings.weight"], "Llama"),
    "Qwen2": ([LAYER + "self_attn.q_proj.weight", LAYER + "self_attn.q_proj.bias"], "Qwen2"),
    "Qwen3": ([LAYER + "self_attn.q_proj.weight", LAYER + "self_attn.q_norm.weight"], "Qwen3"),
    "Mixtral": ([LAYER + "self_attn.q_proj.weight", LAYER + "block_sparse_moe.gate.weight"], "Mixtral"),
    "Gemma": ([LAYER + "self_attn.q_proj.weight", LAYER + "pre_feedforward_layernorm.weight"], "Gemma"),
    "Phi-3": ([LAYER + "self_attn.qkv_proj.weight"], "Phi-3"),
    "GPT-2": (["transformer.h.0.attn.c_attn.weight", "transformer.wte.weight"], "GPT-2"),
    "GPT-2 bare": (["h.0.attn.c_attn.weight", "wte.weight"], "GPT-2"),
    "GPT-J": (["transformer.h.0.attn.q_proj.weight"], "GPT-J"),
    "GPT-NeoX": (["gpt_neox.layers.0.attention.dense.weight"], "GPT-NeoX"),
    "OPT": (["model.decoder.layers.0.self_attn.q_proj.weight"], "OPT"),
    "BLOOM": (["transformer.h.0.self_attention.query_key_value.weight"], "BLOOM or Falcon"),
    "BERT": (["bert.encoder.layer.0.attention.self.query.weight"], "BERT"),
    "T5": (["encoder.block.0.layer.0.SelfAttention.q.weight", "shared.weight"], "T5"),
    "ChatGLM": (["transformer.encoder.layers.0.self_attention.query_key_value.weight"], "ChatGLM"),
    "an adapter": (["base_model.model.encoder.layers.0.project_q.lora_A.weight"], "a LoRA adapter"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_checkpoint_is_told_by_its_tensors_everywhere(name: str, tmp_path: Path) -> None:
    names, family = TENSORS[name]
    found = tensor_family(names)
    assert found is not None and found[0] == family
    missing = {name for name in OURS if name not in names}
    if not missing:
        return  # they are ours and more, which is told as such
    torch.save({name: torch.ones(OURS.get(name, (4,))) for name in names}, tmp_path / "m.pt")
    words = f"these are {family}'s tensors ("
    with pytest.raises(InputError) as caught:
        inspect_model(tmp_path / "m.pt")
    assert words in str(caught.value) and "sprunec prunes CPM-Ant" in str(caught.value)
    read, told = check_plan(write(tmp_path, plan(TRAIN, EMIT, model={"config": MODEL, "checkpoint": "m.pt"})))
    assert read is None
    assert [each.pointer for each in told if words in each.message] == ["/model/checkpoint"]


def test_our_own_tensors_are_ours_under_every_name() -> None:
    for config in (MODEL, TINY, MODEL | {"mask_modules": [[True, True]] * 3}):
        names = list(ModelConfig.from_dict(config).tensors())
        for prefix in ("", "module.", "model.", "cpmant.", "_orig_mod."):
            assert tensor_family([prefix + name for name in names]) is None
        assert all(module_family(name.removesuffix(".weight")) is None for name in names)
        assert tensor_family([*names, "lm_head.weight", "encoder.layers.0.ffn.bias"]) is None


def test_a_wrapped_state_dict_is_told_as_before(tmp_path: Path) -> None:
    state = torch.load(save_weights(tmp_path / "w.pt"), weights_only=True)
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, tmp_path / "m.pt")
    told = check_plan(write(tmp_path, plan(TRAIN, EMIT, model={"config": MODEL, "checkpoint": "m.pt"})))[1]
    assert [each.hint for each in told] == ['every name begins with "module.": save it without that word']


@pytest.mark.parametrize(
    ("module", "family"),
    [
        ("decoder.layers.0", "T5 or CPM-2"),
        ("decoder.layers.3.cross_att.cross_attention", "T5 or CPM-2"),
        ("transformer.h.0.attn.c_attn", "GPT-2"),
        ("model.layers.0.self_attn.q_proj", "Llama"),
    ],
)
@pytest.mark.parametrize("place", ["pruned_module", "mse_hidn_module", "first_FFN_module"])
def test_bmcooks_plans_that_name_modules_of_others_are_refused(
    place: str, module: str, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_file(tmp_path, "model.json", CONFIG)
    content = bmcook("m4n2_1d")
    content["pruning"]["pruned_module"] = (
        ["input_embedding", module] if place == "pruned_module" else ["input_embedding"]
    )
    named = {"mse_hidn_module": [f"[post]{module}:[pre]{module}"], "mse_hidn_scale": 1}
    content |= {"distillation": named} if place == "mse_hidn_module" else {}
    content |= {"MoEfication": {"is_moefy": False, "first_FFN_module": [module]}} if place == "first_FFN_module" else {}
    path = write_file(tmp_path, "bmcook.json", content)
    told = check_plan(path, flags=Flags(model_config="model.json", load="dense.pt"))[1]
    found = [each for each in told if each.code == "foreign-plan"]
    assert [each.message for each in found] == [f'"{module}" is a module of {family}']
    assert found[0].pointer.endswith(f"/{place}/{1 if place == 'pruned_module' else 0}")
