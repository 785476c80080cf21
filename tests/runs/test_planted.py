"""Useless heads and dims are planted; training masks must find them, and cannot without the language model's gradient.

A small model is trained with the planted units multiplied by zero, so that only the others carry what it has learned.
Then the planted units are opened with noise in their weights, and `train-mask` is told how many to keep, not which.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sprunec.engines.device import Place
from sprunec.engines.loop import fit
from sprunec.engines.losses import language_model_loss
from sprunec.engines.torch_engine import TorchEngine
from sprunec.engines.training import Training
from sprunec.families.base_config import everything
from sprunec.families.cpm_ant.blocks import build, initialize
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.families.cpm_ant.model import CPMAnt
from sprunec.families.model_directory import save_model
from sprunec.masks.budgets import fill_all, make_budgets
from sprunec.masks.learn import GateLearner
from sprunec.masks.mask_tensors import load_scores
from sprunec.models.loading import load_model
from sprunec.models.meta_models import traced
from sprunec.passes import read_data as data_pass
from sprunec.passes import train_mask
from sprunec.passes.job import Job
from sprunec.rewrite.gating import mask
from sprunec.rewrite.recipe import make_recipe
from sprunec.units import Kept
from tests.conftest import kept_layer

HEADS, DIMS, USEFUL_HEADS, USEFUL_DIMS = 8, 48, 3, 16
CONFIG = ModelConfig.from_dict(
    {
        "vocab_size": 128,
        "dim_model": 64,
        "num_heads": HEADS,
        "dim_head": 16,
        "dim_ff": DIMS,
        "num_layers": 2,
        "position_bias_num_buckets": 32,
        "position_bias_max_distance": 64,
        "prompt_types": 3,
        "prompt_length": 2,
        "segment_types": 3,
    }
)
TRAINING: dict[str, Any] = {
    "optimizer": "adamw",
    "betas": (0.9, 0.999),
    "learning_rate": 0.03,
    "schedule": "cosine",
    "warmup_steps": 10,
    "weight_decay": 0.0,
    "clip_grad": 1.0,
    "accumulate": 1,
    "loss_scale": 1.0,
}
LOOK = {"max_length": 34, "batch_size": 32}
CPU = TorchEngine(Place.of("cpu", "fp32"))
NOISE = 0.3


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    options = {"source": "python-docs", "held_out": 0.1, "vocab_size": 128, "column": "", "between": ""}
    data_pass.run(job(options, {}, out))
    return out


def job(options: dict[str, Any], inputs: dict[str, Path], out: Path) -> Job:
    return Job(SimpleNamespace(**options), inputs, {}, out, "cpu", lambda event: None)


def useful_units(seed: int) -> Kept:
    draw = torch.Generator().manual_seed(seed)

    def some(count: int, size: int) -> tuple[int, ...]:
        return tuple(sorted(torch.randperm(size, generator=draw)[:count].tolist()))

    everything = tuple(range(CONFIG.dim_head))
    return Kept(kept_layer(some(USEFUL_HEADS, HEADS), everything, some(USEFUL_DIMS, DIMS)) for _ in range(2))


def train_with_zeroed(useful: Kept, seed: int, text: Path) -> tuple[CPMAnt, float]:
    """A model that never used the planted units, and its loss on batches that it has not seen."""
    model = build(CONFIG)
    initialize(model, seed)
    data = job(LOOK | {"seed": seed}, {"data": text}, text).data(CONFIG)
    mask(model, traced(model, CONFIG), useful)
    fit(model, data.batch, Training(steps=360, **TRAINING), CPU, first_step=0, report=lambda event: None)
    losses = []
    with torch.no_grad():
        for batch in (data.batch(step) for step in range(360, 368)):
            losses.append(float(language_model_loss(model.eval(), batch)) / batch.target_count)
    return model, sum(losses) / len(losses)


@torch.no_grad()
def plant_noise(state: dict[str, torch.Tensor], useful: Kept, seed: int) -> dict[str, torch.Tensor]:
    """Every slice outside the useful units becomes noise, of the scale that useful ones started with."""
    draw = torch.Generator().manual_seed(seed)
    blank = {name: torch.randn(tensor.shape, generator=draw) * NOISE for name, tensor in state.items()}
    recipe = make_recipe(traced(build(CONFIG), CONFIG), useful)
    cut = recipe.cut(state)
    return recipe.expand({name: blank[name] if name in recipe.slices else state[name] for name in state}, cut)


def learn(unit: str, target: dict[str, int], model: Path, text: Path, out: Path, seed: int) -> Kept:
    """What the `train-mask` pass keeps."""
    options = LOOK | TRAINING | {"seed": seed, "unit": (unit,), "target": target, "budget": "per-layer"}
    options |= {
        "steps": 120,
        "mask_learning_rate": 0.25,  # the default of 120 steps
        "ramp": 0.5,
        "criterion": "reconstruction",
        "batches": 8,
        "tie_heads": False,
        "first_step": 360,
        "learning_rate": 0.005,
        "precision": "fp32",
    }
    train_mask.run(replace(job({}, {"model": model, "data": text}, out), options=train_mask.GateOptions(**options)))
    budgets = make_budgets(CONFIG, (unit,), target, "per-layer")
    masks = fill_all(budgets, load_scores(out))
    return everything(CONFIG).then({key: mask.tolist() for key, mask in masks.items()})


@pytest.fixture(scope="module", params=[1, 2, 3, 4, 5])
def planted(request: pytest.FixtureRequest, text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    seed: int = request.param
    useful = useful_units(seed)
    model, loss = train_with_zeroed(useful, seed, text)
    state = {name: t.detach() for name, t in model.state_dict().items() if ".gates." not in name}
    directory = tmp_path_factory.mktemp("planted")
    save_model(directory, CONFIG, everything(CONFIG), plant_noise(state, useful, seed))
    return {"seed": seed, "useful": useful, "model": directory, "loss": loss}


def test_masks_find_the_planted_heads(planted: dict[str, Any], text: Path, tmp_path: Path) -> None:
    """3 of 8 heads in two layers: chance is 1 in 56², 0.03%."""
    assert planted["loss"] < 2.3
    kept = learn("head", {"num_heads": USEFUL_HEADS}, planted["model"], text, tmp_path, planted["seed"])
    assert [layer.get("head") for layer in kept] == [layer.get("head") for layer in planted["useful"]]


def test_masks_find_the_planted_dims(planted: dict[str, Any], text: Path, tmp_path: Path) -> None:
    """16 of 48 dims in two layers: chance is below 1e-24."""
    kept = learn("dim_ff", {"dim_ff": USEFUL_DIMS}, planted["model"], text, tmp_path, planted["seed"])
    assert [layer.get("dim_ff") for layer in kept] == [layer.get("dim_ff") for layer in planted["useful"]]


@pytest.mark.parametrize("gradient", ["reaches the gates", "is cut"])
def test_it_is_the_gradient_that_finds_them(
    gradient: str, planted: dict[str, Any], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All gates start alike but for a little noise: nothing but the gradient through them can tell heads apart.

    BMCook detached its masks; so cut, the gates only follow where they started.
    """

    def alike(scores: dict[Any, torch.Tensor]) -> dict[Any, torch.Tensor]:
        draw = torch.Generator().manual_seed(planted["seed"])
        return {key: 2.0 + 0.01 * torch.randn(value.shape, generator=draw) for key, value in scores.items()}

    backward = GateLearner.backward

    def detached(self: GateLearner, unscale: float) -> None:
        for leaf in self._leaves.values():
            leaf.grad = None
        backward(self, unscale)

    monkeypatch.setattr("sprunec.masks.learn.start_from", alike)
    if gradient == "is cut":
        monkeypatch.setattr(GateLearner, "backward", detached)
    kept = learn("head", {"num_heads": USEFUL_HEADS}, planted["model"], text, tmp_path, planted["seed"])
    found = [layer.get("head") for layer in kept] == [layer.get("head") for layer in planted["useful"]]
    assert found == (gradient == "reaches the gates")


def test_the_planted_model_is_the_trained_one_with_noise(planted: dict[str, Any]) -> None:
    model = load_model(planted["model"])
    useful = planted["useful"][0]["head"]
    rows = model.encoder.layers[0].self_att.self_attention.project_q.weight.detach().unflatten(0, (HEADS, -1))
    spread = rows.flatten(1).std(1)
    assert all((spread[head] < 1.2 * NOISE) == (head not in useful) for head in range(HEADS))
