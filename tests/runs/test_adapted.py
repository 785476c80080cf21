"""Adapters and frozen weights in plans: what a pass leaves, across families, cuts, processes and stops."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sprunec.families.model_directory import open_model_tensors
from tests.helpers.causal_lms import PLAIN
from tests.helpers.processes import STEPS, events, farthest_losses, launch, saves, start, wait_until
from tests.helpers.small_plans import execute, mask_pass, plan, read_report
from tests.runs.test_causal_lms import SCORED, directory, run

LORA = {"kind": "lora", "rank": 4}
ADAPTED = {"pass": "finetune", "steps": 4, "learning_rate": 1e-2, "adapter": LORA}
CLOSE = 1e-5


def weights(out: Path, digest: str) -> dict[str, Tensor]:
    tensors = open_model_tensors(out / "store" / digest)
    return {name: tensors.copy(name) for name in tensors}


def by_pass(report: dict[str, Any], out: Path) -> dict[str, dict[str, Tensor]]:
    """The weights behind each pass that has a model."""
    named = [
        entry for entry in report["passes"] if entry["pass"] in ("load", "init", "train", "train-mask", "finetune")
    ]
    return {entry["pass"]: weights(out, entry["digest"]) for entry in named}


@pytest.mark.parametrize(
    "name", ["llama", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gpt2", "qwen3", "gemma3_text", "gpt_neox"))]
)
def test_what_a_cut_leaves_is_recovered_by_adapters(name: str, tmp_path: Path) -> None:
    directory(tmp_path, name, torch.bfloat16, **PLAIN.get(name, {}))
    cut = SCORED | {"unit": ["head", "dim_ff"], "target": {"num_heads": 4, "dim_ff": 40}}
    report = run(tmp_path, cut, ADAPTED)
    assert report.status == "done"
    assert report.data["comparison"]["max_abs_difference"] <= report.data["comparison"]["tolerance"]
    (tuned,) = (entry["metrics"] for entry in report.data["passes"] if entry["pass"] == "finetune")
    about = tuned["adapter"]
    assert 0 < about["parameters"] < tuned["parameters"]
    assert 0 < about["merge_difference"] <= about["merge_tolerance"]
    entries = [entry for entry in report.data["passes"] if entry["pass"] in ("rewrite", "finetune")]
    before, after = (weights(tmp_path / "out", entry["digest"]) for entry in entries)
    moved = {n for n in before if not torch.equal(before[n].float(), after[n].float())}
    assert before.keys() == after.keys() and {before[n].dim() for n in moved} == {2}
    assert not any("embed" in n or "norm" in n or "wte" in n for n in moved)
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}


@pytest.mark.parametrize("name", ["qwen3", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_gates_learn_beside_adapters(name: str, tmp_path: Path) -> None:
    directory(tmp_path, name, **PLAIN.get(name, {}))
    gates = {"pass": "train-mask", "unit": ["head", "dim_ff"], "target": {"num_heads": 4, "dim_ff": 40}}
    report = run(tmp_path, gates | {"budget": "per-layer", "steps": 4, "adapter": LORA, "learning_rate": 1e-2})
    assert report.status in ("done", "target-missed")  # no gate settles in four steps
    assert report.data["comparison"]["max_abs_difference"] <= report.data["comparison"]["tolerance"]
    (learned,) = (entry["metrics"] for entry in report.data["passes"] if entry["pass"] == "train-mask")
    assert learned["adapter"]["merge_difference"] <= learned["adapter"]["merge_tolerance"]


def chain(**engine: Any) -> dict[str, Any]:
    """Every way to leave weights out of training, in two parts a rank; what is cut is ragged."""
    content = plan(
        {"pass": "train", "steps": STEPS, "freeze": ["embedding", "norm"]},
        mask_pass("head", {"num_heads": 3}, steps=STEPS, budget="global", mask_learning_rate=0.1, freeze=["*"]),
        {"pass": "finetune", "steps": STEPS, "adapter": LORA, "learning_rate": 1e-2},
        mask_pass("dim_ff", {"dim_ff": 20}, steps=STEPS, adapter=LORA, learning_rate=1e-2, mask_learning_rate=0.1),
        training={"accumulate": 2, "checkpoint_every": 5},
        engine=engine,
    )
    content["data"]["batch_size"] = 8
    return content


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    execute(chain(), folder)
    return folder


def test_frozen_weights_are_what_they_were_to_the_bit(alone: Path, tmp_path: Path) -> None:
    found = by_pass(read_report(alone / "out"), alone / "out")
    first = found["init"] if "init" in found else found["load"]
    trained, masked = (
        found["train"],
        [
            weights(alone / "out", entry["digest"])
            for entry in read_report(alone / "out")["passes"]
            if entry["pass"] == "train-mask"
        ],
    )
    same = {name for name in first if torch.equal(first[name], trained[name])}
    assert same == {name for name in first if "embedding" in name or "norm" in name}
    assert all(torch.equal(trained[name], masked[0][name]) for name in trained)


@pytest.mark.parametrize("sharding", ["none", "full"])
@pytest.mark.slow
def test_two_processes_train_what_is_left_as_one(sharding: str, alone: Path, tmp_path: Path) -> None:
    done = launch(tmp_path, chain(sharding=sharding))
    assert done.returncode == 4, done.stderr[-3000:]  # no mask settles in 20 steps
    assert len(events(tmp_path)) == 4 * STEPS
    assert farthest_losses(tmp_path, alone) < CLOSE


def test_a_kill_costs_no_byte_and_saves_hold_what_trains(alone: Path, tmp_path: Path) -> None:
    running = start(tmp_path, chain(), processes=1)
    folder = tmp_path / "out/store"

    def adapted() -> list[Path]:
        return [path for path in folder.glob("partial-*/step-*") if path.name >= "step-000000010" and late(tmp_path)]

    wait_until(adapted, running)
    saved = torch.load(adapted()[0], weights_only=True)
    os.kill(running.pid, signal.SIGKILL)
    running.communicate()
    assert saved["model"] and all("lora_" in name for name in saved["model"])
    assert len(saved["optimizer"]["state"]) == len(saved["model"])
    assert saves(tmp_path)
    execute(chain(), tmp_path)
    entries = read_report(tmp_path / "out")["passes"], read_report(alone / "out")["passes"]
    for ours, theirs in zip(*entries, strict=True):
        if ours["pass"] in ("finetune", "train-mask"):
            found, wanted = (weights(each / "out", ours["digest"]) for each in (tmp_path, alone))
            assert ours["digest"] == theirs["digest"]
            assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def late(folder: Path) -> bool:
    return bool(events(folder, "finetune"))
