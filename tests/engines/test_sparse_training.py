"""Weights of a pattern stay exactly zero through every step of every optimizer, and count nowhere."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sprunec.engines.loop import fit
from sprunec.engines.torch_engine import pruned_weights, zero
from sprunec.masks.two_four import Pattern, choose, leaks
from tests.conftest import tiny_model
from tests.engines.test_loop import CPU, TRAINING, batch

NAMES = ("encoder.layers.1.ffn.ffn.w_in.w_0.weight", "encoder.layers.0.self_att.self_attention.project_q.weight")


def pattern_of(model: nn.Module) -> Pattern:
    state = model.state_dict()
    return {name: choose("m4n2_1d", name, state[name]) for name in NAMES}


def spied(kind: type[torch.optim.Optimizer], model: nn.Module, **changes: Any) -> tuple[list[Any], list[Any]]:
    """Events, and the gradients and moments of NAMES as they are around every step."""
    events: list[dict[str, Any]] = []
    seen: list[dict[str, Tensor]] = []
    parameters, step = dict(model.named_parameters()), kind.step

    def spy(self: torch.optim.Optimizer, *args: Any) -> Any:
        grads = {name: parameters[name].grad.clone() for name in parameters}
        step(self, *args)
        moments = {f"{n} {k}": v for n in NAMES for k, v in self.state[parameters[n]].items() if v is not None}
        seen.append(grads | {key: value.clone() for key, value in moments.items() if value.dim()})

    kept = pattern_of(model) if changes.pop("held", True) else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "step", spy)
        fit(model, batch, replace(TRAINING, **changes), CPU, first_step=0, report=events.append, kept=kept)
    return events, seen


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_weights_are_zero_after_every_step(optimizer: str) -> None:
    """The model comes in dense: what the pattern takes away is gone from the first step on."""
    model, found = tiny_model(), []
    pattern = pattern_of(model)

    def look(event: dict[str, Any]) -> None:
        found.append(leaks(model.state_dict(), pattern))

    options = replace(TRAINING, optimizer=optimizer, weight_decay=0.1, learning_rate=0.02, steps=4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fit(model, batch, options, CPU, first_step=0, report=look, kept=pattern)
    assert found == [[]] * 4
    for name, mask in pattern.items():
        moved = model.state_dict()[name] != before[name]
        assert bool(moved[mask].all()), "what stays is trained"


@pytest.mark.parametrize(
    ("name", "optimizer"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)]
)
def test_pruned_weights_have_no_gradient_and_gather_no_momentum(
    name: str, optimizer: type[torch.optim.Optimizer]
) -> None:
    model = tiny_model()
    pattern = pattern_of(model)
    with torch.no_grad():
        for key, mask in pattern.items():
            model.get_parameter(key).mul_(mask)
    seen = spied(optimizer, model, optimizer=name, weight_decay=0.1, steps=3)[1]
    for each in seen:
        held = {key: value for key, value in each.items() if key.split()[0] in NAMES}
        assert len(held) > len(NAMES)
        for key, value in held.items():
            assert not bool(value[~pattern[key.split()[0]]].any()), key
            assert bool(value[pattern[key.split()[0]]].any()), key


def test_pruned_weights_do_not_count_in_the_norm_that_is_clipped() -> None:
    free, gradients = spied(torch.optim.AdamW, tiny_model(), clip_grad=1e9, steps=1, held=False)
    held, _ = spied(torch.optim.AdamW, tiny_model(), clip_grad=1e9, steps=1)
    pattern, parts = pattern_of(tiny_model()), gradients[0]
    squares = sum(
        float((value * pattern.get(name, 1)).double().square().sum())
        for name, value in parts.items()
        if name.endswith(("weight", "bias"))
    )
    assert held[0]["gradient_norm"] == pytest.approx(squares**0.5, rel=1e-5)
    assert held[0]["gradient_norm"] < free[0]["gradient_norm"] * 0.999


def test_an_infinite_gradient_of_a_pruned_weight_is_nothing() -> None:
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.grad = torch.tensor([[float("inf"), 1.0, float("nan"), 2.0]])
    pruned = pruned_weights(layer, {"weight": torch.tensor([[False, True, False, True]])})
    zero((weight.grad, mask) for weight, mask in pruned)
    assert layer.weight.grad.tolist() == [[0.0, 1.0, 0.0, 2.0]]


def test_a_frozen_weight_has_no_gradient_to_mask() -> None:
    layer = nn.Linear(4, 1, bias=False)
    pruned = pruned_weights(layer, {"weight": torch.tensor([[False, True, False, True]])})
    zero((weight.grad, mask) for weight, mask in pruned)
    zero(pruned)
    assert (layer.weight == 0).tolist() == [[True, False, True, False]]
