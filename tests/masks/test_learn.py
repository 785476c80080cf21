"""Gates that learn beside the weights."""

from __future__ import annotations

import pytest
import torch

from sprunec.data.batches import Batch
from sprunec.engines.losses import language_model_loss
from sprunec.engines.nonfinite import non_finite
from sprunec.families.cpm_ant.blocks import example_inputs
from sprunec.masks.budgets import make_budgets
from sprunec.masks.gates import kept_probability
from sprunec.masks.lagrangian import Lagrangian
from sprunec.masks.learn import GateLearner, kept_shares, start_from
from sprunec.rewrite.gating import insert_gates
from sprunec.rewrite.trace import trace_blocks
from sprunec.units import Key
from tests.conftest import random_batch, tiny_config, tiny_model

CPU = torch.device("cpu")


def make(seed: int = 0, steps: int = 10, rate: float = 0.1) -> tuple[torch.nn.Module, GateLearner]:
    model, config = tiny_model(), tiny_config()
    gates = insert_gates(model, trace_blocks(model, example_inputs(config)), ["head"])
    lagrangian = Lagrangian(make_budgets(config, ("head",), {"num_heads": 2}, "global"), steps, 0.5)
    start = {key: torch.full((size,), 0.5) for key, size in gates.sizes.items()}
    return model, GateLearner(gates, start, lagrangian, steps=steps, rate=rate, seed=seed, device=CPU)


def loss(model: torch.nn.Module, scale: float = 1.0) -> torch.Tensor:
    inputs = random_batch(context=False)
    return scale * language_model_loss(model, Batch(inputs, inputs["input"])) / inputs["input"].numel()


def gradients(learner: GateLearner) -> dict[Key, torch.Tensor]:
    return {key: value.grad.clone() for key, value in learner.log_alphas.items()}


def penalty_only() -> dict[Key, torch.Tensor]:
    _, learner = make()
    learner.before(0, 0)
    learner.backward(1.0)
    return gradients(learner)


def test_the_language_model_loss_reaches_every_open_gates_log_alpha() -> None:
    model, learner = make()
    learner.before(0, 0)
    drawn = {key: value.detach() for key, value in learner._drawn.items()}
    loss(model).backward()
    learner.backward(1.0)
    got, plain = gradients(learner), penalty_only()
    moved = {key: (got[key] - plain[key]).abs() > 0 for key in got}
    inside = {key: (value > 0) & (value < 1) for key, value in drawn.items()}
    assert sum(int(mask.sum()) for mask in inside.values()) >= 3
    assert all(torch.equal(moved[key], inside[key]) for key in moved)


def test_the_gradient_is_the_chain_rule_through_the_draw() -> None:
    model, learner = make()
    learner.before(0, 0)
    loss(model).backward()
    learner.backward(1.0)
    got, plain = gradients(learner), penalty_only()
    key, place, tiny = next(
        (k, int(i), 1e-3) for k, v in learner._drawn.items() for i in ((v > 0.1) & (v < 0.9)).nonzero()
    )
    losses = []
    for shift in (tiny, -tiny):
        with torch.no_grad():
            learner.log_alphas[key][place] += shift
            learner.before(0, 0)
            losses.append(float(loss(model)))
            learner.log_alphas[key][place] -= shift
    wanted = (losses[0] - losses[1]) / (2 * tiny)
    assert float((got[key] - plain[key])[place]) == pytest.approx(wanted, rel=0.05, abs=1e-4)


def test_a_scaled_loss_is_unscaled() -> None:
    results = []
    for scale in (1.0, 1024.0):
        model, learner = make()
        learner.before(0, 0)
        loss(model, scale).backward()
        learner.backward(1.0 / scale)
        results.append(gradients(learner))
    assert all(torch.allclose(results[0][key], results[1][key], atol=1e-6) for key in results[0])


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_an_overflowed_gradient_of_one_gate_is_told_and_a_skipped_step_moves_nothing(value: float) -> None:
    model, learner = make()
    learner.before(0, 0)
    loss(model).backward()
    assert not non_finite(learner.gradients())
    leaf = list(learner._leaves.values())[-1]
    leaf.grad[0] = value
    before, multipliers = (
        [v.detach().clone() for v in learner.log_alphas.values()],
        learner.lagrangian.multipliers.clone(),
    )
    assert non_finite(learner.gradients())
    event = learner.skip(0)
    assert all(torch.equal(a, b) for a, b in zip(before, learner.log_alphas.values(), strict=True))
    assert torch.equal(multipliers, learner.lagrangian.multipliers)
    assert [row["expected"] for row in event["budgets"]] == learner.expected()


def test_one_draw_serves_all_backward_passes_of_a_step() -> None:
    model, learner = make()
    learner.before(0, 0)
    drawn = {key: leaf.clone() for key, leaf in learner._leaves.items()}
    loss(model).backward()
    once = {key: leaf.grad.clone() for key, leaf in learner._leaves.items()}
    loss(model).backward()
    assert all(torch.equal(leaf, drawn[key]) for key, leaf in learner._leaves.items())
    assert all(torch.allclose(leaf.grad, 2 * once[key]) for key, leaf in learner._leaves.items())


def test_draws_follow_from_seed_and_step_only() -> None:
    def drawn(seed: int, *steps: int) -> list[float]:
        _, learner = make(seed)
        for step in steps:
            learner.before(0, step)
        return torch.cat(list(learner._drawn.values())).tolist()

    assert drawn(0, 7) == drawn(0, 3, 7)
    assert drawn(0, 7) != drawn(0, 8)
    assert drawn(0, 7) != drawn(1, 7)


def test_a_step_moves_log_alphas_and_reports_its_budgets() -> None:
    model, learner = make()
    before = {key: value.detach().clone() for key, value in learner.log_alphas.items()}
    learner.before(0, 0)
    loss(model).backward()
    learner.backward(1.0)
    event = learner.after(0)
    assert all((value != before[key]).all() for key, value in learner.log_alphas.items())
    (row,) = event["budgets"]
    assert row["name"] == "num_heads"
    assert row["target"] == pytest.approx(12 - 6 / 5)
    assert row["expected"] == pytest.approx(float(sum(_kept(v).sum() for v in before.values())), rel=1e-6)
    assert row["multiplier1"] != 0.0
    assert all(value.grad is None for value in learner.log_alphas.values())


def _kept(value: torch.Tensor) -> torch.Tensor:
    from sprunec.masks.gates import kept_probability

    return kept_probability(value)


def test_expected_sizes_are_of_the_log_alphas_as_they_are_now() -> None:
    _, learner = make()
    with torch.no_grad():
        for value in learner.log_alphas.values():
            value.copy_(torch.tensor([-20.0, -20.0, 20.0, 20.0]))
    assert learner.expected() == [pytest.approx(6.0, abs=1e-4)]
    assert learner.undecided() == 0


def test_the_rate_falls_to_a_tenth_over_the_last_third() -> None:
    _, learner = make(steps=10, rate=0.2)
    rates = []
    for step in range(10):
        learner.before(step, step)
        learner.backward(1.0)
        learner.after(step)
        rates.append(learner.optimizer.param_groups[0]["lr"])
    assert rates[:8] == [pytest.approx(0.2)] * 8
    assert rates[8:] == [pytest.approx(0.2 * (0.1 + 0.9 * 2 / 3)), pytest.approx(0.2 * (0.1 + 0.9 / 3))]


def test_log_alphas_start_mostly_open_in_the_order_of_the_scores() -> None:
    scores = {(0, "head"): torch.tensor([1.0, 10.0]), (1, "head"): torch.tensor([100.0, 0.1])}
    scores |= {(0, "dim_ff"): torch.tensor([1e-9, 1e-8, 1e-7])}
    start = start_from(scores)
    heads = torch.cat([start[(0, "head")], start[(1, "head")]])
    assert heads.argsort().tolist() == [3, 0, 1, 2]
    assert float(heads.mean()) == pytest.approx(2.0, abs=1e-6)
    assert float(heads.std(correction=0)) == pytest.approx(1.0, abs=1e-5)
    assert float(start[(0, "dim_ff")].mean()) == pytest.approx(2.0, abs=1e-6)


def test_scores_without_a_spread_or_of_zero_start_finite() -> None:
    start = start_from({(0, "block"): torch.tensor([3.0]), (0, "head"): torch.tensor([0.0, 0.0, 1.0])})
    assert start[(0, "block")].tolist() == [2.0]
    assert torch.isfinite(start[(0, "head")]).all()
    assert start[(0, "head")][2] > start[(0, "head")][0]


def test_events_tell_how_likely_gates_are_kept_some_two_dozen_times() -> None:
    _, learner = make(steps=100)
    told = {}
    for step in range(100):
        learner.before(step, step)
        learner.backward(1.0)
        if "kept_percent" in (event := learner.after(step)):
            told[step] = event["kept_percent"]
    assert len(told) == 21 and {0, 5, 95, 99} <= told.keys()
    expected = {
        str(layer): (100 * kept_probability(value.detach())).round().int().tolist()
        for (layer, _), value in learner.log_alphas.items()
    }
    assert told[99] == {"head": expected}


def test_of_many_gates_the_order_is_told_from_the_least_likely_on() -> None:
    log_alpha = torch.linspace(-5, 5, 200)[torch.randperm(200)]
    assert kept_shares({(3, "dim_ff"): log_alpha[:64]}).keys() == {"kept_percent"}
    (percents,) = kept_shares({(3, "dim_ff"): log_alpha})["kept_quantiles"]["dim_ff"].values()
    assert percents == sorted(percents) and len(percents) == 64
    assert (percents[0], percents[-1]) == (3, 100)
    assert percents[32] == pytest.approx(100 * float(kept_probability(torch.tensor(0.05))), abs=2)
