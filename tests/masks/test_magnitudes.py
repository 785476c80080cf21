"""Magnitudes of units whose weights are laid out in a family's own way, against sums over the same weights by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sprunec.families.huggingface.recording import record_calls
from sprunec.masks.scores import Weights, magnitude
from sprunec.rewrite.projections import projections
from sprunec.rewrite.trace import TracedBlock, trace_called
from tests.helpers.causal_lms import causal_lm

HEADS, GROUPS, EACH, DIMS = 6, 2, 3, 8  # heads, key-value groups, heads in each, dims of a head
SIZES = {"kv_group": GROUPS, "head": HEADS, "dim_ff": 56}
Parts = Callable[[dict[str, Tensor]], list[Tensor]]


def by_unit(*parts: tuple[Tensor, int]) -> list[Tensor]:
    """Rows (units, numbers of each), of tensors whose first dim is so many units after the other."""
    return [tensor.unflatten(0, (units, -1)).flatten(1) for tensor, units in parts]


def biased(w: dict[str, Tensor]) -> list[Tensor]:
    """Qwen2: queries, keys and values have biases, the output has none."""
    inputs = [w[f"self_attn.{part}_proj.{kind}"] for part in "qkv" for kind in ("weight", "bias")]
    return by_unit(*((each, GROUPS) for each in (*inputs, w["self_attn.o_proj.weight"].T)))


def biased_heads(w: dict[str, Tensor]) -> list[Tensor]:
    query, out = (w[f"self_attn.{name}"] for name in ("q_proj.weight", "o_proj.weight"))
    return by_unit((query, HEADS), (w["self_attn.q_proj.bias"], HEADS), (out.T, HEADS))


def fused(w: dict[str, Tensor]) -> list[Tensor]:
    """Phi-3: the rows of all queries, then of all keys, then of all values."""
    query, key, value = w["self_attn.qkv_proj.weight"].split([HEADS * DIMS, GROUPS * DIMS, GROUPS * DIMS])
    return by_unit((query, GROUPS), (key, GROUPS), (value, GROUPS), (w["self_attn.o_proj.weight"].T, GROUPS))


def fused_heads(w: dict[str, Tensor]) -> list[Tensor]:
    query = w["self_attn.qkv_proj.weight"][: HEADS * DIMS]
    return by_unit((query, HEADS), (w["self_attn.o_proj.weight"].T, HEADS))


def fused_dims(w: dict[str, Tensor]) -> list[Tensor]:
    """Phi-3: the rows of the gate, then as many others; what is fused in equal pieces is one part."""
    return [torch.cat(w["mlp.gate_up_proj.weight"].chunk(2), 1), w["mlp.down_proj.weight"].T]


def turned_heads(w: dict[str, Tensor]) -> list[Tensor]:
    """GPT-2: a Conv1D's weight is (inputs, outputs), of queries, keys and values side by side."""
    inputs = (w["attn.c_attn.weight"].T, w["attn.c_attn.bias"])
    fused = [torch.cat(by_unit(*((piece, HEADS) for piece in each.chunk(3))), 1) for each in inputs]
    return [*fused, *by_unit((w["attn.c_proj.weight"], HEADS))]


def turned_dims(w: dict[str, Tensor]) -> list[Tensor]:
    return [w["mlp.c_fc.weight"].T, w["mlp.c_fc.bias"][:, None], w["mlp.c_proj.weight"]]


def headwise(w: dict[str, Tensor]) -> list[Tensor]:
    """GPT-NeoX: the rows of one head's query, key and value stand together, and are one part."""
    fused = (w[f"attention.query_key_value.{kind}"] for kind in ("weight", "bias"))
    return by_unit(*((each, HEADS) for each in (*fused, w["attention.dense.weight"].T)))


CASES: dict[str, tuple[str, str, Parts]] = {
    "Qwen2's groups": ("qwen2", "kv_group", biased),
    "Qwen2's heads": ("qwen2", "head", biased_heads),
    "Phi-3's groups": ("phi3", "kv_group", fused),
    "Phi-3's heads": ("phi3", "head", fused_heads),
    "Phi-3's dims": ("phi3", "dim_ff", fused_dims),
    "GPT-2's heads": ("gpt2", "head", turned_heads),
    "GPT-2's dims": ("gpt2", "dim_ff", turned_dims),
    "GPT-NeoX's heads": ("gpt_neox", "head", headwise),
}


def traced(name: str) -> tuple[dict[str, Tensor], tuple[TracedBlock, ...]]:
    model = causal_lm(name)
    return model.state_dict(), trace_called(model, record_calls(model))


@pytest.mark.parametrize("case", CASES)
def test_magnitude_is_the_root_mean_square_over_a_units_parts(case: str) -> None:
    name, unit, parts = CASES[case]
    weights, blocks = traced(name)
    scores = magnitude(Weights(blocks, {(block.index, unit): SIZES[unit] for block in blocks}, weights, 0))
    assert scores.keys() == {(0, unit), (1, unit)}
    for block in blocks:
        own = {name.removeprefix(f"{block.path}."): tensor for name, tensor in weights.items()}
        squares = [part.square().mean(1) for part in parts(own)]
        assert {len(each) for each in squares} == {SIZES[unit]}
        torch.testing.assert_close(scores[(block.index, unit)], torch.stack(squares).mean(0).sqrt())


@pytest.mark.parametrize("name", ["qwen2", "gpt_neox", "gpt2"])
def test_a_bias_alone_sets_a_head_apart(name: str) -> None:
    weights, blocks = traced(name)
    sizes = {(0, "head"): HEADS}
    before = magnitude(Weights(blocks, sizes, weights, 0))[(0, "head")]
    biases = {
        "qwen2": "self_attn.q_proj.bias",
        "gpt_neox": "attention.query_key_value.bias",
        "gpt2": "attn.c_attn.bias",
    }
    bias = f"{blocks[0].path}.{biases[name]}"
    rows = slice(2 * 3 * DIMS, 3 * 3 * DIMS) if name == "gpt_neox" else slice(2 * DIMS, 3 * DIMS)
    weights[bias][rows] = 50.0
    after = magnitude(Weights(blocks, sizes, weights, 0))[(0, "head")]
    assert int(after.argmax()) == 2
    assert [head for head in range(HEADS) if after[head] != before[head]] == [2]


PROJECTED = {
    "qwen2": ("self_attn.o_proj.weight", "mlp.down_proj.weight", False),
    "phi3": ("self_attn.o_proj.weight", "mlp.down_proj.weight", False),
    "gpt_neox": ("attention.dense.weight", "mlp.dense_4h_to_h.weight", False),
    "gpt2": ("attn.c_proj.weight", "mlp.c_proj.weight", True),
}


@pytest.mark.parametrize("name", PROJECTED)
def test_units_leave_through_outputs_by_inputs_however_a_weight_is_laid_out(name: str) -> None:
    _, blocks = traced(name)
    *names, turned = PROJECTED[name]
    found = {projection.tensor: projection for projection in projections(blocks[0])}
    assert found.keys() == {*names}
    for tensor, units in zip(names, ({"head": (1, 6, 8), "dim_ff": None}, {"dim_ff": (1, 56, 1)}), strict=True):
        own = blocks[0].tensors()[tensor]
        assert torch.equal(found[tensor].weight, own.T if turned else own)
        assert {unit: found[tensor].units(unit) for unit in units} == units
