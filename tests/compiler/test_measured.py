"""What `--measure` runs of a model, on a clock that goes one second forward whenever it is looked at."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import sprunec.compiler.measured as measured
from sprunec import lower, read_plan
from sprunec.families.base_config import ModelConfig, token_operations
from sprunec.graph.model_size import blocks_of
from tests.helpers.small_plans import TRAIN, guide, plan, save_weights, write
from tests.runs.test_causal_lms import directory

ROWS, LENGTH = 4, 34


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count()
    monkeypatch.setattr(measured, "time", SimpleNamespace(perf_counter=lambda: float(next(seconds))))
    monkeypatch.setattr(measured, "SECONDS", 3.0)


def one_step(config: ModelConfig) -> float:
    return 3 * ROWS * LENGTH * token_operations(config, LENGTH, head=True)


def block(config: ModelConfig, rows: int) -> float:
    layers = config.layers
    largest = max(range(len(layers)), key=lambda index: blocks_of(config)[index])
    return 3 * rows * LENGTH * token_operations(config.with_layers([layers[largest]]), LENGTH)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_short_step_is_made_as_the_plan_makes_it(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, step = list[Any](), measured.Trainer.step
    monkeypatch.setattr(measured.Trainer, "step", lambda self, *args: made.append(self) or step(self, *args))
    read = read_plan(write(tmp_path, plan(TRAIN | {"steps": 50}, engine={"precision": precision})))
    found = measured.measure(read)
    assert found.training == pytest.approx(one_step(read.model.config))
    assert len(made) == 3 and made[0].place.dtype == measured.DTYPES[precision]


@pytest.mark.parametrize("kind", ["cpm_ant", "llama", "gpt2"])
def test_of_a_long_one_the_largest_block_goes_forward_and_back(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = plan(TRAIN)
    if kind != "cpm_ant":
        directory(tmp_path, kind)
        content["model"] = {"path": str(tmp_path / "dense")}
    read = read_plan(write(tmp_path, content))
    monkeypatch.setattr(measured, "OPERATIONS", 6.5 * max(blocks_of(read.model.config)) * LENGTH * 2)  # two rows
    went = list[bool]()
    through = measured.Streamed.through
    monkeypatch.setattr(
        measured.Streamed, "through", lambda self, path: went.append(torch.is_grad_enabled()) or through(self, path)
    )
    found = measured.measure(read)
    assert found.training == pytest.approx(block(read.model.config, rows=2) / measured.STEPS)
    assert went.count(True) == 3 and went.count(False) > 3


def test_a_plan_without_training_is_measured_too(tmp_path: Path) -> None:
    written = plan({"pass": "emit", "formats": ["sprunec"]})
    content = {key: value for key, value in written.items() if key not in ("data", "evaluate")}
    found = measured.measure(read_plan(write(tmp_path, content)))
    assert found.training > 0


def test_training_is_told_by_its_own_rate_and_with_what_attention_takes(tmp_path: Path) -> None:
    graph = lower(read_plan(write(tmp_path, guide())))
    node = next(each for each in graph.nodes if each.pass_ == "train")
    config = read_plan(tmp_path / "plan.json").model.config
    assert node.needs.operations == {"training": pytest.approx(2 * one_step(config))}


def training(content: dict[str, Any], folder: Path, pass_: str) -> list[float]:
    """The operations of each of a plan's nodes of a kind, as they are told of training."""
    graph = lower(read_plan(write(folder, content)))
    return [each.needs.operations["training"] for each in graph.nodes if each.pass_ == pass_]


def test_adapters_leave_out_the_gradients_of_matrices_that_stay(tmp_path: Path) -> None:
    lora = {"kind": "lora", "rank": 4}
    whole, adapted = training(plan(TRAIN, TRAIN | {"adapter": lora}), tmp_path, "train")
    assert adapted == pytest.approx(2 / 3 * whole)


def test_scores_by_gradients_are_told_by_the_rate_of_training(tmp_path: Path) -> None:
    save_weights(tmp_path / "weights.pt")
    content = plan(
        {"pass": "score-mask", "criterion": "taylor", "unit": "head", "target": {"num_heads": 3}, "batches": 2}
    )
    content["model"]["checkpoint"] = "weights.pt"
    (scored,) = training(content, tmp_path, "score-mask")
    assert scored == pytest.approx(2 * one_step(read_plan(tmp_path / "plan.json").model.config))
