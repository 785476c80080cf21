"""NaN and infinity: fp16 leaves the step out and lowers its scale, the others stop; no such weight is ever saved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sprunec.data.batches import Batch
from sprunec.engines import loop
from sprunec.engines.checkpoints import Saves
from sprunec.engines.device import Place
from sprunec.engines.loop import Trainer, fit
from sprunec.engines.nonfinite import MOST_SKIPS, batch_digest
from sprunec.engines.torch_engine import TorchEngine
from sprunec.errors import PassError
from sprunec.families.base_config import unit_sizes
from sprunec.families.cpm_ant.blocks import example_inputs
from sprunec.masks.budgets import make_budgets
from sprunec.masks.lagrangian import Lagrangian
from sprunec.masks.learn import GateLearner, start_from
from sprunec.rewrite.gating import insert_gates
from sprunec.rewrite.trace import trace_blocks
from sprunec.units import gate_units
from tests.conftest import tiny_config, tiny_model
from tests.engines.test_loop import CPU, TRAINING, batch
from tests.helpers.students import NORM, distiller

HALF = TorchEngine(Place(torch.device("cpu"), torch.float16))
FAR_TOO_LARGE = 2.0**40


def trainer(engine: TorchEngine = HALF, **changes: Any) -> Trainer:
    """With everything that can learn: weights, projections of the teacher's states, gates and multipliers."""
    model = tiny_model()
    objective = distiller(model, tiny_model(seed=1), NORM, project=True, logits=0.5, hidden=1.0)
    gates = insert_gates(model, trace_blocks(model, example_inputs(tiny_config())), gate_units(("head",)))
    scores = {key: torch.rand(size) for key, size in unit_sizes(tiny_config(), ("head",)).items()}
    budgets = make_budgets(tiny_config(), ("head",), {"num_heads": 2}, "per-layer")
    learner = GateLearner(
        gates, start_from(scores), Lagrangian(budgets, 9, 0.5), steps=9, rate=0.1, seed=1, device=engine.place.device
    )
    driver = engine.drive(model, replace(TRAINING, **changes), objective.parameters())
    return Trainer(driver, 0, learner, objective)


def learned(of: Trainer) -> dict[str, Tensor]:
    """Whatever a step may move: what is trained, and what the optimizers remember."""
    state = of.state({"model_steps": 0})
    state = {key: state[key] for key in ("model", "optimizer", "companion", "objective")}
    return {place: tensor.clone() for place, tensor in tensors(state, "")}


def tensors(value: Any, place: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield place, value
    elif isinstance(value, dict | list | tuple):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from tensors(inner, f"{place}/{key}")


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> list[str]:
    assert left.keys() == right.keys()
    return [name for name in left if torch.equal(left[name], right[name])]


def test_a_step_that_overflows_moves_nothing_and_halves_the_scale() -> None:
    trains = trainer(loss_scale=256.0)
    trains.step(0, batch(0))  # so that the optimizers have a memory
    trains.driver.loss_scale.value = FAR_TOO_LARGE
    before = learned(trains)
    event = trains.step(1, batch(1))
    assert (event["skipped"], event["skipped_steps"], event["loss_scale"]) == (True, 1, FAR_TOO_LARGE)
    assert same(before, learned(trains)) == list(before)
    assert any("log_alphas" in name for name in before) and any("multipliers" in name for name in before)
    assert any("projections" in name for name in before) and any("exp_avg" in name for name in before)
    assert trains.driver.scale == FAR_TOO_LARGE / 2
    assert [event["step"], len(event["budgets"]), event["gradient_norm"]] == [2, 3, None]


@pytest.mark.parametrize("where", ["gate", "loss"])
def test_a_gate_or_a_loss_alone_is_enough_to_leave_a_step_out(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trains = trainer(loss_scale=256.0)
    before = learned(trains)
    if where == "gate":
        monkeypatch.setattr(GateLearner, "gradients", lambda self: [torch.tensor(float("inf"))])
    else:
        backward = Trainer._backward
        monkeypatch.setattr(Trainer, "_backward", lambda *a: backward(*a) | {"loss": float("inf")})
    event = trains.step(0, batch(0))
    assert event["skipped"] and trains.driver.scale == 128.0
    assert same(before, learned(trains)) == list(before)


def test_a_good_step_of_fp16_moves_everything_and_says_its_scale() -> None:
    trains = trainer(loss_scale=256.0)
    trains.step(0, batch(0))
    before = learned(trains)
    event = trains.step(1, batch(1))
    assert "skipped" not in event and (event["loss_scale"], event["skipped_steps"]) == (256.0, 0)
    unmoved = set(same(before, learned(trains)))
    assert not {name for name in unmoved if "exp_avg" in name and "companion" in name}
    assert not {name for name in unmoved if "log_alphas" in name or "multipliers" in name or "projections" in name}


def test_fp16_finds_a_scale_that_works_and_data_and_schedule_go_on_meanwhile() -> None:
    asked: list[int] = []

    def batches(step: int) -> Batch:
        asked.append(step)
        return batch(step)

    events: list[dict[str, Any]] = []
    training = replace(TRAINING, steps=30, loss_scale=2.0**32, schedule="linear", learning_rate=1e-3)
    fit(tiny_model(), batches, training, HALF, first_step=5, report=events.append)
    skipped = [event.get("skipped", False) for event in events]
    count = skipped.index(False)
    assert 5 < count < MOST_SKIPS
    assert skipped.count(False) > 5
    scales = [event["loss_scale"] for event in events]
    steps = zip(pairwise(scales), skipped, strict=False)
    assert all(after == before / (2 if skip else 1) for (before, after), skip in steps)
    assert asked == list(range(5, 35))
    rates = [event["learning_rate"] for event in events]
    assert all(left > right for left, right in pairwise(rates))
    assert events[-1]["skipped_steps"] == sum(skipped)


def test_too_many_skips_in_a_row_stop_with_step_batch_and_save(tmp_path: Path) -> None:
    saves = Saves(tmp_path / "partial", 3, lambda: False)
    training = replace(TRAINING, steps=50, loss_scale=2.0**100)
    events: list[dict[str, Any]] = []
    with pytest.raises(PassError) as stopped:
        fit(tiny_model(), batch, training, HALF, first_step=5, report=events.append, saves=saves)
    words = str(stopped.value)
    assert f"{MOST_SKIPS} times in a row, for the last time at training step {5 + MOST_SKIPS}" in words
    assert f"batch sha256 {batch_digest(batch(5 + MOST_SKIPS - 1))}" in words
    assert f"the last good save is {saves.last}" in words and saves.last is not None and saves.last.exists()
    assert len(events) == MOST_SKIPS - 1


def test_a_short_pass_that_skipped_every_step_has_trained_nothing_and_says_so() -> None:
    training = replace(TRAINING, steps=3, loss_scale=2.0**100)
    with pytest.raises(PassError, match="no step had finite gradients, so nothing was trained; lower loss_scale"):
        fit(tiny_model(), batch, training, HALF, first_step=0, report=lambda event: None)


def test_skips_in_a_row_are_counted_across_a_stop(tmp_path: Path) -> None:
    training, events = replace(TRAINING, steps=50, loss_scale=2.0**100), []
    stopping = Saves(tmp_path / "partial", 100, lambda: len(events) >= 12)
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_model(), batch, training, HALF, first_step=0, report=events.append, saves=stopping)
    going_on = Saves(tmp_path / "partial", 100, lambda: False)
    with pytest.raises(PassError, match=f"at training step {MOST_SKIPS}; "):
        fit(tiny_model(), batch, training, HALF, first_step=0, report=events.append, saves=going_on)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("what", ["loss", "gradient norm"])
def test_the_other_precisions_stop_at_once(what: str, precision: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without clipping, too: a gradient that is none would be in the weights before the next loss tells."""
    model = tiny_model()
    if what == "loss":
        entropy = loop.cross_entropy
        monkeypatch.setattr(loop, "cross_entropy", lambda part, factor: entropy(part, factor * float("nan")))
    else:
        model.input_embedding.weight.register_hook(lambda gradient: gradient * float("inf"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    training, engine = replace(TRAINING, clip_grad=None), TorchEngine(Place(torch.device("cpu"), precision))
    with pytest.raises(PassError, match=rf"the {what} became (nan|inf) at training step 3; .*nothing had been saved"):
        fit(model, batch, training, engine, first_step=2, report=lambda event: None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_weights_that_are_no_numbers_are_not_saved_in_the_middle(tmp_path: Path) -> None:
    saves = Saves(tmp_path / "partial", 1, lambda: False)
    model = tiny_model()

    def report(event: dict[str, Any]) -> None:
        if event["step"] == 3:
            with torch.no_grad():
                model.encoder.layers[0].ffn.ffn.w_out.weight[0, 0] = float("nan")

    with pytest.raises(PassError, match="weights became NaN or infinite by training step 3"):
        fit(model, batch, replace(TRAINING, steps=9), CPU, first_step=0, report=report, saves=saves)
    kept = Saves(tmp_path / "partial", 1, lambda: False).latest()
    assert kept is not None and kept["event"]["step"] == 2
    assert all(bool(torch.isfinite(tensor).all()) for tensor in kept["model"].values())


def test_a_batchs_digest_tells_batches_apart() -> None:
    first, second = batch(0), batch(1)
    assert batch_digest(first) == batch_digest(batch(0)) != batch_digest(second)
    assert batch_digest(replace(first, targets=second.targets)) != batch_digest(first)
