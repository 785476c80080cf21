"""The format `deci`: what vLLM's loader would make of it is what the masked dense class says."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sprunec.families.huggingface import decilm_files, decilm_reader
from sprunec.units import Kept
from tests.helpers.causal_lms import causal_lm, token_ids
from tests.helpers.decilm import Loaded, exported, masked_logits, width_of

GROUPED = {"num_attention_heads": 8, "num_key_value_heads": 4, "num_hidden_layers": 3, "head_dim": 6}
PLAIN: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": False, "tie_word_embeddings": True},
    "mistral": {"sliding_window": None},
}
ATTENTION, WIDE = ("kv_group", "head", "dim_head"), tuple(range(56))


def layer(groups: tuple[int, ...], heads: tuple[int, ...], dims: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {"kv_group": groups, "head": heads, "dim_head": tuple(range(6)), "dim_ff": dims}


# Four query heads everywhere: two groups whole, one head of each of four groups, two other groups whole.
RAGGED = (
    layer((0, 2), (0, 1, 4, 5), WIDE[3:40]),
    layer((0, 1, 2, 3), (1, 2, 5, 6), WIDE[::2]),
    layer((1, 3), (2, 3, 6, 7), WIDE[20:]),
)


def without(number: int, *units: str) -> Kept:
    layers = list(RAGGED)
    layers[number] = {unit: kept for unit, kept in layers[number].items() if unit not in units}
    return Kept(layers)


CASES = {
    "ragged": Kept(RAGGED),
    "no attention first": without(0, *ATTENTION),
    "no attention later": without(1, *ATTENTION),
    "no feed-forward": without(1, "dim_ff"),
    "no first block": without(0, *ATTENTION, "dim_ff"),
    "no block": without(1, *ATTENTION, "dim_ff"),
}


def tiny(name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    return causal_lm(name, **(GROUPED | PLAIN[name] | changes)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", PLAIN)
def test_the_loader_makes_of_it_what_the_masked_class_computes(
    name: str, case: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    kept, ids = CASES[case], token_ids(1, 11)[0]
    out = exported(tiny(name, dtype), kept, tmp_path)
    masked, loaded = masked_logits(tmp_path / "dense", kept, ids), Loaded(out)
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {dtype}
    assert (loaded.logits(ids) - masked).abs().max() < 1e-5 * masked.abs().max()  # the class's norms are in float32
    with torch.no_grad():
        ours = decilm_reader.opened(out)(ids)
    assert (ours - masked).abs().max() < 1e-4 * masked.abs().max()


def test_heads_need_not_divide_the_width(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama's own config refuses such a number; this one says how wide a head is."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    model, ids = tiny("llama", num_attention_heads=6, num_key_value_heads=1), token_ids(1, 11)[0]
    kept = Kept(layer((0,), heads, WIDE) for heads in ((0, 1, 2, 3, 5), (1, 2, 3, 4, 5), (0, 1, 2, 4, 5)))
    out = exported(model, kept, tmp_path)
    masked = masked_logits(tmp_path / "dense", kept, ids)
    assert json.loads((out / "config.json").read_text())["num_attention_heads"] == 5
    with torch.no_grad():
        assert (decilm_reader.opened(out)(ids) - masked).abs().max() < 1e-4 * masked.abs().max()
    assert (Loaded(out).logits(ids) - masked).abs().max() < 1e-5 * masked.abs().max()


def test_blocks_say_what_each_layer_has(tmp_path: Path) -> None:
    about = json.loads((exported(tiny("llama"), without(2, *ATTENTION), tmp_path) / "config.json").read_text())
    assert (about["model_type"], about["architectures"]) == ("nemotron-nas", ["DeciLMForCausalLM"])
    assert (about["num_attention_heads"], about["head_dim"], about["num_hidden_layers"]) == (4, 6, 3)
    assert (about["num_key_value_heads"], about["intermediate_size"], about["tie_word_embeddings"]) == (
        None,
        None,
        True,
    )
    there = {"no_op": False, "replace_with_linear": False}
    assert about["block_configs"] == [
        {"attention": there | {"n_heads_in_group": 2}, "ffn": there | {"intermediate_size": 37}},
        {"attention": there | {"n_heads_in_group": 1}, "ffn": there | {"intermediate_size": 28}},
        {"attention": there | {"no_op": True, "n_heads_in_group": None}, "ffn": there | {"intermediate_size": 36}},
    ]


def test_a_first_layer_without_attention_gets_one_that_adds_nothing(tmp_path: Path) -> None:
    """vLLM's loader norms what comes in together with a residual, and there is none before an attention."""
    out = exported(tiny("llama"), without(0, *ATTENTION), tmp_path)
    state = Loaded(out).state
    added = {
        name: tensor
        for name, tensor in state.items()
        if name.startswith(("model.layers.0.self_attn", "model.layers.0.input"))
    }
    assert len(added) == 5 and not any(tensor.any() for tensor in added.values())
    assert state["model.layers.0.self_attn.k_proj.weight"].shape == (6, 48)  # one group, the least there can be
    first = json.loads((out / "config.json").read_text())["block_configs"][0]
    assert first["attention"]["n_heads_in_group"] == 4


def test_widths_are_told_by_factors_only_where_these_say_all_of_them(tmp_path: Path) -> None:
    even = [{**layer, "dim_ff": tuple(range(256 * size))} for layer, size in zip(RAGGED, (1, 3, 2), strict=True)]
    model = tiny("llama", intermediate_size=768)
    about = json.loads((exported(model, Kept(even), tmp_path / "even") / "config.json").read_text())
    sections = [block["ffn"] for block in about["block_configs"]]
    assert [width_of(section, 48) for section in sections] == [256, 768, 512]
    assert [section["ffn_mult"] for section in sections] == [8.0, 24.0, 16.0]
    assert not any("intermediate_size" in section for section in sections)
    odd = [*even[:2], {**even[2], "dim_ff": tuple(range(255))}]
    about = json.loads((exported(model, Kept(odd), tmp_path / "odd") / "config.json").read_text())
    assert [block["ffn"] for block in about["block_configs"]] == [
        {"no_op": False, "replace_with_linear": False, "intermediate_size": size} for size in (256, 768, 255)
    ]


def test_every_multiple_has_a_factor_that_says_it() -> None:
    """After the six digits that some readers keep, too."""
    draw = random.Random(0)
    for _ in range(2000):
        width, inner = 8 * draw.randint(1, 4096), 256 * draw.randint(1, 300)
        shape = decilm_files.TransformersLayer(8, 4, 6, inner)
        (block,) = decilm_files._blocks([shape], width)
        factor = block["ffn"]["ffn_mult"]
        assert factor == round(factor, 6)
        assert width_of(block["ffn"], width) == inner


def test_rotary_bases_of_either_release_are_told_alike() -> None:
    scaled, most = {"rope_type": "llama3", "factor": 8.0}, {"max_position_embeddings": 64}
    trained = {"original_max_position_embeddings": 64}
    for given in ({"rope_parameters": {**scaled, "rope_theta": 5e5}}, {"rope_theta": 5e5, "rope_scaling": scaled}):
        found = decilm_files.rotary(given | most)
        assert found == {"rope_parameters": {**scaled, **trained, "rope_theta": 5e5}, "rope_theta": 5e5}
    older = decilm_files.rotary({"rope_scaling": {"type": "linear", "factor": 2.0}} | most)
    assert older["rope_parameters"] == {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}
    usual = {"rope_type": "default", "rope_theta": 10_000.0}
    assert decilm_files.rotary(most) == {"rope_parameters": usual, "rope_theta": 10_000.0}
