"""The weights behind units, found in models that go by different names."""

from __future__ import annotations

import pytest
import torch

from sprunec.families.cpm_ant.blocks import example_inputs
from sprunec.rewrite.projections import Projection, projections
from sprunec.rewrite.trace import TracedBlock, trace, trace_blocks
from tests.conftest import tiny_config, tiny_model
from tests.helpers.strange import Strange


def by_tensor(block: TracedBlock) -> dict[str, Projection]:
    return {projection.tensor: projection for projection in projections(block)}


def test_cpm_ant_sums_over_heads_and_dims_in_two_projections() -> None:
    block = trace_blocks(tiny_model(), example_inputs(tiny_config()))[1]
    found = by_tensor(block)
    out, inner = "self_att.self_attention.attention_out.weight", "ffn.ffn.w_out.weight"
    assert found.keys() == {out, inner}
    assert found[out].units("head") == (1, 4, 6) and found[out].units("dim_head") == (4, 6, 1)
    assert found[out].units("dim_ff") is None and found[inner].units("dim_ff") == (1, 40, 1)


@pytest.mark.parametrize("fused", ["chunk", "view", "split"])
def test_a_strange_model_has_its_own(fused: str) -> None:
    model = Strange(fused)
    found = by_tensor(trace(model, torch.randint(50, (2, 7)))[0])
    assert found.keys() == {"back.weight", "down.weight"}
    assert found["back.weight"].units("head") == (1, 4, 6) and found["down.weight"].units("dim_ff") == (1, 40, 1)


def test_a_weight_is_seen_as_outputs_by_columns_and_written_through() -> None:
    model = tiny_model()
    projection = by_tensor(trace_blocks(model, example_inputs(tiny_config()))[0])["ffn.ffn.w_out.weight"]
    projection.weight[:, 3] = 7.0
    assert bool((model.encoder.layers[0].ffn.ffn.w_out.weight[:, 3] == 7.0).all())


def test_columns_that_stay_are_those_of_heads_by_dims() -> None:
    block = trace_blocks(tiny_model(), example_inputs(tiny_config()))[0]
    projection = by_tensor(block)["self_att.self_attention.attention_out.weight"]
    head, dim = (block.sites[unit].groups["forward"] for unit in ("head", "dim_head"))
    keep = dict.fromkeys(head, (1, 3)) | dict.fromkeys(dim, (0, 5))
    assert projection.kept(keep) == (6, 11, 18, 23)
    assert projection.kept({}) is None
