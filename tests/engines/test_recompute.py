"""What saves memory in one process, blocks computed again and weights offloaded, trains as what saves none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sprunec.engines.torch_engine import TorchEngine
from sprunec.families.cpm_ant.blocks import example_inputs
from sprunec.rewrite.gating import insert_gates
from sprunec.rewrite.trace import trace_blocks
from sprunec.units import gate_units
from tests.conftest import tiny_config, tiny_model
from tests.engines.test_loop import CPU, TRAINING, batch

ROOT = Path(__file__).parents[2]
UNITS = ("block", "attention", "head", "dim_head", "dim_ff")


def gradients(recompute: bool) -> tuple[dict[Any, Tensor], dict[str, Tensor], list[str], int]:
    """Of gates and weights; the names of the state; how often blocks ran."""
    model, calls = tiny_model(), []
    gates = insert_gates(model, trace_blocks(model, example_inputs(tiny_config())), gate_units(UNITS))
    leaves = {key: torch.full((size,), 0.7, requires_grad=True) for key, size in gates.sizes.items()}
    for key, leaf in leaves.items():
        gates.set(*key, leaf)
    for layer in model.encoder.layers:
        watch(layer, calls)
    driver = TorchEngine(CPU.place, recompute=recompute).drive(model, TRAINING)
    driver.backward(driver.losses(batch(0), [lambda logits, places: logits.square().mean()])[0])
    return (
        {key: leaf.grad for key, leaf in leaves.items()},
        {name: p.grad for name, p in model.named_parameters()},
        list(model.state_dict()),
        len(calls),
    )


def watch(module: nn.Module, calls: list[int]) -> None:
    forward = module.forward

    def counted(*given: Any) -> Any:
        calls.append(1)
        return forward(*given)

    module.forward = counted  # type: ignore[method-assign]


def test_gates_and_weights_get_the_gradients_of_blocks_that_are_computed_again() -> None:
    kept, again = gradients(False), gradients(True)
    assert len(kept[0]) == 15 and all(float(gradient.abs().max()) > 0 for gradient in kept[0].values())
    for left, right in zip(kept[:2], again[:2], strict=True):
        assert left.keys() == right.keys()
        assert max(float((left[name] - right[name]).abs().max()) for name in left) < 1e-6
    assert kept[2] == again[2]
    assert (kept[3], again[3]) == (3, 6)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_driven_model_gives_its_weights_by_its_own_names(recompute: bool) -> None:
    model = tiny_model()
    engine = TorchEngine(CPU.place, recompute=recompute)
    engine.drive(model, TRAINING)
    assert engine.weights(model).keys() == tiny_model().state_dict().keys()


def test_what_is_offloaded_trains_the_same_across_a_stop(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.helpers.offloaded", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-6
