"""What training is said to cost, against what it costs."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
import torch
from torch import Tensor, nn

from sprunec.data.batches import Batch
from sprunec.engines.adapters import adapt
from sprunec.engines.device import Place
from sprunec.engines.losses import cross_entropy, language_model_loss
from sprunec.engines.torch_engine import TorchEngine
from sprunec.engines.training import Adapter
from sprunec.families.base_config import unit_cost
from sprunec.families.cards import read_config
from sprunec.families.cpm_ant.blocks import build, initialize
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.families.tensor_names import projections, selected
from sprunec.plan.plan import read_plan
from sprunec.plan.scale import Setting, block_activations, cost, losses, plan_costs, shards_by_itself
from tests.engines.test_loop import TRAINING
from tests.helpers.small_plans import MODEL, TRAIN, plan, write

ROOT = Path(__file__).parents[2]
WIDE = MODEL | {"dim_model": 128, "num_heads": 4, "dim_head": 32, "dim_ff": 384, "vocab_size": 512}
ROWS, COLUMNS = 4, 66
FULL = {"sharding": "full"}


def batch(config: ModelConfig) -> Batch:
    from sprunec.data.compared import random_batch

    return random_batch(config, rows=ROWS, text=COLUMNS - config.prompt_length)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_state_is_what_is_computed(optimizer: str) -> None:
    config = ModelConfig.from_dict(WIDE)
    model = build(config)
    initialize(model, 0)
    engine = TorchEngine(Place.of("cpu", "fp32"))
    driver = engine.drive(model, replace(TRAINING, optimizer=optimizer))
    driver.backward(driver.losses(batch(config), [lambda logits, places: logits.float().square().mean()])[0])
    driver.step(0.01, driver.norm())
    parameters = list(model.parameters())
    moments = [value for entry in driver.optimizer.state.values() for value in entry.values() if value.dim()]
    held = sum(t.nbytes for t in (*parameters, *(p.grad for p in parameters), *moments))
    assert held == cost(config, Setting(optimizer=optimizer)).state
    inside = sum(p.numel() for name, p in model.named_parameters() if ".layers." in name)
    assert inside == sum(unit_cost(config, index, "block") for index in range(config.num_layers))


@pytest.mark.parametrize("how", ["freeze", "adapter"])
def test_what_does_not_train_has_no_gradients_and_no_moments(how: str) -> None:
    config = ModelConfig.from_dict(WIDE)
    model = build(config)
    initialize(model, 0)
    if how == "adapter":
        lora = Adapter(kind="lora", rank=4, alpha=8.0, targets=("attention", "w_out"))
        adapt(model, lora, projections(config, lora.targets), lambda name: torch.bfloat16, 0)
        setting = Setting(rank=lora.rank, targets=lora.targets, item=2)
    else:
        for name in selected(config, ("attention", "embedding")):
            model.get_parameter(name).requires_grad_(False)
        setting = Setting(freeze=("attention", "embedding"))
    driver = TorchEngine(Place.of("cpu", "fp32")).drive(model, TRAINING)
    driver.backward(language_model_loss(model, batch(config)))
    driver.step(0.01, driver.norm())
    parameters = list(model.parameters())
    moments = [value for entry in driver.optimizer.state.values() for value in entry.values() if value.dim()]
    found = cost(config, setting)
    assert sum(p.nbytes for p in parameters) == found.weights
    assert sum(p.grad.nbytes for p in parameters if p.grad is not None) == found.gradients
    assert sum(moment.nbytes for moment in moments) == found.moments == 2 * found.gradients
    assert found.gradients < 0.7 * cost(config, Setting()).gradients


class Kept:
    """A tensor for the backward pass, as long as that is to come."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def kept_for_backward(model: nn.Module, engine: TorchEngine, data: Batch) -> int:
    """Bytes that autograd keeps once the loss is there, but for the model's own."""
    driver = engine.drive(model, TRAINING)
    owned = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: WeakSet[Kept] = WeakSet()

    def pack(tensor: Tensor) -> Kept:
        held = Kept(tensor)
        kept.add(held)
        return held

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor), engine.place.precision():
        loss, _ = driver.losses(data, [cross_entropy(data, 1 / data.target_count)])
    assert float(loss.detach()) > 0
    storages = {storage.data_ptr(): storage.nbytes() for storage in (held.tensor.untyped_storage() for held in kept)}
    return sum(size for place, size in storages.items() if place not in owned)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("layers", [2, 6])
def test_activations_are_about_what_is_computed(layers: int, recompute: bool, precision: str) -> None:
    """Where blocks are computed again, their inputs are kept."""
    config = ModelConfig.from_dict(WIDE | {"num_layers": layers})
    model = build(config)
    initialize(model, 0)
    kept = kept_for_backward(model, TorchEngine(Place.of("cpu", precision), recompute=recompute), batch(config))
    setting = Setting(sequences=ROWS, positions=COLUMNS, precision=precision, recompute=recompute)
    found, again = cost(config, setting), block_activations(config, 0, setting) if recompute else 0.0
    assert kept == pytest.approx(found.activations + found.working - again - losses(config, setting), rel=0.25)


@pytest.mark.slow
def test_two_processes_hold_and_send_what_is_computed() -> None:
    command = [sys.executable, "benchmarks/sharding.py", "--width", "64", "--layers", "2", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=True)
    found = json.loads(done.stdout)
    config = read_config(found["config"])
    for mode, full in (("DDP", False), ("FSDP2", True)):
        wanted, row = cost(config, Setting(2, full)), found["modes"][mode]
        assert row["state"] == pytest.approx(wanted.state, rel=0.01)
        assert row["traffic"] == pytest.approx(wanted.traffic, rel=0.01)


def test_parts_shrink_with_devices_and_wholes_do_not() -> None:
    config = ModelConfig.from_dict(WIDE)
    one, ddp, fsdp = (cost(config, Setting(n, full)) for n, full in ((1, False), (8, False), (8, True)))
    assert ddp.state == one.state == 8 * fsdp.state
    assert one.traffic == 0 < ddp.traffic < fsdp.traffic < 1.5 * ddp.traffic
    taught = Setting(teacher=1000)  # and its logits
    assert cost(config, taught).memory - one.memory == 1000 + losses(config, taught) - losses(config, Setting())


def test_a_teacher_lies_in_shards_and_every_part_gathers_anew() -> None:
    config = ModelConfig.from_dict(WIDE)
    blocks = sum(unit_cost(config, index, "block") for index in range(config.num_layers))
    alone, taught = (cost(config, Setting(4, True, teacher=4 * size)) for size in (0, config.parameters()))
    outside = 4 * (config.parameters() - blocks)
    assert taught.working - alone.working == pytest.approx(config.parameters() + outside)  # a quarter of 4 bytes each
    assert taught.traffic - alone.traffic == pytest.approx(0.75 * 4 * blocks)
    assert cost(config, Setting(4, True, parts=3)).traffic == pytest.approx(3 * alone.traffic)
    assert cost(config, Setting(4, parts=3)).traffic == cost(config, Setting(4)).traffic  # added once


def test_auto_shards_what_would_fill_half_a_device() -> None:
    assert not shards_by_itself(10**9, 40e9)
    assert shards_by_itself(10**9, 30e9)


@pytest.mark.parametrize(
    ("engine", "devices", "shardings"),
    [
        ({}, 1, ["none"]),
        ({}, 4, ["none", "full"]),
        ({"sharding": "full"}, 2, ["full"]),
        ({"sharding": "full"}, 1, ["none"]),
    ],
)
def test_a_plan_says_what_it_costs(engine: dict[str, Any], devices: int, shardings: list[str], tmp_path: Path) -> None:
    found = plan_costs(read_plan(write(tmp_path, plan(TRAIN, engine=engine))), devices)
    assert [row["sharding"] for row in found] == shardings
    wanted = cost(
        ModelConfig.from_dict(MODEL), Setting(devices, shardings[-1] == "full", sequences=4 // devices, positions=34)
    )
    assert (found[-1]["memory"], found[-1]["traffic"]) == (wanted.memory, wanted.traffic)


def test_a_plan_that_trains_nothing_costs_nothing(tmp_path: Path) -> None:
    scored = {"pass": "score-mask", "criterion": "random", "unit": "head", "target": {"num_heads": 3}}
    content = plan(scored, model={"config": MODEL, "checkpoint": "none.pt"})
    assert plan_costs(read_plan(write(tmp_path, content)), 2) == []
