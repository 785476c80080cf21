"""The BMTrain engine: BMTrain's own Python code on a test double of CUDA and NCCL, against plain torch.

Nothing here has seen a GPU; what the double stands in for is said in `bmtrain_double`.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sprunec.engines import bmtrain_engine, device
from sprunec.engines.bmtrain_engine import BMTrainEngine
from sprunec.engines.device import Place
from sprunec.engines.loop import fit
from sprunec.engines.torch_engine import TorchEngine
from sprunec.engines.training import Training
from sprunec.errors import InputError, PassError
from sprunec.families.cpm_ant.blocks import block_kinds, example_inputs
from sprunec.masks.budgets import make_budgets
from sprunec.masks.lagrangian import Lagrangian
from sprunec.masks.learn import GateLearner, start_from
from sprunec.rewrite.gating import insert_gates
from sprunec.rewrite.trace import trace_blocks
from tests.conftest import tiny_config, tiny_model
from tests.engines.test_loop import CPU, OPTIONS, batch
from tests.helpers import bmtrain_double
from tests.helpers.small_plans import EMIT, execute, mask_pass, plan

pytestmark = pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
PLACE = Place(torch.device("cpu"), torch.float32)
UNITS = ("head", "dim_ff")


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> None:
    bmtrain_double.put_on(monkeypatch)
    monkeypatch.setattr(bmtrain_engine, "check_here", lambda place: None)


def train(engine: TorchEngine, steps: int = 20, **changes: Any) -> tuple[list[float], dict[str, Tensor]]:
    model, events = tiny_model(), []
    training = Training(**(OPTIONS | {"steps": steps, "optimizer": "adam"} | changes))
    fit(model, batch, training, engine, first_step=0, report=events.append)
    return [event["loss"] for event in events], engine.weights(model)


def learn(engine: TorchEngine, steps: int) -> tuple[list[float], GateLearner, dict[str, Tensor]]:
    """Gates on heads and dims of traced blocks, and the weights beside them."""
    model, config, events = tiny_model(), tiny_config(), []
    blocks = trace_blocks(model, example_inputs(config), block_kinds(config))
    gates = insert_gates(model, blocks, UNITS)
    draw = torch.Generator().manual_seed(5)
    scores = {key: torch.rand(size, generator=draw) for key, size in gates.sizes.items()}
    budgets = make_budgets(config, UNITS, {"num_heads": 2, "dim_ff": 20}, "global")
    learner = GateLearner(
        gates,
        start_from(scores),
        Lagrangian(budgets, steps, 0.5),
        steps=steps,
        rate=0.1,
        seed=1,
        device=CPU.place.device,
    )
    training = Training(**(OPTIONS | {"steps": steps, "optimizer": "adam"}))
    fit(model, batch, training, engine, first_step=0, report=events.append, learner=learner)
    return [event["loss"] for event in events], learner, engine.weights(model)


@pytest.mark.parametrize(
    "changes",
    [{}, {"optimizer": "adamw"}, {"optimizer": "sgd"}, {"accumulate": 2, "clip_grad": 0.05}, {"clip_grad": None}],
    ids=["adam", "adamw", "sgd", "parts", "no clipping"],
)
@pytest.mark.parametrize("options", [{}, {"recompute": True}, {"full": False}], ids=["zero3", "recompute", "zero2"])
def test_losses_and_weights_are_those_of_plain_torch(
    changes: dict[str, Any], options: dict[str, Any], double: None
) -> None:
    plain, weights = train(CPU, **changes)
    losses, found = train(BMTrainEngine(PLACE, **options), **changes)
    assert max(abs(a - b) for a, b in zip(plain, losses, strict=True)) < 1e-5
    assert plain[-1] < plain[0] - 0.02
    other = tiny_model()
    other.load_state_dict(found, strict=True)
    assert max((weights[name] - tensor).abs().max() for name, tensor in other.state_dict().items()) < 1e-4


def test_adam_with_moments_on_the_cpu_is_the_same(double: None) -> None:
    plain, _ = train(CPU, steps=5)
    losses, _ = train(BMTrainEngine(PLACE, offload=True), steps=5)
    assert max(abs(a - b) for a, b in zip(plain, losses, strict=True)) < 1e-5


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_gates_get_the_gradient_of_the_loss_through_its_blocks(
    recompute: bool, double: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What BMCook lost exactly there: with block checkpointing its masks never saw the loss."""
    seen: list[list[Tensor]] = []
    backward = GateLearner.backward

    def watched(self: GateLearner, unscale: float) -> None:
        seen[-1].append(torch.cat([leaf.grad.flatten() for leaf in self._leaves.values()]))
        backward(self, unscale)

    monkeypatch.setattr(GateLearner, "backward", watched)
    runs = []
    for engine in (CPU, BMTrainEngine(PLACE, recompute=recompute)):
        seen.append([])
        runs.append(learn(engine, steps=10))
    assert max((a - b).abs().max() for a, b in zip(*seen, strict=True)) < 1e-5
    assert min(gradient.abs().max() for gradient in seen[1]) > 1e-6
    (losses, plain, weights), (found, learner, parted) = runs
    assert max(abs(a - b) for a, b in zip(losses, found, strict=True)) < 1e-5
    assert all((plain.log_alphas[key] - value).abs().max() < 1e-4 for key, value in learner.log_alphas.items())
    assert set(parted) == {name for name in weights if ".gates." not in name}


def test_a_state_goes_on_in_either_engine(double: None) -> None:
    """Weights and moments are saved whole and plain."""
    model, training = tiny_model(), Training(**(OPTIONS | {"steps": 4, "optimizer": "adam"}))
    whole, _ = train(CPU, steps=4)
    first = BMTrainEngine(PLACE)
    driver = first.drive(model, training)
    losses = [one(driver, step) for step in range(2)]
    state = driver.state()
    for engine in (CPU, BMTrainEngine(PLACE)):
        other = engine.drive(tiny_model(), training)
        other.load(deepcopy(state))
        found = losses + [one(other, step) for step in range(2, 4)]
        assert max(abs(a - b) for a, b in zip(whole, found, strict=True)) < 1e-5


def one(driver: Any, step: int) -> float:
    from sprunec.engines.losses import cross_entropy

    data = batch(step)
    loss, _ = driver.losses(data, [cross_entropy(data, 1 / data.target_count)])
    driver.backward(loss)
    driver.step(0.01, driver.norm())
    driver.end(True)
    return float(loss.detach())


def test_fp16_halves_its_scale_at_a_step_that_is_left_out(double: None) -> None:
    half = replace(PLACE, dtype=torch.float16)
    driver = BMTrainEngine(half).drive(tiny_model(), Training(**(OPTIONS | {"optimizer": "adam"})))
    assert (driver.scaled, driver.scale) == (True, 1024.0)
    driver.end(False)
    assert driver.scale == 512.0
    for engine in (TorchEngine(half), BMTrainEngine(half)):
        other = engine.drive(tiny_model(), Training(**(OPTIONS | {"optimizer": "adam"})))
        other.load(driver.state())
        assert other.scale == 512.0


def test_parts_of_another_engine_are_named_and_not_read(double: None) -> None:
    driver = BMTrainEngine(PLACE).drive(tiny_model(), Training(**(OPTIONS | {"optimizer": "adam"})))
    with pytest.raises(PassError, match="step-7 is in shards of FSDP2"):
        driver.load({"shards": Path("step-7")})


def test_a_whole_run_ends_with_the_masks_of_plain_torch(
    double: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_best", lambda: "cpu")
    passes = [mask_pass(["head", "dim_ff"], {"num_heads": 3, "dim_ff": 20}, 6), {"pass": "finetune", "steps": 3}, EMIT]
    reports = []
    for name in ("torch", "bmtrain"):
        folder = tmp_path / name
        folder.mkdir()
        engine = {"name": name, "activation_checkpointing": True}
        training = {"optimizer": "adam", "checkpoint_every": 2}
        reports.append(execute(plan({"pass": "train", "steps": 4}, *passes, engine=engine, training=training), folder))
    plain, found = reports
    assert found["kept"] == plain["kept"]
    assert found["comparison"]["max_abs_difference"] < 1e-9
    assert found["models"]["small"]["loss"] == pytest.approx(plain["models"]["small"]["loss"], abs=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="gpu: no CUDA device here")
def test_on_a_gpu_losses_are_those_of_torch() -> None:
    place = Place(torch.device("cuda"), torch.float32)
    found = []
    for engine in (TorchEngine(place), BMTrainEngine(place, recompute=True)):
        model, events = tiny_model().to("cuda"), []
        training = Training(**(OPTIONS | {"steps": 20, "optimizer": "adam"}))
        fit(model, batch, training, engine, first_step=0, report=events.append)
        found.append([event["loss"] for event in events])
    assert max(abs(a - b) for a, b in zip(*found, strict=True)) < 1e-3


def test_what_it_would_do_wrong_is_refused(double: None) -> None:
    engine, training = BMTrainEngine(PLACE), Training(**OPTIONS)
    tied = tiny_model()
    tied.other = nn.Module()
    tied.other.register_parameter("weight", next(tied.parameters()))
    cases: list[tuple[nn.Module, BMTrainEngine, dict[str, Any], str]] = [
        (tied, engine, {}, "two names"),
        (tiny_model(), engine, {"kept": {"x": torch.ones(1)}}, "2:4"),
        (tiny_model(), engine, {"others": [nn.Parameter(torch.ones(1))]}, "projections"),
        (tiny_model(), replace(engine, offload=True), {}, "no adamw on the CPU"),
    ]
    for model, which, options, words in cases:
        with pytest.raises(InputError, match=words):
            which.drive(model, training, **options)


def test_without_the_package_or_a_gpu_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(**OPTIONS)
    with pytest.raises(InputError, match="works on CUDA alone"):
        BMTrainEngine(PLACE).drive(tiny_model(), training)
    monkeypatch.setattr(bmtrain_engine, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="not installed"):
        BMTrainEngine(PLACE).drive(tiny_model(), training)
