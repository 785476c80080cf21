"""Speeds that are compared come from one node, in which the models run in turn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sprunec
from sprunec.data.batches import Batch
from sprunec.data.compared import random_batch
from sprunec.engines.device import Place
from sprunec.graph.graph import Graph
from sprunec.passes.job import Job
from sprunec.passes.measuring import measure_speed
from sprunec.passes.measuring.measure_speed import in_turn, measured, smaller
from sprunec.plan.schema import validator
from tests.conftest import tiny_config, tiny_model
from tests.helpers.small_plans import EMIT, TRAIN, artifact, execute, guide, mask_pass, plan, read_report, write

CPU = Place.of("cpu", "fp32")
SCORE = {"pass": "score-mask", "criterion": "magnitude", "unit": "head", "target": {"num_heads": 3}}


@pytest.fixture(autouse=True)
def _as_long_as_runs_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_speed, "SECONDS", 4.0)


def lowered(content: dict[str, Any], folder: Path) -> Graph:
    return sprunec.lower(sprunec.read_plan(write(folder, content)))


def test_a_run_ends_with_one_node_that_measures_all_three(finished: Path) -> None:
    report = read_report(finished)
    validator("report").validate(report)
    entry = report["passes"][-1]
    assert [e["pass"] for e in report["passes"]].count("measure-speed") == 1
    assert (entry["pass"], entry["metrics"]["tokens"]) == ("measure-speed", 4 * 32)
    assert measure_speed.LEAST_ROUNDS <= entry["metrics"]["rounds"] <= measure_speed.MOST_ROUNDS
    for role, model in report["models"].items():
        low, high = model["tokens_per_second_spread"]
        assert 0 < low <= model["tokens_per_second"] <= high
        assert (model["relative_speed"] is None) == (role == "dense")
        assert entry["metrics"]["models"][role]["tokens_per_second"] == model["tokens_per_second"]
    for entry in report["passes"]:
        assert entry["pass"] == "measure-speed" or "tokens_per_second" not in entry["metrics"]


@pytest.mark.parametrize(
    ("content", "measured"),
    [
        (guide(), {"dense", "masked", "masks", "small", "data"}),
        (plan(TRAIN, SCORE, EMIT), {"dense", "masked", "masks", "small", "data"}),
        (plan(TRAIN, EMIT), {"dense", "data"}),
        (plan(TRAIN, {"pass": "sparsify", "pattern": "m4n2_1d"}, EMIT), {"dense", "small", "data"}),
    ],
)
def test_what_was_evaluated_is_measured(content: dict[str, Any], measured: set[str], tmp_path: Path) -> None:
    graph = lowered(content, tmp_path)
    last = graph.nodes[-1]
    assert (last.pass_, set(last.inputs)) == ("measure-speed", measured)
    for role in {"dense", "masked", "small"} & measured:
        assert last.inputs[role] == graph.node(graph.roles.models[role]).inputs["model"]


def test_nothing_is_measured_where_nothing_is_evaluated() -> None:
    graph = sprunec.lower(sprunec.read_plan(Path(__file__).parents[1] / "plans" / "good" / "tied.json"))
    assert not {"evaluate", "measure-speed"} & {node.pass_ for node in graph.nodes}


def test_the_device_is_no_part_of_the_digest_and_what_decides_the_work_is(tmp_path: Path) -> None:
    def digest(**changes: Any) -> str | None:
        return lowered(plan(TRAIN, SCORE, EMIT, **changes), tmp_path).nodes[-1].digest

    assert digest() == digest(engine={"device": "cuda:3"})
    assert digest() != digest(engine={"precision": "bf16"})
    assert digest() != digest(data={"source": "python-docs", "max_length": 34, "batch_size": 5})


def test_a_speed_from_the_store_stays_what_was_measured(tmp_path: Path) -> None:
    content = plan(TRAIN, mask_pass("head", {"num_heads": 3}), EMIT)
    first, again = execute(content, tmp_path), execute(content, tmp_path)
    assert all(entry["cached"] for entry in again["passes"])
    assert first["models"] == again["models"]


class Clock:
    """Time that only models spend, and how busy the machine is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, busy: Callable[[float], float]) -> None:
        self.now, self.busy, self.log = 0.0, busy, ""
        monkeypatch.setattr(measure_speed, "perf_counter", lambda: self.now)

    def model(self, name: str, seconds: float) -> nn.Module:
        clock = self

        class Slow(nn.Module):
            def forward(self, **inputs: Tensor) -> tuple[Tensor, Tensor]:
                clock.now += seconds * clock.busy(clock.now)
                clock.log += name
                return inputs["input"][:, :, None].float(), inputs["input"]

        return Slow()


def batch() -> Batch:
    return random_batch(tiny_config())


def test_models_run_in_turn_and_the_first_round_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, lambda now: 100.0 if now == 0.0 else 1.0)
    seconds = in_turn(
        {name: clock.model(name, cost) for name, cost in zip("abc", (0.2, 0.2, 0.1), strict=True)}, batch(), CPU
    )
    assert clock.log == "abc" * 6  # the budget was spent in the warm-up: five rounds all the same
    assert seconds == {name: pytest.approx([cost] * 5) for name, cost in zip("abc", (0.2, 0.2, 0.1), strict=True)}


def test_rounds_end_with_the_budget_of_time_or_of_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    def rounds(cost: float) -> int:
        clock = Clock(monkeypatch, lambda now: 1.0)
        return len(in_turn({"dense": clock.model("a", cost)}, batch(), CPU)["dense"])

    assert rounds(1e-4) == measure_speed.MOST_ROUNDS
    assert rounds(0.395) == 10
    assert rounds(600.0) == measure_speed.LEAST_ROUNDS


def test_what_slows_the_machine_meanwhile_moves_speeds_and_not_the_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, lambda now: 1.0 + 9.0 * (now > 0.3))  # something else begins to run
    seconds = in_turn({"dense": clock.model("a", 0.02), "small": clock.model("b", 0.01)}, batch(), CPU)
    found = measured(100, seconds["small"], seconds["dense"], is_dense=False)
    assert found["tokens_per_second_spread"] == pytest.approx([1000.0, 10_000.0])
    assert found["relative_speed"] == pytest.approx({"ratio": 2.0, "low": 2.0, "high": 2.0})


def test_medians_and_quartiles_are_taken_over_the_rounds() -> None:
    found = measured(10, [1.0, 2.0, 4.0, 5.0, 10.0], [1.0, 1.0, 1.0, 10.0, 30.0], is_dense=False)
    assert found["tokens_per_second"] == 2.5
    assert found["tokens_per_second_spread"] == [2.0, 5.0]
    assert found["relative_speed"] == {"ratio": 1.0, "low": 0.5, "high": 2.0}


def test_a_model_of_a_sixth_of_the_layers_is_faster() -> None:
    models = {name: tiny_model(dim_model=96, num_layers=n) for name, n in (("dense", 12), ("small", 2))}
    seconds = in_turn(models, batch(), CPU)
    assert median(slow / fast for slow, fast in zip(seconds["dense"], seconds["small"], strict=True)) > 1.5


def a_job(out: Path) -> Job:
    last = read_report(out)["passes"]
    inputs = {"dense": artifact(out, "train"), "masked": artifact(out, "expand"), "small": artifact(out, "emit")}
    inputs |= {"masks": artifact(out, "finetune"), "data": out / "store" / last[0]["digest"]}
    options = measure_speed.SpeedOptions(seed=7, max_length=34, batch_size=4, precision="fp32")
    return Job(options, inputs, {}, out, "cpu", lambda event: None)


def test_the_masked_model_is_masked_and_takes_no_memory_of_its_own(finished: Path) -> None:
    job = a_job(finished)
    configs = {role: job.config(role) for role in ("dense", "masked", "small")}
    models = measure_speed._models(job, configs)
    dense, masked = (models[role].state_dict() for role in ("dense", "masked"))
    assert dense.keys() == masked.keys()
    assert all(dense[name].data_ptr() == masked[name].data_ptr() for name in dense)
    inputs = random_batch(configs["dense"]).inputs
    with torch.no_grad():
        logits = {role: model(**inputs)[0] for role, model in models.items()}
        weights = models["dense"].state_dict()
        gates = [buffer for name, buffer in models["masked"].named_buffers() if ".gates." in name]
        for gate in gates:
            gate.fill_(1.0)
        opened = models["masked"](**inputs)[0]
    assert any(gate.numel() > 1 for gate in gates)
    assert not torch.allclose(logits["masked"], logits["dense"], atol=1e-3)
    assert torch.allclose(opened, logits["dense"], atol=1e-5)
    assert sum(t.numel() for t in models["small"].state_dict().values()) < sum(t.numel() for t in weights.values())


@pytest.mark.parametrize(
    ("sizes", "rows", "columns"),
    [
        ({}, 32, 256),
        ({"dim_ff": 24_000}, 3, 256),  # 5 million parameters
        ({"dim_ff": 800_000}, 1, 37),  # 170 million
    ],
)
def test_the_batch_follows_from_the_size_of_the_model(sizes: dict[str, int], rows: int, columns: int) -> None:
    config = tiny_config(**sizes)
    found = smaller(random_batch(config, 32, 251), config, CPU)
    assert {tuple(found.inputs[name].shape) for name in ("input", "context", "segment", "span")} == {(rows, columns)}
    assert found.inputs["length"].tolist() == [columns] * rows
    assert found.targets.shape == (rows, columns)
    model = tiny_model()
    logits, _ = model(**found.inputs)
    assert logits.shape == (rows, columns, 97)


def test_no_room_for_two_models_is_told_and_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Place, "memory", lambda self, processes: 1000.0)
    monkeypatch.setattr("sprunec.execution.execute.check_fits", lambda *_: None)  # training would be refused
    report = execute(plan(TRAIN, SCORE, EMIT), tmp_path)
    validator("report").validate(report)
    assert report["status"] == "done"
    assert report["models"]["small"]["tokens_per_second"] is None
    assert report["models"]["small"]["loss"] is not None
    assert "no room for the dense and the small model together" in report["passes"][-1]["metrics"]["notes"][0]
