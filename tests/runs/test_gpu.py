"""What only a CUDA device shows: kernels of other precisions, and the same masks and comparisons there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import sprunec
from tests.conftest import TINY, random_batch, tiny_model
from tests.helpers.small_plans import EMIT, mask_pass, plan, write
from tests.runs.test_block_by_block_runs import write_plan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="gpu: no CUDA device here"),
]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_on_the_device_is_exact(precision: str, tmp_path: Path) -> None:
    content = plan(
        {"pass": "train", "steps": 30},
        mask_pass("head", {"num_heads": 3}, steps=40, budget="global"),
        {"pass": "finetune", "steps": 5},
        EMIT,
        engine={"device": "cuda", "precision": precision},
    )
    report = sprunec.execute(sprunec.lower(sprunec.read_plan(write(tmp_path, content))), tmp_path / "out").data
    assert report["comparison"]["max_abs_difference"] <= 1e-9
    losses = [entry["metrics"]["loss"] for entry in report["passes"] if entry["pass"] == "train"]
    assert losses[0] < 4.5
    assert report["models"]["small"]["loss"] == pytest.approx(report["models"]["masked"]["loss"], abs=0.02)


@pytest.mark.parametrize("engine", [{"activation_checkpointing": True}, {"offload": True}])
def test_what_saves_memory_changes_no_mask(engine: dict[str, bool], tmp_path: Path) -> None:
    kept = []
    for number, options in enumerate(({}, engine)):
        content = plan(
            {"pass": "train", "steps": 5},
            mask_pass("head", {"num_heads": 3}, steps=5, budget="global"),
            engine={"device": "cuda", "precision": "bf16"} | options,
        )
        graph = sprunec.lower(sprunec.read_plan(write(tmp_path, content)))
        kept.append(sprunec.execute(graph, tmp_path / str(number)).data["kept"])
    assert kept[0] == kept[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_padding_rows_stay_finite_on_the_device(dtype: torch.dtype) -> None:
    model = tiny_model().to("cuda", dtype)
    batch = {name: tensor.cuda() for name, tensor in random_batch().items()}
    logits, _ = model(**batch)
    logits.float().square().mean().backward()
    assert torch.isfinite(logits).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    with torch.no_grad():
        reference = tiny_model()(**random_batch())[0]
    assert (logits.cpu().float() - reference).abs().max() < (1e-4 if dtype == torch.float32 else 0.3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_fully_masked_row_gets_no_attention_on_the_device(dtype: torch.dtype) -> None:
    attention = tiny_model().encoder.layers[0].self_att.self_attention.to("cuda", dtype)
    hidden = torch.randn(1, 8, TINY["dim_model"], device="cuda", dtype=dtype)
    bias = torch.zeros(1, TINY["num_heads"], 8, 8, device="cuda", dtype=dtype)
    bias[:, :, 2] = float("-inf")
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            mixed = attention(hidden, bias)
        assert torch.equal(mixed[:, 2], torch.zeros_like(mixed[:, 2]))


@pytest.mark.parametrize("hidden_states", ["memory", "disk"])
def test_a_model_goes_block_by_block_through_the_device(hidden_states: str, tmp_path: Path) -> None:
    """Scored, refitted and measured there, it is the model that the CPU makes of it."""
    found = []
    for device in ("cpu", "cuda"):
        path = write_plan(tmp_path / device, engine={"device": device, "hidden_states": hidden_states})
        found.append(sprunec.execute(sprunec.lower(sprunec.read_plan(path)), tmp_path / device / "out").data)
    ours, theirs = (report["models"] for report in found)
    assert found[0]["kept"] == found[1]["kept"]
    for role in ours:
        assert theirs[role]["loss"] == pytest.approx(ours[role]["loss"], abs=1e-3)
