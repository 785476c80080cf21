"""A file's tensors and header, as the model of transformers that it was made of has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from sprunec.checkpoint.reader import open_tensors
from sprunec.families.gguf.gguf_config import config_document
from sprunec.families.gguf.model_tensors import model_outputs
from sprunec.families.huggingface.transformers_config import TransformersConfig
from sprunec.plan.model_config import read_config
from tests.helpers.causal_lms import causal_lm
from tests.helpers.gguf_files import exported

CHANGES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": False},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {},
    "gemma3_text": {"num_hidden_layers": 7},
    "phi3": {"partial_rotary_factor": 0.5},
    "gpt2": {"scale_attn_by_inverse_layer_idx": False},
    "gpt_neox": {"rotary_pct": 0.5},
}
NAMED_ELSEWHERE = {"transformers_version", "dtype", "architectures", "_name_or_path", "attention_bias", "head_dim"}


@pytest.mark.parametrize("name", CHANGES)
def test_tensors_and_config_are_the_directorys(name: str, tmp_path: Path) -> None:
    file, _ = exported(causal_lm(name, **CHANGES[name]), tmp_path)
    config, _ = read_config(str(file))
    assert isinstance(config, TransformersConfig)
    wanted = load_file(tmp_path / "dense/model.safetensors")
    outputs = model_outputs(config, open_tensors(file))
    assert outputs.keys() == wanted.keys()
    for tensor, output in outputs.items():
        found = torch.cat(list(output.parts()))
        gap = 1.2e-7 if "gemma" in name and "norm" in tensor else 0  # norms lie there plus one
        assert found.shape == output.shape == wanted[tensor].shape
        assert (found - wanted[tensor]).abs().max() <= gap, tensor


@pytest.mark.parametrize("name", [name for name in CHANGES if name != "mistral"])  # which is read as a Llama
def test_transformers_reads_the_same_of_both_configs(name: str, tmp_path: Path) -> None:
    file, _ = exported(causal_lm(name, **CHANGES[name]), tmp_path)
    found, wanted = (
        dict[str, Any](each.to_dict())
        for each in (AutoConfig.for_model(**config_document(file)), AutoConfig.from_pretrained(tmp_path / "dense"))
    )
    found |= {key: wanted[key] for key in wanted if key.endswith("token_id")}  # of a file without a tokenizer
    assert {key for key in wanted if wanted[key] != found.get(key)} <= NAMED_ELSEWHERE
