"""Emitted models: opened without sprunec, decoded with a cache, changed where their graphs are."""

from __future__ import annotations

import json
import operator
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sprunec
from sprunec.families.base_config import everything
from sprunec.families.cpm_ant.blocks import build, example_inputs, initialize
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.families.model_directory import save_model
from sprunec.models.meta_models import empty_model
from sprunec.models.model_source import block_source, write_model_py
from sprunec.passes.compare import run_code
from sprunec.rewrite.gating import mask
from sprunec.rewrite.surgery import build as build_module
from sprunec.rewrite.surgery import rewrite
from sprunec.rewrite.trace import trace_blocks
from sprunec.units import Kept
from tests.conftest import TINY, kept_layer, random_batch, tiny_config, tiny_model
from tests.helpers.cut_models import WITHOUT_SPRUNEC
from tests.helpers.decoding import decodes_as_one_forward

DIMS = tuple(range(TINY["dim_head"]))
RAGGED = Kept(
    (
        kept_layer((1, 3), DIMS, (0, 7, 39)),
        kept_layer((0, 1, 3), DIMS, None),
        kept_layer((2,), DIMS, tuple(range(40))),
    )
)
NO_FIRST_ATTENTION = Kept(
    (kept_layer(None, None, (0, 7, 39)), kept_layer((2, 3), DIMS, None), kept_layer(None, None, (5,)))
)
PROMPT = TINY["prompt_length"]


def through_its_own_code(directory: Path) -> nn.Module:
    return run_code(directory).load(directory)


def emitted(directory: Path, kept: Kept) -> Path:
    """A directory as `emit` writes it, of the tiny model cut to `kept`."""
    config = tiny_config()
    small = rewrite(tiny_model(), trace_blocks(tiny_model(), example_inputs(config)), kept)
    after = config.cut(everything(config), kept)
    save_model(directory, after, kept, small.state_dict())
    write_model_py(directory, config, kept, after)
    return directory


OPENED_ALONE = (
    WITHOUT_SPRUNEC
    + """
import json
import torch
sys.path.insert(0, sys.argv[1])
from model import load
model = load(sys.argv[1])
batch = torch.load(sys.argv[2], weights_only=True)
with torch.no_grad():
    torch.save(model(**batch)[0], sys.argv[3])
"""
)


@pytest.mark.parametrize("kept", [RAGGED, NO_FIRST_ATTENTION], ids=["ragged", "no first attention"])
def test_model_py_needs_no_sprunec(kept: Kept, tmp_path: Path) -> None:
    directory = emitted(tmp_path / "model", kept)
    batch = random_batch(5, 23)
    torch.save(batch, tmp_path / "batch.pt")
    command = [sys.executable, "-c", OPENED_ALONE, directory, tmp_path / "batch.pt", tmp_path / "logits.pt"]
    subprocess.run([str(part) for part in command], check=True, cwd=tmp_path)
    logits = torch.load(tmp_path / "logits.pt", weights_only=True)
    masked = tiny_model()
    mask(masked, trace_blocks(masked, example_inputs(tiny_config())), kept)
    with torch.no_grad():
        assert (sprunec.load(directory)(**batch)[0] - logits).abs().max() < 5e-6
        assert (masked(**batch)[0] - logits).abs().max() < 5e-6
        assert (tiny_model()(**batch)[0] - logits).abs().max() > 0.1


@pytest.mark.parametrize("kept", [RAGGED, NO_FIRST_ATTENTION], ids=["ragged", "no first attention"])
@pytest.mark.parametrize("opened", [sprunec.load, through_its_own_code], ids=["load", "model.py"])
def test_cached_steps_equal_one_full_forward(kept: Kept, opened: Any, tmp_path: Path) -> None:
    model = opened(emitted(tmp_path / "model", kept)).eval()
    decodes_as_one_forward(model)


def test_an_op_put_into_a_graph_is_in_model_py(tmp_path: Path) -> None:
    """The file is made of the graphs, so that what a pass changes there is what users get."""
    config = tiny_config()
    shape = empty_model(config)
    blocks = trace_blocks(shape, example_inputs(config))
    graph = blocks[1].forward.graph
    output = graph.output_node()
    with graph.inserting_before(output):
        doubled = graph.call_function(operator.mul, (output.args[0], 2.5))
    output.args = (doubled,)
    model = tiny_model()
    save_model(tmp_path, config, everything(config), model.state_dict())
    write_model_py(tmp_path, config, everything(config), config, blocks)
    source = (tmp_path / "model.py").read_text()
    assert "* 2.5" in source
    assert source.count("class Layer") == 2  # layers 0 and 2 share one, layer 1 has its own
    batch, layer = random_batch(), model.encoder.layers[1]
    model.encoder.layers[1] = Doubled(layer)
    with torch.no_grad():
        assert (through_its_own_code(tmp_path)(**batch)[0] - model(**batch)[0]).abs().max() < 5e-6


class Doubled(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, hidden: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return self.block(hidden, bias) * 2.5


def test_load_never_runs_model_py(tmp_path: Path) -> None:
    directory = emitted(tmp_path / "model", RAGGED)
    (directory / "model.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    sprunec.load(directory)
    assert not (tmp_path / "ran").exists()


def test_config_keeps_what_still_divides(tmp_path: Path) -> None:
    config = json.loads((emitted(tmp_path / "model", RAGGED) / "config.json").read_text())
    assert config["divisors"] == {"attention_out": 24, "score": 6, "feed_forward_out": 40}
    assert [layer["heads"] for layer in config["layers"]] == [2, 3, 1]
    assert [layer["dim_ff"] for layer in config["layers"]] == [3, None, 40]
    assert config["layers"][0]["kept_heads"] == [1, 3]
    assert config["mask_modules"] == [[False, False], [False, True], [False, False]]
    assert config["num_heads"] == 4  # the bias table keeps its columns


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_slices_are_bit_equal(dtype: torch.dtype) -> None:
    """No factor is folded into weights, so cutting costs nothing in any dtype."""
    model = build(tiny_config())
    initialize(model, 0)
    model = model.to(dtype)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    small = rewrite(model, trace_blocks(model, example_inputs(tiny_config())), RAGGED).state_dict()
    name = "encoder.layers.0.ffn.ffn.w_out.weight"
    assert small[name].dtype == dtype
    assert torch.equal(small[name], state[name][:, [0, 7, 39]])


def test_emitted_config_reads_back(tmp_path: Path) -> None:
    directory = emitted(tmp_path / "model", NO_FIRST_ATTENTION)
    config = ModelConfig.from_dict(json.loads((directory / "config.json").read_text()))
    assert config.parameters() == sum(p.numel() for p in sprunec.load(directory).parameters())


class Scaled(nn.Module):
    """Its parameters have the names of functions' keywords."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(4)), nn.Parameter(torch.rand(4))
        self.inner = nn.ModuleList([nn.Linear(4, 4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.layer_norm(x, (4,), weight=self.weight, bias=self.bias)


def test_parameters_may_be_named_like_keywords() -> None:
    model = nn.Module()
    model.blocks = nn.ModuleList([Scaled()])
    (block,) = trace_blocks(model, {"blocks.0": {"forward": (torch.empty(2, 3, 4),)}})
    module = build_module({"forward": block.forward.graph}, {}, block.tensors(), block)
    text = block_source(module, "Block").text
    space: dict[str, Any] = {"nn": nn, "torch": torch, "F": torch.nn.functional, "place": place}
    exec(text, space)
    again = space["Block"]()
    again.load_state_dict(module.state_dict())
    x = torch.randn(2, 3, 4)
    assert torch.equal(again(x), model.blocks[0](x))


def place(module: nn.Module, name: str, value: nn.Parameter) -> None:
    setattr(module, name, value)
