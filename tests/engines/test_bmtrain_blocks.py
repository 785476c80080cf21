"""The BMTrain engine on graphs of a library's blocks: which of their modules it makes its own, and what it learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sprunec.engines.bmtrain_engine import BMTrainEngine
from sprunec.engines.training import Training
from tests.engines.test_bmtrain import PLACE, double  # noqa: F401
from tests.engines.test_loop import CPU, OPTIONS
from tests.helpers.stock_training import gated, learn

pytestmark = [
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated"),
    pytest.mark.usefixtures("double"),
]
NAMES = ["qwen3", "phi3", "gemma3_text"]  # of its own head, with fused weights, with windows and a tied head


@pytest.mark.parametrize("name", NAMES)
def test_gates_and_weights_learn_as_under_plain_torch(name: str, tmp_path: Path) -> None:
    losses, gates, weights = learn(CPU, name, tmp_path)
    found, its, parted = learn(BMTrainEngine(PLACE, recompute=True), name, tmp_path)
    assert losses[-1] < losses[0] - 0.1
    assert max(abs(a - b) for a, b in zip(losses, found, strict=True)) < 1e-4 * losses[0]
    assert all((gates[key] - value).abs().max() < 1e-3 for key, value in its.items())
    assert parted.keys() == {name for name in weights if ".gates." not in name}
    assert max(float((weights[name] - tensor).abs().max()) for name, tensor in parted.items()) < 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_each_block_is_one_of_bmtrains_and_no_gate_is_state(name: str, tmp_path: Path) -> None:
    import bmtrain

    _, model, gates = gated(name, tmp_path)
    before = {name for name, _ in model.named_parameters()}
    wrapped = BMTrainEngine(PLACE, recompute=True).drive(model, Training(**OPTIONS)).model
    blocks = [module for module in wrapped.modules() if isinstance(module, bmtrain.Block)]
    assert len(blocks) == len(gates.sizes) == 2
    assert all(isinstance(parameter, bmtrain.DistributedParameter) for parameter in wrapped.parameters())
    assert {name.replace("_module.", "") for name, _ in wrapped.named_parameters()} == before
    assert not [name for name in wrapped.state_dict() if "gates" in name]
    assert all(type(module) is not torch.nn.Module for module in wrapped.modules())  # it makes a class of each one's
