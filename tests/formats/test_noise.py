"""The limit of a comparison is never below the arithmetic's own noise, which is measured, and is not far above it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sprunec.data.compared import random_batch
from sprunec.families.cpm_ant.blocks import build
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.models.comparison import NOISES, TOLERANCE
from sprunec.models.loading import load_model
from sprunec.passes.measuring import compare_format
from sprunec.plan.export_formats import Reopened
from tests.helpers.small_plans import MODEL, artifact, execute, plan

SCORE = {"pass": "score-mask", "criterion": "magnitude", "unit": "head", "tie_heads": True, "target": {"num_heads": 2}}
SIZES = {"num_heads": 4, "prompt_length": 4, "num_layers": 12}


def restless(path: Path, seed: int, dtype: torch.dtype = torch.float32) -> Path:
    """A model as transformers initialises it, whose linears do not divide by the root of their width: large states."""
    draw = torch.Generator().manual_seed(seed)
    model = build(ModelConfig.from_dict(MODEL | SIZES))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            root = math.sqrt(parameter.shape[1]) if parameter.dim() == 2 and "bias" not in name else 1.0
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * root if parameter.dim() == 2 else 1.0)
    torch.save({name: tensor.to(dtype) for name, tensor in model.state_dict().items()}, path)
    return path


def content(*forms: str, **model: Any) -> dict[str, Any]:
    found = plan(SCORE, {"pass": "emit", "formats": ["sprunec", *forms]}, compare={"tokens": 1000})
    found["model"] = {"config": MODEL | SIZES, "checkpoint": "weights.pt"} | model
    del found["data"], found["evaluate"]
    return found


def check_limit(found: dict[str, Any], largest: float) -> None:
    assert found["tolerance"] == pytest.approx(max(TOLERANCE * max(1.0, largest), NOISES * found["noise"]))
    assert 0 < found["max_abs_difference"] <= found["tolerance"]


def largest_logit(out: Path, form: str) -> float:
    metrics = next(
        entry["metrics"] for entry in json.loads((out / "report.json").read_text())["passes"] if form in entry["name"]
    )
    return float(metrics["largest_logit"])


def test_a_new_model_of_hugging_faces_comes_back_as_theirs(tmp_path: Path) -> None:
    """The form was refused for noise: 2e-4 against 1e-5 of the largest logit."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 128, "hidden_size": 32, "num_attention_heads": 4, "dim_head": 8, "dim_ff": 48}
    sizes |= {"num_hidden_layers": 12, "position_bias_num_buckets": 16, "position_bias_max_distance": 64}
    sizes |= {"prompt_types": 3, "prompt_length": 4, "segment_types": 3}
    model = transformers.CpmAntForCausalLM(transformers.CpmAntConfig(**sizes))
    with torch.no_grad():
        head = model.lm_head.weight
        head.copy_(model.cpmant.input_embedding.weight[: head.shape[0]])
    model.save_pretrained(tmp_path / "hub")
    report = execute(content("huggingface", config="hub/config.json", checkpoint="hub"), tmp_path)
    assert report["status"] == "done" and (tmp_path / "out/model/huggingface/config.json").exists()
    found, largest = report["formats"]["huggingface"], largest_logit(tmp_path / "out", "huggingface")
    check_limit(found, largest)
    assert found["max_abs_difference"] > 2 * TOLERANCE * largest


@pytest.mark.parametrize("seed", [2, 6])
def test_restless_models_pass_by_their_own_noise(seed: int, tmp_path: Path) -> None:
    restless(tmp_path / "weights.pt", seed)
    report = execute(content("cpm-live"), tmp_path)
    assert report["status"] == "done"
    largest = largest_logit(tmp_path / "out", "cpm-live")
    check_limit(report["formats"]["cpm-live"], largest)
    assert report["formats"]["cpm-live"]["max_abs_difference"] > 2 * TOLERANCE * largest
    found = report["comparison"]
    limit = max(TOLERANCE * max(1.0, found["largest_logit"]), NOISES * found["float32_noise"])
    assert found["float32_tolerance"] == pytest.approx(limit) and limit > 2 * TOLERANCE * found["largest_logit"]
    assert found["float32_difference"] <= found["float32_tolerance"]
    assert found["max_abs_difference"] <= found["tolerance"] < 1e-3


@pytest.mark.parametrize(
    ("dtype", "form"), [pytest.param(torch.float16, "pt2", marks=pytest.mark.slow), (torch.bfloat16, "cpm-live")]
)
def test_half_precision_is_held_to_its_own_noise(
    dtype: torch.dtype, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SIZES, "num_layers", 2)
    restless(tmp_path / "weights.pt", 5, dtype)
    found, largest = execute(content(form), tmp_path)["formats"][form], largest_logit(tmp_path / "out", form)
    check_limit(found, largest)
    assert found["dtype"] == str(dtype).removeprefix("torch.") and found["max_abs_difference"] > TOLERANCE * largest


def test_the_noise_is_that_of_the_model_run_plainly(tmp_path: Path) -> None:
    restless(tmp_path / "weights.pt", 2)
    report = execute(content("cpm-live"), tmp_path)
    model = load_model(artifact(tmp_path / "out", "rewrite"))
    inputs = random_batch(ModelConfig.from_dict(MODEL | SIZES), rows=1000 // 68).inputs
    with torch.no_grad():
        single = model.float()(**inputs)[0].double()
        noise = float((single - model.double()(**inputs)[0]).abs().max())
    assert report["formats"]["cpm-live"]["noise"] == pytest.approx(noise, rel=0.5)


@pytest.mark.slow
def test_an_error_beyond_the_noise_is_still_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    restless(tmp_path / "weights.pt", 2)
    whole = compare_format.FORMATS["cpm-live"]
    assert whole.reopen is not None
    noise = execute(content("cpm-live"), tmp_path)["formats"]["cpm-live"]["noise"]
    for times, tokens, status in ((1.0, 990, "done"), (20.0, 980, "comparison-failed")):

        def wrong(*arguments: Any, shift: float = times * noise) -> Reopened:
            opened = whole.reopen(*arguments)
            return replace(opened, logits=lambda inputs: opened.logits(inputs) + shift)

        changed = dict(compare_format.FORMATS) | {"cpm-live": replace(whole, reopen=wrong)}
        with monkeypatch.context() as patch:
            patch.setattr(compare_format, "FORMATS", changed)
            report = execute(content("cpm-live") | {"compare": {"tokens": tokens}}, tmp_path)
        assert report["status"] == status
