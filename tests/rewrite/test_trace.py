"""Tracing block by block: what is found, on which device, and what an untraceable block says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sprunec.errors import TraceError
from sprunec.families.cpm_ant.blocks import example_inputs
from sprunec.families.module_lists import blocks
from sprunec.models.meta_models import empty_model
from sprunec.rewrite.trace import trace, trace_blocks
from tests.conftest import random_batch, tiny_config, tiny_model
from tests.helpers.strange import Strange

IDS = torch.arange(14).reshape(2, 7)


class Moody(nn.Module):
    """Looks at its data to decide what to do."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.map(x)
        if y.sum() > 0:  # the line to name
            return x + y
        return x - y


class Wrapper(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Model(nn.Module):
    def __init__(self, *members: nn.Module) -> None:
        super().__init__()
        self.stack = nn.Module()
        self.stack.items = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        for item in self.stack.items:
            x = item(x)
        return x


def test_data_dependent_control_flow_is_named_with_path_and_line() -> None:
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    line = 1 + next(i for i, text in enumerate(lines) if text.endswith("# the line to name"))
    with pytest.raises(TraceError) as caught:
        trace(Model(nn.Linear(4, 4), Wrapper(Wrapper(Moody()))), torch.zeros(2, 4))
    message = str(caught.value)
    assert message.startswith("stack.items.1.inner.inner (Moody) cannot be traced")
    assert f"at {__file__}:{line} `if y.sum() > 0:" in message
    assert caught.value.exit_code == 1


def test_a_bad_block_itself_goes_by_its_own_path() -> None:
    with pytest.raises(TraceError, match=r"^stack\.items\.0 \(Moody\) cannot be traced at .*test_trace\.py:\d+"):
        trace(Model(Moody()), torch.zeros(2, 4))


def test_hooks_are_gone_after_a_failed_run() -> None:
    model = Model(nn.Linear(4, 4))
    with pytest.raises(RuntimeError):
        trace(model, torch.zeros(2, 5))
    assert not model.stack.items[0]._forward_pre_hooks


def test_blocks_are_members_of_the_outermost_lists() -> None:
    model = Model(Wrapper(nn.ModuleList([nn.Linear(4, 4)])), nn.Linear(4, 4))
    assert [path for path, _ in blocks(model)] == ["stack.items.0", "stack.items.1"]
    assert [path for path, _ in blocks(tiny_model())] == [f"encoder.layers.{i}" for i in range(3)]


def test_blocks_that_did_not_run_are_left_out_and_keep_the_others_numbers() -> None:
    model = Strange().eval()
    inputs = {"units.2": {"forward": (torch.zeros(2, 7, 24), torch.zeros(1, 4, 7, 7))}}
    (block,) = trace_blocks(model, inputs)
    assert (block.index, block.path) == (2, "units.2")


def test_a_trace_holds_the_modules_own_tensors() -> None:
    model = tiny_model()
    (first, *_) = trace_blocks(model, example_inputs(tiny_config()))
    assert first.tensors() == dict(model.encoder.layers[0].named_parameters())
    assert first.module is model.encoder.layers[0]


def test_meta_models_trace_like_real_ones() -> None:
    config = tiny_config()
    real, shape = (trace_blocks(m, example_inputs(config)) for m in (tiny_model(), empty_model(config)))
    assert [block.sites for block in real] == [block.sites for block in shape]
    assert all(t.is_meta for block in shape for t in block.tensors().values())


def test_real_inputs_and_example_inputs_give_the_same_graph() -> None:
    model, config, batch = tiny_model(), tiny_config(), random_batch()
    seen = trace(model, *batch.values())
    given = trace_blocks(model, {p: {"forward": i["forward"]} for p, i in example_inputs(config).items()})
    assert [str(block.forward.graph) for block in seen] == [str(block.forward.graph) for block in given]
    assert [block.sites for block in seen] == [block.sites for block in given]


def test_tracing_changes_nothing() -> None:
    model = Strange().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        logits = model(IDS)
        trace(model, IDS)
        assert torch.equal(model(IDS), logits)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(type(unit).__name__ == "Unit" for unit in model.units)


def test_both_methods_are_traced_without_branches() -> None:
    (block, *_) = trace_blocks(tiny_model(), example_inputs(tiny_config()))
    inputs = {
        method: [n.name for n in program.graph.nodes if n.op == "placeholder"]
        for method, program in block.programs.items()
    }
    assert inputs == {
        "forward": ["hidden", "attention_bias"],
        "forward_cached": ["hidden", "attention_bias", "past_key", "past_value"],
    }
