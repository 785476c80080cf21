"""The training loop: what it computes, what it reports, when it stops."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sprunec.data.batches import IGNORED, Batch
from sprunec.engines.device import Place
from sprunec.engines.loop import Learner, Trainer, fit
from sprunec.engines.losses import language_model_loss
from sprunec.engines.torch_engine import TorchEngine
from sprunec.engines.training import Training
from sprunec.errors import PassError
from tests.conftest import random_batch, tiny_model

CPU = TorchEngine(Place(torch.device("cpu"), torch.float32))
OPTIONS = {
    "steps": 2,
    "optimizer": "adamw",
    "betas": (0.9, 0.999),
    "learning_rate": 0.01,
    "schedule": "constant",
    "warmup_steps": 0,
    "weight_decay": 0.01,
    "clip_grad": 1.0,
    "accumulate": 1,
    "loss_scale": 1024.0,
}
TRAINING = Training(**OPTIONS)


def batch(step: int) -> Batch:
    """Rows with unequal numbers of targets."""
    inputs = random_batch(4, 7, context=False, seed=step)
    targets = inputs["input"].roll(-1, 1)
    targets[:, :5] = IGNORED
    for row in range(4):
        targets[row, 12 - 2 * row :] = IGNORED
    return Batch(inputs, targets)


def train(
    engine: TorchEngine = CPU, first_step: int = 0, **changes: Any
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    model, events = tiny_model(), []
    fit(model, batch, replace(TRAINING, **changes), engine, first_step=first_step, report=events.append)
    return events, model.state_dict()


def farthest(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def stepped_with(**changes: Any) -> tuple[list[dict[str, Any]], dict[str, Tensor], dict[str, Tensor]]:
    """Events, the gradients that the optimizer was given at the first step, and the weights in the end."""
    names = [name for name, _ in tiny_model().named_parameters()]
    seen: list[dict[str, Tensor]] = []
    step = torch.optim.AdamW.step

    def spy(self: torch.optim.AdamW, *args: Any) -> Any:
        seen.append({n: p.grad.clone() for n, p in zip(names, self.param_groups[0]["params"], strict=True)})
        return step(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", spy)
        events, weights = train(**changes)
    return events, seen[0], weights


@pytest.mark.parametrize("parts", [4])
def test_shares_of_a_batch_train_as_the_whole(parts: int) -> None:
    whole, gradients, weights = stepped_with(steps=1, clip_grad=None)
    shared, same, again = stepped_with(steps=1, clip_grad=None, accumulate=parts)
    assert [e["loss"] for e in shared] == pytest.approx([e["loss"] for e in whole], abs=1e-6, rel=1e-6)
    assert farthest(gradients, same) < 1e-6 < 1e-2 < max(float(g.abs().max()) for g in gradients.values())
    clear = {name: gradient.abs() > 1e-4 for name, gradient in gradients.items()}
    assert max(float((weights[n] - again[n])[clear[n]].abs().max()) for n in clear if clear[n].any()) < 1e-6


def test_the_loss_is_the_sum_over_targets_by_their_number() -> None:
    (event,), _ = train(steps=1)
    model, data = tiny_model(), batch(0)
    with torch.no_grad():
        probabilities = model(**data.inputs)[0].log_softmax(-1)
    asked = data.targets != IGNORED
    wanted = -probabilities[asked].gather(1, data.targets[asked][:, None]).mean()
    assert event["loss"] == pytest.approx(float(wanted), rel=1e-5)
    assert int(asked.sum()) == data.target_count == 7 + 5 + 3 + 1


def test_the_same_seed_gives_the_same_losses_bit_for_bit() -> None:
    first, weights = train()
    again, same = train()
    assert [e["loss"] for e in first] == [e["loss"] for e in again]
    assert all(torch.equal(weights[name], same[name]) for name in weights)


def test_batches_go_by_the_steps_that_the_model_has_had() -> None:
    events, _ = train(first_step=7, steps=2)
    (alone,), _ = train(first_step=7, steps=1)
    assert [e["model_steps"] for e in events] == [8, 9]
    assert [e["step"] for e in events] == [1, 2]
    assert events[0]["loss"] == alone["loss"] != train(steps=1)[0][0]["loss"]


def test_a_loss_that_is_no_number_is_an_error_and_leaves_the_weights() -> None:
    model, before = tiny_model(), tiny_model().state_dict()
    with torch.no_grad():
        model.encoder.output_layernorm.weight[0] = float("nan")
    with pytest.raises(PassError, match=r"the loss became nan at training step 5; lower the learning rate"):
        fit(model, batch, TRAINING, CPU, first_step=4, report=lambda event: None)
    name = "encoder.layers.0.ffn.ffn.w_out.weight"
    assert torch.equal(model.state_dict()[name], before[name])


@pytest.mark.parametrize("clip", [1e-3, 1e6])
def test_clipping_reports_the_norm_before_and_bounds_the_step(clip: float) -> None:
    model = tiny_model()
    (language_model_loss(model, batch(0)) / batch(0).target_count).backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))
    (event,), gradients, _ = stepped_with(steps=1, clip_grad=clip)
    clipped = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
    assert event["gradient_norm"] == pytest.approx(norm, rel=1e-4)
    assert clipped == pytest.approx(min(clip, norm), rel=1e-3)


def test_without_clipping_there_is_no_norm() -> None:
    assert train(steps=1, clip_grad=None)[0][0]["gradient_norm"] is None


def test_gradients_of_a_step_are_forgotten_before_the_next() -> None:
    model, events = tiny_model(), []
    training = replace(TRAINING, learning_rate=0.0)
    fit(model, lambda _: batch(0), training, CPU, first_step=0, report=events.append)
    assert events[1]["gradient_norm"] == pytest.approx(events[0]["gradient_norm"], rel=1e-6)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_first_step_is_adamws() -> None:
    before = tiny_model()
    (language_model_loss(before, batch(0)) / batch(0).target_count).backward()
    _, after = train(steps=1, clip_grad=None, weight_decay=0.1)
    for name, parameter in before.named_parameters():
        grad, start = parameter.grad, parameter.detach()
        wanted = start * (1 - 0.01 * 0.1) - 0.01 * grad / (grad.abs() + 1e-8)
        clear = (grad.abs() > 1e-5) | (grad == 0)
        assert float((after[name] - wanted)[clear].abs().max()) < 1e-4


def test_rates_follow_the_schedule_and_are_reported() -> None:
    events, _ = train(steps=4, schedule="linear", warmup_steps=2, learning_rate=0.1)
    assert [e["learning_rate"] for e in events] == pytest.approx([0.05, 0.1, 0.1, 0.05])
    assert all(e["tokens_per_second"] > 0 and e["steps"] == 4 for e in events)


def test_frozen_weights_stay() -> None:
    model = tiny_model()
    model.input_embedding.weight.requires_grad_(False)
    before = model.input_embedding.weight.clone()
    fit(model, batch, TRAINING, CPU, first_step=0, report=lambda event: None)
    assert torch.equal(model.input_embedding.weight, before)
    assert not torch.equal(model.encoder.output_layernorm.weight, torch.ones(24))


def test_training_lowers_the_loss_in_every_precision() -> None:
    for precision in (torch.float32, torch.bfloat16):
        events: list[dict[str, Any]] = []
        engine = TorchEngine(Place(torch.device("cpu"), precision))
        fit(tiny_model(), lambda _: batch(0), replace(TRAINING, steps=3), engine, first_step=0, report=events.append)
        assert events[-1]["loss"] < 0.98 * events[0]["loss"]


def test_a_companion_is_called_in_turn_and_adds_to_the_event() -> None:
    calls: list[Any] = []

    class Companion:
        def before(self, step: int, model_step: int) -> None:
            calls.append(("before", step, model_step))

        def gradients(self) -> list[Tensor]:
            return []

        def finite(self) -> bool:
            return True

        def backward(self, unscale: float) -> None:
            calls.append(("backward", unscale))

        def after(self, step: int) -> dict[str, Any]:
            calls.append(("after", step))
            return {"extra": step}

        def done(self) -> bool:
            return False

        def state(self) -> dict[str, Any]:
            return {}

    model, events = tiny_model(), []
    last = fit(
        model,
        batch,
        replace(TRAINING, steps=2),
        CPU,
        first_step=5,
        report=lambda event: events.append((len(calls), event)),
        learner=Companion(),
    )
    assert calls[:3] == [("before", 0, 5), ("backward", 1.0), ("after", 0)]
    assert [(count, event["extra"]) for count, event in events] == [(3, 0), (6, 1)]
    assert last == events[-1][1]
    assert isinstance(model, nn.Module)
    assert model.training


def test_sgd_with_no_momentum_is_one_plain_step() -> None:
    model = tiny_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    data = batch(0)
    loss_model = tiny_model()
    (language_model_loss(loss_model, data) / data.target_count).backward()
    options = {"optimizer": "sgd", "betas": (0.0, 0.9), "learning_rate": 0.5, "weight_decay": 0.0, "clip_grad": None}
    fit(model, batch, replace(TRAINING, steps=1, **options), CPU, first_step=0, report=lambda event: None)
    for name, parameter in loss_model.named_parameters():
        moved = before[name] - 0.5 * (parameter.grad if parameter.grad is not None else 0.0)
        assert torch.allclose(model.get_parameter(name), moved, atol=1e-6)


def test_adam_and_adamw_part_ways_over_decay() -> None:
    decayed = {kind: train(optimizer=kind, weight_decay=0.5)[1] for kind in ("adam", "adamw")}
    plain = {kind: train(optimizer=kind, weight_decay=0.0)[1] for kind in ("adam", "adamw")}
    assert farthest(plain["adam"], plain["adamw"]) == 0.0
    assert farthest(decayed["adam"], decayed["adamw"]) > 1e-3


def test_one_pass_over_memory_moves_weights_as_several_do(monkeypatch: pytest.MonkeyPatch) -> None:
    _, fused = train(weight_decay=0.1)
    made, asked = torch.optim.AdamW, list[bool]()

    def unfused(*args: Any, fused: bool, **options: Any) -> torch.optim.AdamW:
        asked.append(fused)
        return made(*args, **options)

    monkeypatch.setattr(torch.optim, "AdamW", unfused)
    _, several = train(weight_decay=0.1)
    assert asked == [True]
    assert farthest(fused, several) < 1e-5


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_a_state_that_several_passes_have_made_goes_on(kind: str) -> None:
    training, data = replace(TRAINING, steps=3, optimizer=kind), batch(0)
    driver = CPU.drive(tiny_model(), training)
    trainer = Trainer(driver, 0, Learner())
    trainer.start()
    trainer.step(0, data)
    state = copy.deepcopy(driver.state())
    for group in state["optimizer"]["param_groups"]:
        group["fused"] = None  # as saves before said
    other = CPU.drive(tiny_model(), training)
    other.load(state)
    going_on = Trainer(other, 0, Learner())
    assert going_on.step(1, data)["loss"] == trainer.step(1, data)["loss"]
    assert farthest(other.state()["model"], driver.state()["model"]) < 1e-6


def test_gradients_that_are_short_enough_are_left_as_they_are() -> None:
    (event,), gradients, _ = stepped_with(steps=1, clip_grad=1e6)
    _, same, _ = stepped_with(steps=1, clip_grad=None)
    assert event["gradient_norm"] > 0
    assert farthest(gradients, same) == 0.0


def test_weights_ruined_in_the_last_step_are_not_handed_out() -> None:
    with pytest.raises(PassError, match="weights became NaN or infinite in the last step"):
        train(steps=1, optimizer="sgd", learning_rate=1e38, weight_decay=1e3, clip_grad=None)


def test_held_out_text_is_looked_at_ten_times_and_changes_nothing() -> None:
    held_out = batch(99)
    plain, weights = train(steps=40, accumulate=2)
    model, events = tiny_model(), list[dict[str, Any]]()
    training = replace(TRAINING, steps=40, accumulate=2)
    fit(model, batch, training, CPU, first_step=0, report=events.append, held_out=held_out)
    told = {event["step"]: event["held_out"] for event in events if "held_out" in event}
    assert [*told] == [10, 20, 30, 40]  # never in fewer than ten steps
    assert farthest(weights, model.state_dict()) == 0.0
    assert [event["loss"] for event in events] == [event["loss"] for event in plain]
    with torch.no_grad():
        wanted = float(language_model_loss(model, held_out) / held_out.target_count)
    assert told[40] == pytest.approx(wanted, rel=1e-6) and all(event["memory"] > 2**24 for event in events)
