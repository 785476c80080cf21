"""The format `deci`: what vLLM's loader would make of it is what the masked dense class says."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from sprunec.compiler.lower import lower
from sprunec.errors import FormatError, InputError, SprunecError
from sprunec.execution.execute import execute
from sprunec.families.huggingface import decilm_files, decilm_reader
from sprunec.plan.plan import read_plan
from sprunec.units import Kept
from tests.helpers.causal_lms import causal_lm, token_ids
from tests.helpers.decilm import Loaded, exported, masked_logits, width_of
from tests.helpers.small_plans import MODEL, plan, write
from tests.runs.test_causal_lms import SCORED, directory

GROUPED = {"num_attention_heads": 8, "num_key_value_heads": 4, "num_hidden_layers": 3, "head_dim": 6}
PLAIN: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": False, "tie_word_embeddings": True},
    "mistral": {"sliding_window": None},
}
EMIT = {"pass": "emit", "formats": ["deci"]}
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


def planned(folder: Path, *passes: dict[str, Any]) -> Path:
    content = plan(*passes, EMIT, name="small", model={"path": "dense"}, evaluate={"tokens": 100})
    return write(folder, content)


@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.bfloat16], ids=str)
def test_a_run_compares_it_and_config_and_tokenizer_are_there(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    given = directory(tmp_path, "mistral", **(GROUPED | PLAIN["mistral"] | {"dtype": dtype}))
    tiny("mistral", dtype, vocab_size=300).save_pretrained(given)
    dims = SCORED | {"unit": "dim_ff", "target": {"sparsity": 0.4}, "budget": "global"}
    whole = SCORED | {"unit": "layer", "target": {"num_attention": 2, "num_feed_forward": 2}, "budget": "global"}
    groups = SCORED | {"unit": "kv_group", "target": {"num_kv_groups": 3}}
    report = execute(lower(read_plan(planned(tmp_path, groups, dims, whole))), tmp_path / "out")
    assert report.status == "done", report.data["error"]
    form, out = report.data["formats"]["deci"], tmp_path / "out/model/deci"
    assert form["max_abs_difference"] <= form["tolerance"]
    assert form["tolerance"] < 1e-3 * report.data["comparison"]["largest_logit"]
    assert form["dtype"] == str(dtype).removeprefix("torch.")
    config = AutoConfig.from_pretrained(out, trust_remote_code=True)
    assert sum(not block.attention.no_op for block in config.block_configs) >= 2
    assert (out / "tokenizer.json").read_bytes() == (given / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0},
    ],
    ids=lambda scaling: str(scaling["rope_type"]),
)
def test_scaled_positions_are_those_of_the_class(
    scaling: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    older = {"rope_theta": 1000.0, "rope_scaling": {**scaling, "original_max_position_embeddings": 16}}
    model, ids = tiny("llama", **older), token_ids(1, 40)[0]
    out = exported(model, CASES["ragged"], tmp_path)
    masked, plain = (
        masked_logits(tmp_path / "dense", CASES["ragged"], ids),
        json.loads((out / "config.json").read_text()),
    )
    with torch.no_grad():
        assert (decilm_reader.opened(out)(ids) - masked).abs().max() < 1e-4 * masked.abs().max()
        plain["rope_parameters"]["rope_type"] = "default"
        (out / "config.json").write_text(json.dumps(plain))
        assert (decilm_reader.opened(out)(ids) - masked).abs().max() > 1e-2 * masked.abs().max()


def test_a_run_without_attention_in_front_says_what_was_added(tmp_path: Path) -> None:
    directory(tmp_path, "llama", **(GROUPED | PLAIN["llama"]))
    (tmp_path / "gone.json").write_text(json.dumps([[True, False], [False, False], [False, True]]))
    path = planned(tmp_path, {"pass": "load-mask", "path": "gone.json"})
    report = execute(lower(read_plan(path)), tmp_path / "out")
    form, out = report.data["formats"]["deci"], tmp_path / "out/model/deci"
    assert report.status == "done" and form["max_abs_difference"] <= form["tolerance"]
    blocks = json.loads((out / "config.json").read_text())["block_configs"]
    assert [(block["attention"]["no_op"], block["ffn"]["no_op"]) for block in blocks] == [
        (False, False), (False, False), (False, True)
    ]  # fmt: skip
    assert "In it the first layer has attention whose weights are zeros." in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("what", "value"),
    [
        ("rotary", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
        pytest.param("_blocks", [], marks=pytest.mark.slow),
    ],
)
def test_what_is_not_the_model_that_was_cut_is_not_published(
    what: str, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory(tmp_path, "llama", **(GROUPED | PLAIN["llama"]))
    monkeypatch.setattr(decilm_files, what, lambda *_: value)
    dims = SCORED | {"unit": "dim_ff", "target": {"dim_ff": 40}}
    with pytest.raises(SprunecError, match="the format deci differs|cannot open the format deci"):
        execute(lower(read_plan(planned(tmp_path, dims))), tmp_path / "out")
    assert not (tmp_path / "out/model").exists()


@pytest.mark.parametrize(
    ("name", "changes", "why"),
    [
        ("qwen3", {}, "it is for what computes as Llama: model_type llama or mistral"),
        ("granite", {}, "it is for what computes as Llama"),
        ("llama", {"attention_bias": True}, "its linears have no biases, and attention_bias is true"),
        ("llama", {"mlp_bias": True, "attention_bias": False}, "its linears have no biases, and mlp_bias is true"),
        ("llama", {"hidden_act": "gelu", "attention_bias": False}, "silu gates, and hidden_act is gelu"),
        ("mistral", {"sliding_window": 8}, "its layers see all positions before, and sliding_window is 8"),
    ],
)
def test_models_that_it_cannot_be_are_refused_before_any_work(
    name: str, changes: dict[str, Any], why: str, tmp_path: Path
) -> None:
    directory(tmp_path, name, **changes)
    with pytest.raises(InputError, match=why) as caught:
        read_plan(planned(tmp_path))
    assert 'emit "huggingface" instead' in str(caught.value)


def test_cpm_ant_and_llama_have_forms_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the format deci can't hold this model: it is for what computes as Llama"):
        read_plan(write(tmp_path, plan({"pass": "train", "steps": 1}, EMIT, model={"config": MODEL})))
    directory(tmp_path, "llama")
    content = plan({"pass": "emit", "formats": ["cpm-live"]}, model={"path": "dense"})
    with pytest.raises(InputError, match="the format cpm-live can't hold this model: it is CPM-Ant's own"):
        read_plan(write(tmp_path, content))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (
            {"unit": "head", "target": {"num_heads": 4}, "budget": "global"},
            '"global" lets layers keep unlike numbers of "head"',
        ),
        (
            {"unit": "kv_group", "target": {"sparsity": 0.2}, "budget": "global"},
            'sparsity lets layers keep unlike numbers of "kv_group"',
        ),
        (
            {"unit": "kv_group", "target": {"num_kv_groups": 2}, "budget": "global"},
            '"global" lets layers keep unlike numbers',
        ),
    ],
)
def test_passes_that_leave_unlike_numbers_of_heads_are_refused(
    options: dict[str, Any], why: str, tmp_path: Path
) -> None:
    directory(tmp_path, "llama", **(GROUPED | PLAIN["llama"]))
    with pytest.raises(InputError, match=f"{why}.* and the format deci has one number of query heads for all"):
        read_plan(planned(tmp_path, SCORED | options))
    fine = {"unit": ["dim_ff", "layer"], "target": {"sparsity": 0.2}, "budget": "global"}
    assert read_plan(planned(tmp_path, SCORED | fine))


def test_unlike_numbers_of_heads_are_told_by_layer_when_they_come_all_the_same(tmp_path: Path) -> None:
    unlike = Kept((RAGGED[0], RAGGED[1], layer((1,), (2, 3), WIDE)))
    with pytest.raises(FormatError, match="a layer has 2 query heads and another 4, and it has one number for all"):
        exported(tiny("llama"), unlike, tmp_path)


def test_a_mask_file_that_it_cannot_hold_stops_before_the_training(tmp_path: Path) -> None:
    directory(tmp_path, "llama", **(GROUPED | PLAIN["llama"]))
    heads = SCORED | {"unit": "head", "target": {"num_heads": 4}, "budget": "global", "save_mask": "heads.pt"}
    content = plan(heads, model={"path": "dense"}, evaluate={"tokens": 100})
    execute(lower(read_plan(write(tmp_path, content))), tmp_path / "first")
    loading = {"pass": "load-mask", "path": "heads.pt"}
    path = planned(tmp_path, loading, {"pass": "finetune", "steps": 2})
    with pytest.raises(InputError, match="the format deci can't hold what this mask leaves"):
        execute(lower(read_plan(path)), tmp_path / "out")
