"""The mask that a model leaves out: torch's own attention is told of it, and all else reads what it stands for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sprunec.families.huggingface.causal_mask import CausalMask
from sprunec.families.huggingface.recording import record_calls
from sprunec.models.verify import graph_module
from sprunec.rewrite.trace import trace_called
from tests.helpers.causal_lms import causal_lm, token_ids
from tests.helpers.given_blocks import given_to_blocks

LOWER = [[True, False, False], [True, True, False], [True, True, True]]


def was_read(mask: Tensor) -> bool:
    return "spelled" in vars(mask)


def drawn(new: int, seen: int) -> dict[str, Tensor]:
    noise = torch.Generator().manual_seed(0)
    sizes = {"query": new, "key": seen, "value": seen}
    return {name: torch.randn(2, 4, size, 8, generator=noise) for name, size in sizes.items()}


def test_attention_of_as_many_keys_is_told_that_it_is_causal() -> None:
    mask, given = CausalMask.of(300, 300, torch.device("cpu")), drawn(300, 300)
    found = F.scaled_dot_product_attention(**given, attn_mask=mask, scale=0.5)
    assert torch.equal(found, F.scaled_dot_product_attention(**given, is_causal=True, scale=0.5))
    assert not was_read(mask)
    assert type(found) is Tensor


@pytest.mark.parametrize(("new", "seen"), [(2, 5), (1, 7)])
def test_attention_behind_a_past_is_given_the_mask(new: int, seen: int) -> None:
    mask, given = CausalMask.of(new, seen, torch.device("cpu")), drawn(new, seen)
    wanted = torch.ones(new, seen, dtype=torch.bool).tril(seen - new)
    found = F.scaled_dot_product_attention(**given, attn_mask=mask)
    assert torch.equal(found, F.scaled_dot_product_attention(**given, attn_mask=wanted))
    assert was_read(mask)


@pytest.mark.parametrize(
    "read", [lambda m: m[0, 0], lambda m: ~~m[:, :, 0:][0, 0], lambda m: m.repeat(2, 1, 1, 1)[1, 0], lambda m: m & m]
)
def test_anything_else_reads_it(read: Any) -> None:
    found = read(CausalMask.of(3, 3, torch.device("cpu")))
    assert found.reshape(3, 3).tolist() == LOWER
    assert type(found) is Tensor


def test_its_shape_type_and_device_are_known_unread() -> None:
    mask = CausalMask.of(3, 5, torch.device("meta"))
    assert (mask.shape, mask.dtype, mask.device.type) == ((1, 1, 3, 5), torch.bool, "meta")
    assert not was_read(mask)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "phi3", "opt"])
def test_graphs_of_blocks_leave_it_unread(name: str) -> None:
    model = causal_lm(name, "sdpa")
    blocks = trace_called(model, record_calls(model))
    given = given_to_blocks(model, blocks, input_ids=token_ids(2, 11), use_cache=False)
    for block in blocks:
        inputs = given[block.path][1]
        (mask,) = (each for each in inputs if isinstance(each, CausalMask))
        spelled = [torch.ones(11, 11, dtype=torch.bool).tril()[None, None] if m is mask else m for m in inputs]
        graph = graph_module(block)
        torch.testing.assert_close(graph.forward(*inputs), graph.forward(*spelled), atol=1e-6, rtol=1e-5)
        assert not was_read(mask)
