"""A library's model whose blocks are graphs with gates, learned for a few steps by any engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sprunec.data.batches import Batch
from sprunec.engines.loop import fit
from sprunec.engines.torch_engine import TorchEngine
from sprunec.engines.training import Training
from sprunec.masks.budgets import make_budgets
from sprunec.masks.lagrangian import Lagrangian
from sprunec.masks.learn import GateLearner, start_from
from sprunec.models.meta_models import traced
from sprunec.rewrite.gating import Gates, insert_gates
from tests.engines.test_loop import CPU, OPTIONS
from tests.families.huggingface.test_cut_models import graphs, saved
from tests.helpers.causal_lms import token_ids

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
