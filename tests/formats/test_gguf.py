"""The format `gguf`: what llama.cpp's graphs make of a file is what the masked dense class says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from torch import Tensor

from sprunec.errors import FormatError
from sprunec.units import Kept
from tests.formats.test_deci import ATTENTION, CASES, GROUPED, WIDE, layer
from tests.helpers.causal_lms import causal_lm, token_ids
from tests.helpers.decilm import masked_logits
from tests.helpers.gguf_files import exported
from tests.helpers.llama_graphs import Graph

UNSCALED: dict[str, Any] = {"scale_attn_by_inverse_layer_idx": False}
WHOLE: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "llama", {"mlp_bias": True}),
    ("mistral", "llama", {"sliding_window": None, "tie_word_embeddings": True}),
    ("qwen2", "qwen2", {}),
    ("qwen3", "qwen3", {}),
    ("gemma2", "gemma2", {}),
    ("gemma2", "gemma2", {"query_pre_attn_scalar": 7, "final_logit_softcapping": 3.0}),
    ("gemma3_text", "gemma3", {"num_hidden_layers": 7}),
    ("gemma3_text", "gemma3", {"query_pre_attn_scalar": 7, "layer_types": ["full_attention", "sliding_attention"]}),
    ("gemma3_text", "gemma3", {"layer_types": ["full_attention"] * 2, "tie_word_embeddings": False}),
    ("phi3", "phi3", {"partial_rotary_factor": 0.5}),
    ("gpt2", "gpt2", UNSCALED),
    ("gpt_neox", "gptneox", {"hidden_act": "gelu_new", "rotary_pct": 0.5}),
    ("gpt_neox", "gptneox", {"hidden_act": "gelu_new", "use_parallel_residual": False, "tie_word_embeddings": True}),
]
# Sizes of all kinds by layer: 4, 3 and 6 query heads, and what one lacks the graph gets as zeros.
RAGGED = {name: kept for name, kept in CASES.items() if name != "ragged"} | {
    "ragged": Kept(
        (
            layer((0, 2), (0, 1, 4, 5), WIDE[3:40]),
            layer((1, 2, 3), (3, 4, 7), WIDE[::2]),
            layer((0, 1, 3), (0, 1, 2, 3, 6, 7), WIDE[20:]),
        )
    ),
    "attention first and last alone": Kept(
        (
            {unit: kept for unit, kept in CASES["ragged"][0].items() if unit in ATTENTION},
            CASES["ragged"][1],
            {unit: kept for unit, kept in CASES["ragged"][2].items() if unit in ATTENTION},
        )
    ),
}
PLAIN: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": False, "tie_word_embeddings": True},
    "mistral": {"sliding_window": None},
    "qwen2": {},
}


@torch.no_grad()
def said(model: Any, ids: Tensor) -> Tensor:
    logits: Tensor = model.double()(input_ids=ids[None], use_cache=False).logits[0]
    return logits


@pytest.mark.parametrize(("name", "architecture", "changes"), WHOLE, ids=lambda each: str(each)[:40])
def test_the_graph_makes_of_it_what_the_class_computes(
    name: str, architecture: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    model, ids = causal_lm(name, **changes), token_ids(1, 23)[0]
    file, about = exported(model, tmp_path)
    wanted = said(model, ids)
    assert about["architecture"] == architecture
    assert (Graph(file).logits(ids) - wanted).abs().max() < 1e-5 * wanted.abs().max()  # norms are in float32 there


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("case", RAGGED)
def test_layers_may_be_unlike_in_what_computes_as_llama(name: str, case: str, tmp_path: Path) -> None:
    kept, ids = RAGGED[case], token_ids(1, 11)[0]
    sizes = {key: size for key, size in GROUPED.items() if name != "qwen2" or key != "head_dim"}
    file, about = exported(causal_lm(name, **sizes, **PLAIN[name]), tmp_path, kept)
    model = causal_lm(name, **sizes, **PLAIN[name])
    model.config.head_dim = 6
    model.config.save_pretrained(tmp_path / "dense")
    wanted = masked_logits(tmp_path / "dense", kept, ids)
    graph = Graph(file)
    assert (graph.logits(ids) - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert about["architecture"] == graph.arch == "deci"


def test_what_a_graph_cannot_do_without_is_zeros_and_told(tmp_path: Path) -> None:
    """It passes by a layer with attention and without feed-forward, and takes a head's width from the first layer."""
    model = causal_lm("llama", **GROUPED, **PLAIN["llama"])
    file, about = exported(model, tmp_path, RAGGED["attention first and last alone"])
    assert about["why"][0] == "layer 0, 2 has 32 feed-forward dims whose weights are zeros"
    graph = Graph(file)
    assert graph.inner == [32, 28, 32] and not graph.state["blk.2.ffn_up.weight"].any()
    (tmp_path / "first").mkdir()
    file, about = exported(model, tmp_path / "first", RAGGED["no attention first"])
    assert about["why"][0] == "layer 0 has attention whose weights are zeros"
    assert (Graph(file).heads, Graph(file).groups) == ([1, 4, 4], [1, 4, 2])


def test_alike_layers_of_a_cut_model_need_no_graph_of_their_own(tmp_path: Path) -> None:
    """But for Qwen 2 with fewer heads, whose own graph has them as wide together as the model."""
    groups = Kept([layer((0, 2), (0, 1, 4, 5), WIDE[:32])] * 3)
    ids = token_ids(1, 11)[0]
    for name, architecture in (("llama", "llama"), ("qwen2", "deci")):
        (folder := tmp_path / name).mkdir()
        sizes = {key: size for key, size in GROUPED.items() if name != "qwen2" or key != "head_dim"}
        model = causal_lm(name, **sizes, **PLAIN[name])
        file, about = exported(model, folder, groups)
        assert about["architecture"] == architecture
        model.config.head_dim = 6
        model.config.save_pretrained(folder / "dense")
        wanted = masked_logits(folder / "dense", groups, ids)
        assert (Graph(file).logits(ids) - wanted).abs().max() < 1e-5 * wanted.abs().max()


SCALED: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}),
    ("llama", {"rope_type": "linear", "factor": 2.0}),
    ("qwen3", {"rope_type": "yarn", "factor": 4.0}),
    ("gemma3_text", {"rope_type": "linear", "factor": 2.0}),
    (
        "phi3",
        {"rope_type": "longrope", "short_factor": [1.0, 1.1, 1.3, 2.0], "long_factor": [1.0, 1.5, 2.0, 4.0]},
    ),
]


@pytest.mark.parametrize(("name", "scaling"), SCALED, ids=lambda each: str(each)[:24])
@pytest.mark.parametrize("length", [9, 40], ids=["within what it was trained on", "beyond"])
def test_scaled_positions_are_those_of_the_class(
    name: str, scaling: dict[str, Any], length: int, tmp_path: Path
) -> None:
    trained = {"original_max_position_embeddings": 16} if scaling["rope_type"] != "linear" else {}
    changes: dict[str, Any] = {"rope_theta": 1000.0, "rope_scaling": scaling | trained}
    if name == "gemma3_text":
        changes |= {"num_hidden_layers": 6, "rope_local_base_freq": 500.0}
    model, ids = causal_lm(name, **changes, **({} if name == "gemma3_text" else trained)), token_ids(1, length)[0]
    file, _ = exported(model, tmp_path)
    wanted, graph = said(model, ids), Graph(file)
    assert (graph.logits(ids) - wanted).abs().max() < 1e-5 * wanted.abs().max()
    graph.keys[f"{graph.arch}.rope.freq_base"] *= 0.5
    assert (graph.logits(ids) - wanted).abs().max() > 1e-3 * wanted.abs().max()


PACKED = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 16}


@pytest.mark.parametrize(
    ("kind", "stored", "apart"),
    [("keep", "F32", 1e-6), ("f32", "F32", 1e-6), ("f16", "F16", 5e-3), ("bf16", "BF16", 5e-2), ("q8_0", "Q8_0", 5e-2)],
)
def test_matrices_are_of_the_type_that_is_asked_for(kind: str, stored: str, apart: float, tmp_path: Path) -> None:
    model, ids = causal_lm("qwen3", **PACKED), token_ids(1, 11)[0]
    file, about = exported(model, tmp_path, type=kind)
    for tensor in GGUFReader(file).tensors:
        assert tensor.tensor_type.name == (stored if len(tensor.shape) == 2 else "F32"), tensor.name
    wanted = said(model, ids)
    gap = (Graph(file).logits(ids) - wanted).abs().max() / wanted.abs().max()
    assert gap < apart and (stored == "F32" or gap > apart / 100)
    assert about["dtype"] == stored.lower()


def test_what_a_bfloat16_model_is_kept_as(tmp_path: Path) -> None:
    file, about = exported(causal_lm("llama").to(torch.bfloat16), tmp_path)
    assert about["dtype"] == "bf16" and Graph(file).keys["general.file_type"] == 32
    assert {tensor.tensor_type.name for tensor in GGUFReader(file).tensors} == {"BF16", "F32"}


@pytest.mark.parametrize(("dtype", "loose"), [(torch.bfloat16, "BF16"), (torch.float32, "F16")], ids=str)
def test_rows_that_cannot_be_packed_stay_in_sixteen_bits(dtype: torch.dtype, loose: str, tmp_path: Path) -> None:
    model = causal_lm("qwen3", **PACKED | {"intermediate_size": 72}).to(dtype)
    file, about = exported(model, tmp_path, type="q8_0")
    there = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(file).tensors if len(tensor.shape) == 2}
    assert {name for name, kind in there.items() if kind == loose} == {f"blk.{n}.ffn_down.weight" for n in range(2)}
    assert about["why"] == [
        "2 matrices are in 16 bits, since their rows are no multiples of 32: blk.0.ffn_down.weight",
        "there is no tokenizer",
    ]


def test_numbers_beyond_float16_are_refused_with_the_tensor(tmp_path: Path) -> None:
    model = causal_lm("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 5] = 70_000.0
    with pytest.raises(FormatError, match=r"blk.1.ffn_down.weight has numbers above 65504, which f16 does not hold"):
        exported(model, tmp_path, type="f16")


def test_a_graph_without_a_window_says_how_far_it_computes_the_model(tmp_path: Path) -> None:
    """Beyond its window, Mistral's class sees less than the graph does."""
    model, ids = causal_lm("mistral", sliding_window=8), token_ids(1, 12)[0]
    file, about = exported(model, tmp_path)
    graph, wanted = Graph(file), said(model, ids)
    apart = (graph.logits(ids) - wanted).abs().max(dim=1).values
    assert graph.key("context_length") == 8 and "the context is 8 tokens" in about["why"][0]
    assert apart[:8].max() < 1e-4 and apart[8:].min() > 1e-2


def test_keys_say_what_the_file_is(tmp_path: Path) -> None:
    file, _ = exported(causal_lm("gemma2"), tmp_path, type="f16")
    keys = Graph(file).keys
    general = {key.removeprefix("general."): value for key, value in keys.items() if key.startswith("general.")}
    assert general == {
        "architecture": "gemma2",
        "type": "model",
        "name": "Gemma 2",
        "size_label": "37K",
        "file_type": 1,
        "quantization_version": 2,
    }
    own = {key.removeprefix("gemma2."): value for key, value in keys.items() if key.startswith("gemma2.")}
    assert own == {
        "context_length": 64,
        "embedding_length": 48,
        "block_count": 2,
        "feed_forward_length": 56,
        "attention.head_count": 6,
        "attention.head_count_kv": 2,
        "attention.key_length": 10,
        "attention.value_length": 10,
        "vocab_size": 97,
        "attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "attention.sliding_window": 8,
        "rope.dimension_count": 10,
        "rope.freq_base": 10_000.0,
    }
