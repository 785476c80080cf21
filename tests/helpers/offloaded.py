"""One process that keeps its weights in parts of one, offloaded, stopped and gone on with, against one that does not.

A program of its own, because its process group would stay in the tests' process. On a CPU nothing can be pinned.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sprunec.engines import sharding
from sprunec.engines.checkpoints import Saves
from sprunec.engines.loop import fit
from sprunec.engines.torch_engine import TorchEngine
from tests.conftest import tiny_model
from tests.engines.test_loop import CPU, TRAINING, batch

STEPS = 4


def train(engine: TorchEngine, directory: Path, until: int = STEPS) -> tuple[list[float], dict[str, torch.Tensor]]:
    model, events = tiny_model(), []
    saves = Saves(directory, 1, lambda: until < STEPS and len(events) >= until)
    training = replace(TRAINING, steps=STEPS)
    try:
        fit(model, batch, training, engine, first_step=0, report=events.append, saves=saves)
    except KeyboardInterrupt:
        assert len(events) == until
    return [event["loss"] for event in events], engine.weights(model)


def main(directory: Path) -> None:
    policy: Any = sharding.CPUOffloadPolicy
    sharding.CPUOffloadPolicy = lambda: policy(pin_memory=False)  # type: ignore[assignment, misc]
    offloaded = TorchEngine(CPU.place, full=True, offload=True)
    plain, wanted = train(CPU, directory / "plain")
    begun, _ = train(offloaded, directory / "offloaded", until=2)
    ended, found = train(offloaded, directory / "offloaded")
    assert found.keys() == wanted.keys()
    far = max(abs(a - b) for a, b in zip(plain, begun + ended, strict=True))
    print(max(far, *(float((wanted[name] - found[name]).abs().max()) for name in wanted)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
