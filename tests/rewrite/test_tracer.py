"""A tracer that answers for shapes: what it reads off the inputs, what follows the run's type, what it refuses."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from sprunec.errors import TraceError
from sprunec.families.huggingface.recording import BATCH, NEW, PAST, record_calls
from sprunec.models.verify import graph_module
from sprunec.rewrite.trace import TracedBlock, trace_called
from tests.helpers.causal_lms import causal_lm, token_ids
from tests.helpers.given_blocks import given_to_blocks, verify_all


class Block(nn.Module):
    def __init__(self, body: Callable[[Block, Tensor], Tensor], place: int) -> None:
        super().__init__()
        self.body, self.place = body, place
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor, *, scales: tuple[Tensor, Tensor], **_: Any) -> tuple[Tensor, None]:
        return x + self.down(self.body(self, self.up(x * scales[0]))), None


class Model(nn.Module):
    """Called as those of the library are."""

    def __init__(self, body: Callable[[Block, Tensor], Tensor], depth: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(50, 8)
        self.parts = nn.ModuleList(Block(body, place) for place in range(depth))
        self.unused = nn.ModuleList([nn.Linear(8, 400)])

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Tensor:
        x = self.words(input_ids)
        for part in self.parts:
            x, _ = part(x, scales=(x.mean(1, keepdim=True), x), flag=use_cache)
        return x


def traced(model: nn.Module) -> tuple[TracedBlock, ...]:
    return trace_called(model, record_calls(model))


BODIES: dict[str, Callable[[Block, Tensor], Tensor]] = {
    "unpacked sizes": lambda m, y: y.view(*y.shape[:-1], -1, 4).flatten(2),
    "batch times length": lambda m, y: y.reshape(y.shape[0] * y.shape[1], 12).reshape(y.size()),
    "batch times heads": lambda m, y: (
        y.view(len(y), -1, 3, 4)
        .transpose(1, 2)
        .reshape(3 * len(y), -1, 4)
        .view(len(y), 3, -1, 4)
        .transpose(1, 2)
        .reshape(y.shape)
    ),
    "a negative length": lambda m, y: torch.cat([y, y], 1)[:, -y.shape[1] :],
    "made where and as it is": lambda m, y: y + torch.arange(y.shape[1], device=y.device, dtype=y.dtype)[:, None],
    "branches on what is known": lambda m, y: y.relu() if y.is_floating_point() and y.dim() == 3 else y,
    "rooted in the width": lambda m, y: y / y.size(-1) ** 0.5,
    "filled": lambda m, y: _filled(y),
}


def _filled(y: Tensor) -> Tensor:
    made = y.new_empty(*y.shape[:-1], 12)
    made[..., :5].copy_(y[..., :5] * 2)
    made[..., 5:].copy_(y[..., 5:])
    return made


@pytest.mark.parametrize("name", BODIES)
def test_one_graph_serves_all_sizes(name: str) -> None:
    model = Model(BODIES[name]).eval()
    blocks = traced(model)
    numbers = {int(number) for number in re.findall(r"\d{4,}", "".join(str(b.forward.graph) for b in blocks))}
    assert not [number for number in numbers for size in (BATCH, NEW, PAST) if number % size == 0]
    for batch, length in ((3, 7), (1, 1), (2, 40)):
        ids = torch.randint(0, 50, (batch, length))
        assert verify_all(blocks, given_to_blocks(model, blocks, input_ids=ids)) == 0.0


def test_what_the_model_gives_its_blocks_is_named_after_their_signature() -> None:
    (call, _) = record_calls(Model(BODIES["unpacked sizes"]))[0].calls["forward"], None
    assert {name: tuple(tensor.shape) for name, tensor in call.inputs.items()} == {
        "x": (BATCH, NEW, 8), "scales_0": (BATCH, 1, 8), "scales_1": (BATCH, NEW, 8)
    }  # fmt: skip
    assert all(tensor.is_meta for tensor in call.inputs.values())


def test_recording_leaves_the_model_as_it_was() -> None:
    model = causal_lm("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    called = record_calls(model)
    assert [block.path for block in called] == ["model.layers.0", "model.layers.1"]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_blocks_of_one_kind_share_their_programs_unless_they_compute_with_their_place() -> None:
    same = traced(Model(BODIES["unpacked sizes"], depth=3))
    assert len({id(block.programs) for block in same}) == 1
    other = traced(Model(lambda m, y: y * (1 + m.place), depth=3))
    assert len({id(block.programs) for block in other}) == 3
    assert [len({id(b.programs) for b in traced(causal_lm(name))}) for name in ("llama", "gpt2")] == [1, 2]


def _decides(m: Block, y: Tensor) -> Tensor:
    return y if y.sum() > 0 else -y  # the line to name


def _writes(m: Block, y: Tensor) -> Tensor:
    y[..., 0] = 1.0
    return y


def test_a_value_that_decides_is_refused_with_module_line_and_op() -> None:
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    line = 1 + next(i for i, text in enumerate(lines) if text.endswith("# the line to name"))
    with pytest.raises(TraceError) as caught:
        traced(Model(_decides))
    message = str(caught.value)
    assert message.startswith(f"parts.0 (Block) cannot be traced at {__file__}:{line} `return y if y.sum() > 0 else -y")
    assert message.endswith("a value that `gt` gives decides what is computed")


def test_a_write_in_place_is_refused_with_its_op() -> None:
    with pytest.raises(
        TraceError, match=r"^parts\.0 \(Block\) cannot be traced at .*test_tracer.py:\d+ `y\[.*`setitem` writes"
    ):
        traced(Model(_writes))


def test_a_graph_that_computes_something_else_is_refused() -> None:
    model = Model(lambda m, y: y if y.shape[1] > 3 else y.neg())  # a length decides, which no graph shows
    blocks = traced(model)
    assert verify_all(blocks, given_to_blocks(model, blocks, input_ids=torch.ones(2, 5, dtype=torch.long))) == 0.0
    where = rf"^parts\.0 \(Block\) at {__file__}:\d+ `.*else y.neg.*`: its traced graph computes something else"
    with pytest.raises(TraceError, match=where):
        verify_all(blocks, given_to_blocks(model, blocks, input_ids=torch.ones(2, 2, dtype=torch.long)))


def test_a_model_without_a_list_of_blocks_is_refused() -> None:
    class Flat(nn.Module):
        def forward(self, input_ids: Tensor) -> Tensor:
            return input_ids

    with pytest.raises(TraceError, match="Flat has no list of modules that runs once for each of its members"):
        record_calls(Flat())


def test_a_graph_in_a_models_place_takes_no_cache() -> None:
    model = causal_lm("llama")
    for block in traced(model):
        model.set_submodule(block.path, graph_module(block))
    with torch.no_grad(), pytest.raises(TraceError, match="call it with use_cache=False"):
        model(input_ids=token_ids(1, 4))


class _Types(fx.Interpreter):
    """Notes the types of all floating-point values."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.seen: set[torch.dtype] = set()

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and value.is_floating_point():
            self.seen.add(value.dtype)
        return value


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "phi3", "falcon", "olmo2"])
def test_float64_runs_are_float64_throughout_and_others_keep_their_casts(name: str) -> None:
    model = causal_lm(name)
    blocks = traced(model)
    given = given_to_blocks(model, blocks, input_ids=token_ids(2, 5), use_cache=False)
    for dtype, wide in ((torch.float64, torch.float64), (torch.bfloat16, torch.float32)):
        model.to(dtype)
        for block in blocks:
            types = _Types(graph_module(block))
            types.run(*(each.to(dtype) if each.is_floating_point() else each for each in given[block.path][1]))
            assert types.seen == ({dtype} if name == "falcon" else {dtype, wide})
