"""The BMTrain engine on graphs of a library's blocks: which of their modules it makes its own, and what it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sprunec.data.batches import Batch
from sprunec.engines.bmtrain_engine import BMTrainEngine
from sprunec.engines.loop import fit
from sprunec.engines.torch_engine import TorchEngine
from sprunec.engines.training import Training
from sprunec.masks.budgets import make_budgets
from sprunec.masks.lagrangian import Lagrangian
from sprunec.masks.learn import GateLearner, start_from
from sprunec.models.meta_models import traced
from sprunec.rewrite.gating import Gates, insert_gates
from tests.engines.test_bmtrain import PLACE, double  # noqa: F401
from tests.engines.test_loop import CPU, OPTIONS
from tests.families.huggingface.test_cut_models import graphs, saved
from tests.helpers.causal_lms import token_ids

pytestmark = [
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated"),
    pytest.mark.usefixtures("double"),
]
NAMES = ["qwen3", "phi3", "gemma3_text"]  # of its own head, with fused weights, with windows and a tied head
STEPS = 4


def gated(name: str, folder: Path) -> tuple[Any, Any, Gates]:
    _, config, tensors = saved(name, folder)
    model = graphs(config, tensors, folder)
    return config, model, insert_gates(model, traced(model, config), ["dim_ff"])


def learn(engine: TorchEngine, name: str, folder: Path) -> tuple[list[float], dict[Any, Tensor], dict[str, Tensor]]:
    """Losses, what the gates on dims have learned, and the weights beside them."""
    (config, model, gates), events = gated(name, folder), list[dict[str, Any]]()
    budgets = make_budgets(config, ["dim_ff"], {"dim_ff": 40}, "per-layer")
    start = start_from({key: torch.linspace(0.1, 1.0, size) for key, size in gates.sizes.items()})
    lagrangian, home = Lagrangian(budgets, STEPS, 0.5), CPU.place.device
    learner = GateLearner(gates, start, lagrangian, steps=STEPS, rate=0.1, seed=1, device=home)
    ids = token_ids(2, 9)
    data, training = Batch({"input": ids, "length": torch.tensor([9, 9])}, ids.roll(-1, 1)), OPTIONS | {"steps": STEPS}
    how = Training(**(training | {"optimizer": "adam"}))
    fit(model, lambda _: data, how, engine, first_step=0, report=events.append, learner=learner)
    return [event["loss"] for event in events], learner.log_alphas, engine.weights(model)


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
