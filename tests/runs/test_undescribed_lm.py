"""A causal language model that nobody has described, from a directory to a smaller one whose layers are unlike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sprunec.compiler.inspect import inspect_model
from sprunec.families.own_code import trusted
from sprunec.show.report_words import comparison_lines
from tests.helpers import undescribed_lm
from tests.helpers.causal_lms import causal_lm, token_ids
from tests.helpers.undescribed_lm import OwnConfig, OwnForCausalLM
from tests.runs.test_causal_lms import VOCABULARY, run, tokenizer

SCORED = {"pass": "score-mask", "criterion": "magnitude"}


def by_hand(model: Any) -> OwnForCausalLM:
    """Give a Qwen3's weights to the class that has other names for all of them."""
    config = model.config
    rotary = config.to_dict()  # release 4 has its base beside, and 5 in a section
    turns = rotary.get("rope_theta") or rotary["rope_parameters"]["rope_theta"]
    sizes = {"depth": config.num_hidden_layers, "vocab_size": config.vocab_size}
    own = OwnForCausalLM(OwnConfig(**sizes, normed=True, turns=turns))
    state = {"words.weight": model.model.embed_tokens.weight, "top.gain": model.model.norm.weight}
    state["say.weight"] = model.lm_head.weight
    for number, layer in enumerate(model.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        parts = {
            "before.gain": layer.input_layernorm.weight,
            "mixer.into.weight": torch.cat([getattr(attention, f"{name}_proj").weight for name in "qkv"]),
            "mixer.out.weight": attention.o_proj.weight,
            "mixer.of_query.gain": attention.q_norm.weight,
            "mixer.of_key.gain": attention.k_norm.weight,
            "between.gain": layer.post_attention_layernorm.weight,
            "expander.wide.weight": torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]),
            "expander.narrow.weight": mlp.down_proj.weight,
        }
        state |= {f"floors.{number}.{name}": tensor for name, tensor in parts.items()}
    own.load_state_dict(state)
    return own.eval()


@pytest.fixture(params=["own", pytest.param("qwen3 by hand", marks=pytest.mark.slow)])
def dense(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    qwen = causal_lm("qwen3", vocab_size=VOCABULARY, num_hidden_layers=3, tie_word_embeddings=False)
    model = by_hand(qwen)
    if request.param == "own":
        model = OwnForCausalLM(OwnConfig(vocab_size=VOCABULARY, turns=50.0))
        state = by_hand(qwen).state_dict()
        model.load_state_dict({name: state[name] for name in model.state_dict()})
    else:
        ids = token_ids(2, 9)
        with torch.no_grad():
            ours, theirs = model(input_ids=ids).logits, qwen(input_ids=ids, use_cache=False).logits
        assert (ours - theirs).abs().max() < 2e-5 * theirs.abs().max()
    model.save_pretrained(tmp_path / "dense")
    tokenizer().save(str(tmp_path / "dense/tokenizer.json"))
    return tmp_path


def test_a_class_that_nobody_described_is_cut_to_unlike_layers_and_opened(dense: Path) -> None:
    units = ({"unit": "head", "target": {"num_heads": 4}}, {"unit": ["dim_ff", "layer"], "target": {"sparsity": 0.4}})
    report = run(dense, *(SCORED | each for each in units))
    assert report.status == "done"
    assert report.data["comparison"]["max_abs_difference"] < 1e-10
    form, out = report.data["formats"]["huggingface"], dense / "out/model/huggingface"
    assert form["max_abs_difference"] <= form["tolerance"]
    assert form["own_code"] and 0 < form["decoding_difference"] <= form["tolerance"]
    assert "huggingface, opened again, with trust_remote_code=True: " in comparison_lines(report.data)[1]
    assert "has no " in (out / "README.md").read_text()
    sizes = json.loads((out / "config.json").read_text())["pruned"]["layers"]
    assert {layer["config"].get("queries", "none") for layer in sizes if "mixer" not in layer["absent"]} == {4}
    small = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    assert sum(parameter.numel() for parameter in small.parameters()) == report.data["models"]["small"]["parameters"]
    assert (
        len({tuple(layer.expander.wide.weight.shape) for layer in small.floors if hasattr(layer.expander, "wide")}) > 1
    )


def test_inspect_shows_what_a_class_that_nobody_described_can_lose(dense: Path) -> None:
    found = inspect_model(dense / "dense")
    assert {site["unit"] for site in found["sites"]} >= {"kv_group", "head", "dim_ff", "attention", "feed_forward"}
    assert found["parameters"]["total"] == sum(
        parameter.numel() for parameter in AutoModelForCausalLM.from_pretrained(dense / "dense").parameters()
    )
    assert AutoConfig.from_pretrained(dense / "dense").depth == len(found["layers"]) == 3


def test_code_of_the_model_s_directory_goes_along(dense: Path) -> None:
    source = Path(undescribed_lm.__file__).read_text().replace("sprunec-test-own", "sprunec-test-remote")
    (dense / "dense/modeling_own.py").write_text(source.partition("\nAutoConfig.register")[0])
    config = json.loads((dense / "dense/config.json").read_text())
    names = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    changed = config | {"model_type": "sprunec-test-remote", "auto_map": names}
    (dense / "dense/config.json").write_text(json.dumps(changed))
    with trusted():
        report = run(dense, SCORED | {"unit": "head", "target": {"num_heads": 4}})
    assert report.status == "done"
    code = (dense / "out/model/huggingface/modeling_pruned.py").read_text()
    assert "from .modeling_own import OwnForCausalLM, OwnConfig" in code
    form = report.data["formats"]["huggingface"]
    assert form["max_abs_difference"] <= form["tolerance"]
