"""The states of a gated model are those that its modules would see: held against hooks on real modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, fx, nn

from sprunec.families.cpm_ant.blocks import example_inputs
from sprunec.families.states import SIDES, Point, state_widths
from sprunec.rewrite.gating import UNITS, Gates, insert_gates
from sprunec.rewrite.taps import observable
from sprunec.rewrite.trace import TracedBlock, trace_blocks
from tests.conftest import random_batch, tiny_config, tiny_model

POINTS = [Point(side, name) for name in state_widths(tiny_config()) for side in SIDES]


def gated(*units: str) -> tuple[nn.Module, Gates, tuple[TracedBlock, ...]]:
    model = tiny_model()
    blocks = trace_blocks(model, example_inputs(tiny_config()))
    return model, insert_gates(model, blocks, units), blocks


def states(model: nn.Module, points: Iterable[Point], blocks: tuple[TracedBlock, ...] = ()) -> dict[Point, Tensor]:
    """What hooks at the places that `observable` gives see."""
    found: dict[Point, Tensor] = {}
    for point, (module, side) in observable(model, points, blocks).items():
        if side == "pre":
            module.register_forward_pre_hook(lambda _, given, point=point: found.__setitem__(point, given[0]))
        else:
            module.register_forward_hook(lambda _, given, result, point=point: found.__setitem__(point, result))
    model(**random_batch())
    return found


def scaled(change: Callable[[nn.Module], object]) -> nn.Module:
    """Real modules, `change` made to the weights of layer 1."""
    model = tiny_model()
    with torch.no_grad():
        change(model.encoder.layers[1])
    return model


@pytest.mark.parametrize("units", [UNITS, ("head",), ("attention", "feed_forward"), ()])
def test_with_open_gates_every_state_is_the_modules(units: tuple[str, ...]) -> None:
    model, _, blocks = gated(*units)
    wanted, found = states(tiny_model(), POINTS), states(model, POINTS, blocks)
    assert found.keys() == wanted.keys() == set(POINTS)
    assert isinstance(model.encoder.layers[0], fx.GraphModule) == bool(units)
    assert all(torch.equal(found[point], wanted[point]) for point in POINTS)


def test_with_gates_half_closed_states_are_those_of_scaled_weights() -> None:
    """A gate belongs to the weights behind it, so what enters attention_out and w_out is before the gate."""
    heads, dims = torch.tensor([1.0, 0.0, 0.3, 1.0]), torch.linspace(0, 1, 40)

    def change(layer: nn.Module) -> None:
        layer.self_att.self_attention.attention_out.weight.mul_(heads.repeat_interleave(6))
        layer.ffn.ffn.w_out.weight.mul_(dims)

    model, gates, blocks = gated("head", "dim_ff")
    gates.set(1, "head", heads)
    gates.set(1, "dim_ff", dims)
    wanted, found = states(scaled(change), POINTS), states(model, POINTS, blocks)
    plain = states(tiny_model(), POINTS)
    assert max(float((found[point] - wanted[point]).detach().abs().max()) for point in POINTS) < 1e-5
    moved = Point("post", "encoder.layers.1.self_att.self_attention")
    assert float((plain[moved] - wanted[moved]).detach().abs().max()) > 1e-3


def test_a_closed_sublayer_still_shows_what_it_would_add() -> None:
    model, gates, blocks = gated("feed_forward")
    gates.set(1, "feed_forward", torch.zeros(1))
    inner, outer = (Point("post", f"encoder.layers.1.{name}") for name in ("ffn.ffn", "ffn"))
    found, plain = states(model, [inner, outer], blocks), states(tiny_model(), [inner, outer])
    assert torch.equal(found[inner], plain[inner])
    assert not torch.equal(found[outer], plain[outer])


def test_taps_change_nothing_and_carry_gradients_to_gates_and_weights() -> None:
    model, gates, blocks = gated("head", "dim_ff")
    before = model(**random_batch())[0]
    gate = torch.ones(4, requires_grad=True)
    gates.set(0, "head", gate)
    point = Point("pre", "encoder.layers.1.ffn.ffn.w_in.w_0")
    states(model, [point, Point("post", "encoder.layers.1.ffn.layernorm_before_ffn")], blocks)[point].sum().backward()
    assert (gate.grad != 0).all()
    assert (model.get_parameter("encoder.layers.0.ffn.ffn.w_out.weight").grad != 0).any()
    assert torch.equal(model(**random_batch())[0], before)
    assert model.state_dict().keys() == tiny_model().state_dict().keys()


def test_absent_sublayers_move_the_first_input_of_the_next() -> None:
    """A feed-forward without attention in front of it is given the block's own input."""
    absent = {"mask_modules": [[True, False]] * 3}
    model, plain = tiny_model(**absent), tiny_model(**absent)
    blocks = trace_blocks(model, example_inputs(tiny_config(**absent)))
    insert_gates(model, blocks, ["dim_ff"])
    points = [Point("pre", "encoder.layers.1.ffn"), Point("pre", "encoder.layers.1")]
    found, wanted = states(model, points, blocks), states(plain, points)
    assert all(torch.equal(found[point], wanted[point]) for point in points)
    assert torch.equal(found[points[0]], found[points[1]])
