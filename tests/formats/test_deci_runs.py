"""The format `deci` in runs: what is compared before it is published, and what is refused before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from sprunec.compiler.lower import lower
from sprunec.errors import FormatError, InputError, SprunecError
from sprunec.execution.execute import execute
from sprunec.families.huggingface import decilm_files, decilm_reader
from sprunec.plan.plan import read_plan
from sprunec.units import Kept
from tests.formats.test_deci import CASES, GROUPED, PLAIN, RAGGED, WIDE, layer, tiny
from tests.helpers.causal_lms import token_ids
from tests.helpers.decilm import exported, masked_logits
from tests.helpers.small_plans import MODEL, plan, write
from tests.runs.test_causal_lms import SCORED, directory

EMIT = {"pass": "emit", "formats": ["deci"]}


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_mask_file_that_it_cannot_hold_stops_before_the_training(tmp_path: Path) -> None:
    directory(tmp_path, "llama", **(GROUPED | PLAIN["llama"]))
    heads = SCORED | {"unit": "head", "target": {"num_heads": 4}, "budget": "global", "save_mask": "heads.pt"}
    content = plan(heads, model={"path": "dense"}, evaluate={"tokens": 100})
    execute(lower(read_plan(write(tmp_path, content))), tmp_path / "first")
    loading = {"pass": "load-mask", "path": "heads.pt"}
    path = planned(tmp_path, loading, {"pass": "finetune", "steps": 2})
    with pytest.raises(InputError, match="the format deci can't hold what this mask leaves"):
        execute(lower(read_plan(path)), tmp_path / "out")
