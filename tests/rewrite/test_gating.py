"""One multiplication per unit, at the right place: held against weights zeroed by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sprunec.errors import TraceError
from sprunec.families.base_config import everything
from sprunec.families.cpm_ant.blocks import example_inputs
from sprunec.rewrite.gating import UNITS, Gates, insert_gates, mask, scale_along
from sprunec.rewrite.trace import trace, trace_blocks
from sprunec.units import Cut
from tests.conftest import kept_layer, random_batch, tiny_config, tiny_model
from tests.helpers.strange import Strange, Unit

IDS = torch.arange(14).reshape(2, 7)


def gated(*units: str, **changes: object) -> tuple[nn.Module, Gates]:
    model = tiny_model(**changes)
    return model, insert_gates(model, trace_blocks(model, example_inputs(tiny_config(**changes))), units)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(**random_batch())[0]


def by_hand(change: Callable[[nn.Module], object]) -> Tensor:
    """Logits once `change` has been at the weights of layer 1."""
    model = tiny_model()
    with torch.no_grad():
        change(model.encoder.layers[1])
    return logits(model)


def test_scale_along_repeats_a_gate_over_what_lies_inside_it() -> None:
    x = torch.ones(2, 12, 3)
    scaled = scale_along(x, torch.tensor([0.0, 2.0, 5.0]), 1, 2, 2)
    assert scaled[0, :, 0].tolist() == [0, 0, 2, 2, 5, 5, 0, 0, 2, 2, 5, 5]
    assert torch.equal(scale_along(x.half(), torch.ones(3), -1, 1, 1), x.half())


def test_open_gates_change_nothing() -> None:
    model, gates = gated(*UNITS)
    assert torch.equal(logits(model), logits(tiny_model()))
    assert gates.sizes[(2, "dim_head")] == 6
    assert len(gates.sizes) == 3 * (len(UNITS) - 1)  # every head has keys and values of its own


def test_a_head_gate_scales_its_columns_of_the_output_projection() -> None:
    model, gates = gated("head")
    gates.set(1, "head", torch.tensor([1.0, 0.0, 0.3, 1.0]))
    factor = torch.tensor([1.0, 0.0, 0.3, 1.0]).repeat_interleave(6)
    wanted = by_hand(lambda layer: layer.self_att.self_attention.attention_out.weight.mul_(factor))
    assert (logits(model) - wanted).abs().max() < 2e-6
    assert (logits(tiny_model()) - wanted).abs().max() > 1e-3


def test_a_feed_forward_gate_scales_its_column_of_w_out() -> None:
    model, gates = gated("dim_ff")
    factor = torch.linspace(0, 1, 40)
    gates.set(1, "dim_ff", factor)
    wanted = by_hand(lambda layer: layer.ffn.ffn.w_out.weight.mul_(factor))
    assert (logits(model) - wanted).abs().max() < 2e-6


def test_a_dim_head_gate_scales_the_query_once_and_the_context_once() -> None:
    model, gates = gated("dim_head")
    factor = torch.tensor([1.0, 0.5, 0.0, 1.0, 0.2, 1.0])
    gates.set(1, "dim_head", factor)

    def change(layer: nn.Module) -> None:
        layer.self_att.self_attention.project_q.weight.mul_(factor.repeat(4)[:, None])
        layer.self_att.self_attention.attention_out.weight.mul_(factor.repeat(4))

    assert (logits(model) - by_hand(change)).abs().max() < 2e-6


def test_sublayer_and_block_gates_scale_what_is_added() -> None:
    def change(layer: nn.Module) -> None:
        layer.self_att.self_attention.attention_out.weight.mul_(0.5 * 0.25)
        layer.ffn.ffn.w_out.weight.mul_(0.5)

    model, gates = gated("block", "attention", "feed_forward")
    gates.set(1, "block", torch.tensor([0.5]))
    gates.set(1, "attention", torch.tensor([0.25]))
    assert (logits(model) - by_hand(change)).abs().max() < 2e-6


def test_gates_on_one_branch_multiply_in_any_order() -> None:
    results = []
    for units in (("head", "dim_head", "attention", "block"), ("block", "attention", "dim_head", "head")):
        model, gates = gated(*units)
        for unit in units:
            gates.set(1, unit, torch.linspace(0.3, 0.9, gates.sizes[(1, unit)]))
        results.append(logits(model))
    assert (results[0] - results[1]).abs().max() < 2e-6
    assert (results[0] - logits(tiny_model())).abs().max() > 1e-3


def test_gradients_reach_every_gate_and_every_weight() -> None:
    model, gates = gated(*UNITS)
    leaves = {key: torch.ones(size, requires_grad=True) for key, size in gates.sizes.items()}
    for key, leaf in leaves.items():
        gates.set(*key, leaf)
    model(**random_batch())[0].square().mean().backward()
    assert all(leaf.grad is not None and (leaf.grad != 0).all() for leaf in leaves.values())
    assert all(p.grad is not None for p in model.encoder.parameters())


def test_absent_sublayers_have_no_gates() -> None:
    _, gates = gated("head", "dim_ff", "attention", "block", mask_modules=[[True, False], [False, True], [True, True]])
    assert gates.sizes == {(0, "dim_ff"): 40, (0, "block"): 1, (1, "head"): 4, (1, "attention"): 1, (1, "block"): 1}


def test_gates_are_no_weights() -> None:
    plain, (model, gates) = tiny_model(), gated(*UNITS)
    assert {n for n, _ in model.named_parameters()} == {n for n, _ in plain.named_parameters()}
    gates.set(0, "head", torch.ones(4, requires_grad=True))
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_buffers_that_were_saved_are_saved_still() -> None:
    class Shifted(Unit):
        def __init__(self) -> None:
            super().__init__(24, 4, 40, "chunk")
            self.register_buffer("shift", torch.ones(24))

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return super().forward(x + self.shift, mask)

    model = Strange(depth=1).eval()
    model.units[0] = Shifted()
    before = set(model.state_dict())
    insert_gates(model, trace(model.eval(), IDS), ["head"])
    assert set(model.state_dict()) == before


def test_a_mask_equals_zeroed_weights() -> None:
    def change(layer: nn.Module) -> None:
        closed = torch.ones(4, 6)
        closed[[0, 2]] = 0
        attention = layer.self_att.self_attention
        attention.attention_out.weight.mul_((closed * torch.tensor([1, 0, 1, 0, 0, 1.0])).flatten())
        attention.project_q.weight.mul_(torch.tensor([1, 0, 1, 0, 0, 1.0]).repeat(4)[:, None])
        layer.ffn.ffn.w_out.weight[:, 3:] = 0

    model, config = tiny_model(), tiny_config()
    whole = everything(config)
    kept = Cut((whole[0], kept_layer((1, 3), (0, 2, 5), (0, 1, 2)), whole[2]))
    mask(model, trace_blocks(model, example_inputs(config)), kept)
    assert (logits(model) - by_hand(change)).abs().max() < 2e-6


@pytest.mark.parametrize("kind", ["attention", "feed_forward"])
def test_an_absent_sublayer_adds_nothing(kind: str) -> None:
    absent = {"attention": (True, False), "feed_forward": (False, True)}[kind]
    shorter = tiny_model(mask_modules=[absent] * 3)
    model, config = tiny_model(), tiny_config()
    shorter.load_state_dict(model.state_dict(), strict=False)
    left = everything(config).then({(index, kind): [False] for index in range(3)})
    mask(model, trace_blocks(model, example_inputs(config)), left)
    assert torch.equal(logits(model), logits(shorter))


def test_masking_where_nothing_can_be_cut_says_why() -> None:
    model = Strange().eval()
    model.units[1].up.weight = model.units[0].up.weight
    kept = Cut([kept_layer((0,), (0,), (0,))] * 3)
    with pytest.raises(TraceError, match=r"units\.0: no dim_ff can be cut here: .* other blocks use the same tensor"):
        mask(copy.deepcopy(model), trace(model, IDS), kept)
