"""A training step, side by side: the dense model, the same with gates, and the small model they lead to.

    python benchmarks/steps.py [--width 256] [--steps 20] [--device cpu]

Steps of the three take turns, so that a busy moment of the machine falls on all of them; medians are compared.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from statistics import median

import torch
from models import TRAINING, model_of

from sprunec.data.batches import Batch
from sprunec.data.compared import random_batch
from sprunec.engines.device import Place
from sprunec.engines.loop import fit
from sprunec.engines.torch_engine import TorchEngine
from sprunec.engines.training import Training
from sprunec.families.base_config import everything, unit_sizes
from sprunec.families.cpm_ant.blocks import build, example_inputs, initialize
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.families.cpm_ant.model import CPMAnt
from sprunec.masks.budgets import make_budgets
from sprunec.masks.lagrangian import Lagrangian
from sprunec.masks.learn import GateLearner, start_from
from sprunec.rewrite.gating import insert_gates
from sprunec.rewrite.trace import trace_blocks
from sprunec.units import gate_units

UNITS = ("attention", "feed_forward", "head", "dim_ff")


def fresh(config: ModelConfig, place: Place) -> CPMAnt:
    model = build(config)
    initialize(model, 0)
    return model.to(place.device)


def gated(config: ModelConfig, place: Place, steps: int) -> tuple[CPMAnt, GateLearner]:
    """A model whose sublayers, heads and dims all carry gates, halfway to half its size."""
    model = fresh(config, place)
    gates = insert_gates(model, trace_blocks(model, example_inputs(config)), gate_units(UNITS))
    budgets = make_budgets(config, UNITS, {"sparsity": 0.5}, "global")
    scores = {key: torch.rand(size) for key, size in unit_sizes(config, UNITS).items()}
    lagrangian = Lagrangian(budgets, steps, 0.5)
    learner = GateLearner(gates, start_from(scores), lagrangian, steps=steps, rate=0.1, seed=0, device=place.device)
    return model, learner


def small_config(config: ModelConfig) -> ModelConfig:
    """A quarter of the heads, half of the dims."""
    heads, dims = tuple(range(config.num_heads // 4)), tuple(range(config.dim_ff // 2))
    kept = [{"head": heads, "dim_head": tuple(range(config.dim_head)), "dim_ff": dims}] * config.num_layers
    return config.cut(everything(config), kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    place, width = Place.of(arguments.device, "fp32"), arguments.width
    config = model_of(width, 6, vocab_size=2048, dim_ff=3 * width)
    batch = random_batch(config, rows=8, text=124)
    model, learner = gated(config, place, arguments.steps + 1)
    runs: dict[str, Callable[[], None]] = {
        "dense": stepper(fresh(config, place), batch, place, None),
        "gated": stepper(model, batch, place, learner),
        "small": stepper(fresh(small_config(config), place), batch, place, None),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(arguments.steps + 1):
        for name, step in runs.items():
            started = time.perf_counter()
            step()
            if turn:  # the first of each warms up
                seconds[name].append(time.perf_counter() - started)
    times = {name: median(values) for name, values in seconds.items()}
    print(f"{'':8}{'ms a step':>12}{'of dense':>12}")
    for name, value in times.items():
        print(f"{name:8}{1000 * value:>12.1f}{value / times['dense']:>11.2f}x")
    print(json.dumps({"seconds": times, "device": str(place.device), "torch": torch.__version__}))


def stepper(model: CPMAnt, batch: Batch, place: Place, learner: GateLearner | None) -> Callable[[], None]:
    training, engine = Training(steps=1, **TRAINING), TorchEngine(place)

    def step() -> None:
        fit(model, lambda _: batch, training, engine, first_step=0, report=lambda _: None, learner=learner)

    return step


if __name__ == "__main__":
    main()
