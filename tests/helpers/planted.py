"""Models of any family in which useless units are planted, and what `train-mask` keeps of them.

A small model is trained with the planted units multiplied by zero, so that only the others carry what it has learned.
Then the planted units are opened with noise in their weights, as large as the useful ones are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from sprunec.data.batches import Batch
from sprunec.engines.device import Place
from sprunec.engines.loop import fit
from sprunec.engines.losses import language_model_loss
from sprunec.engines.torch_engine import TorchEngine
from sprunec.engines.training import Training
from sprunec.families.base_config import ModelConfig, everything
from sprunec.families.model_directory import save_model
from sprunec.masks.budgets import fill_all, make_budgets
from sprunec.masks.learn import GateLearner
from sprunec.masks.mask_tensors import load_scores
from sprunec.models.meta_models import empty_model, traced
from sprunec.passes import read_data as data_pass
from sprunec.passes import train_mask
from sprunec.passes.job import Job
from sprunec.rewrite.gating import Gates, insert_gates
from sprunec.rewrite.recipe import make_recipe
from sprunec.units import COUNTED, Kept
from tests.conftest import AS_IT_IS

WORTH = 0.005  # nats a token
VOCABULARY, LOOK = 128, {"max_length": 34, "batch_size": 32}
CPU = TorchEngine(Place.of("cpu", "fp32"))
TRAINING: dict[str, Any] = {
    "optimizer": "adamw",
    "betas": (0.9, 0.999),
    "schedule": "cosine",
    "warmup_steps": 10,
    "weight_decay": 0.0,
    "clip_grad": 1.0,
    "accumulate": 1,
    "loss_scale": 1.0,
}


@dataclass(frozen=True)
class Subject:
    """What is planted in, and how.

    Attributes:
        new: by a seed, a model that has learned nothing; may use a folder.
        useful: how many units of each kind a layer has that are not planted; heads are those of a group, and dims may
            be fewer, see `worth_something`.
        rates: of training it, and of its weights while gates learn.
    """

    config: ModelConfig
    new: Callable[[int, Path], nn.Module]
    useful: Mapping[str, int]
    rates: tuple[float, float]
    steps: int = 360


@dataclass(frozen=True)
class Planted:
    subject: Subject
    seed: int
    useful: Kept
    model: Path
    loss: float


def job(options: dict[str, Any], inputs: dict[str, Path], out: Path) -> Job[Any]:
    return Job(SimpleNamespace(**options), inputs, {}, out, "cpu", lambda event: None)


def make_text(out: Path) -> Path:
    options = {"source": "python-docs", "held_out": 0.1, "vocab_size": VOCABULARY} | AS_IT_IS
    data_pass.run(job(options, {}, out))
    return out


def useful_units(subject: Subject, seed: int) -> Kept:
    """Draw which units are useful; of heads as many in each useful group."""
    draw, layers = torch.Generator().manual_seed(seed), []

    def some(unit: str, size: int) -> tuple[int, ...]:
        count = subject.useful.get(unit, size)
        return tuple(sorted(torch.randperm(size, generator=draw)[:count].tolist())) if count < size else (*range(size),)

    for layer in subject.config.layers:
        groups = layer.counts.get("kv_group", 1)
        each, kept = layer.counts["head"] // groups, dict[str, tuple[int, ...]]()
        for unit, count in layer.counts.items():
            if unit == "head":
                around = kept.get("kv_group", (0,))
                kept[unit] = tuple(group * each + head for group in around for head in some(unit, each))
            else:
                kept[unit] = some(unit, count)
        layers.append(kept)
    return Kept(layers)


def plant(subject: Subject, seed: int, text: Path, directory: Path) -> Planted:
    """Train a model that never uses the planted units, and open them with noise."""
    config, trained = subject.config, useful_units(subject, seed)
    data = job(LOOK | {"seed": seed}, {"data": text}, text).data(config)
    batches = [data.batch(step) for step in range(subject.steps, subject.steps + 16)]  # that it has not seen
    how = Training(steps=subject.steps, learning_rate=subject.rates[0], **TRAINING)
    for start in range(seed, seed + 500, 100):  # what one start makes nothing of, another does
        model = subject.new(start, directory / "new")
        gates = insert_gates(model, traced(model, config), [*subject.useful])
        for (layer, unit), size in gates.sizes.items():
            gates.set(layer, unit, opened(size, trained[layer][unit]))
        fit(model, data.batch, how, CPU, first_step=0, report=lambda event: None)
        if (useful := worth_something(model, gates, trained, batches)) is not None:
            break
    assert useful is not None
    loss = loss_of(model, batches)
    state = {name: tensor.detach() for name, tensor in model.state_dict().items() if ".gates." not in name}
    save_model(directory, config, everything(config), plant_noise(state, config, useful, seed))
    return Planted(subject, seed, useful, directory, loss)


def opened(size: int, units: Iterable[int]) -> Tensor:
    """A gate (size,) that is 1 at some units."""
    gate = torch.zeros(size)
    gate[list(units)] = 1.0
    return gate


def worth_something(model: nn.Module, gates: Gates, trained: Kept, batches: Sequence[Batch]) -> Kept | None:
    """Leave dims open, as many in each layer, each of which costs something when it alone is closed besides.

    Training leaves some with nothing to do: to call them useful would ask masks for what is not there. None: it leaves
    less than two in a layer.
    """

    def cost(layer: int, dim: int) -> float:
        show(layer, [each for each in open_dims[layer] if each != dim])
        without = loss_of(model, batches)
        show(layer, open_dims[layer])
        return without - whole

    def show(layer: int, dims: Sequence[int]) -> None:
        gates.set(layer, "dim_ff", opened(gates.sizes[layer, "dim_ff"], dims))

    open_dims = [list(layer["dim_ff"]) for layer in trained]
    while True:
        whole = loss_of(model, batches)
        costs = [{dim: cost(layer, dim) for dim in dims} for layer, dims in enumerate(open_dims)]
        count = min(sum(each > WORTH for each in found.values()) for found in costs)
        if count < 2:
            return None
        if all(len(dims) == count for dims in open_dims):
            break
        for layer, found in enumerate(costs):
            open_dims[layer] = sorted(sorted(found, key=found.__getitem__)[-count:])
            show(layer, open_dims[layer])
    return Kept(dict(layer) | {"dim_ff": tuple(dims)} for layer, dims in zip(trained, open_dims, strict=True))


@torch.no_grad()
def loss_of(model: nn.Module, batches: Sequence[Batch]) -> float:
    losses = [float(language_model_loss(model.eval(), batch)) / batch.target_count for batch in batches]
    return sum(losses) / len(losses)


@torch.no_grad()
def plant_noise(state: Mapping[str, Tensor], config: ModelConfig, useful: Kept, seed: int) -> dict[str, Tensor]:
    """Make every slice outside the useful units noise, half as large as what has been learned of the tensor."""
    draw = torch.Generator().manual_seed(seed)
    recipe = make_recipe(traced(empty_model(config), config), useful.inside(everything(config)))
    cut = recipe.cut(state)
    noise = {
        name: torch.randn(tensor.shape, generator=draw) * 0.5 * float(cut[name].square().mean().sqrt())
        for name, tensor in state.items()
    }
    return recipe.expand({name: noise[name] if name in recipe.slices else state[name] for name in state}, cut)


def learn(planted: Planted, units: tuple[str, ...], text: Path, out: Path, steps: int = 120) -> Kept:
    """What the `train-mask` pass keeps, which is told how many units to keep and not which."""
    subject, seed = planted.subject, planted.seed
    target = {unit.target: len(planted.useful[0][unit.name]) for unit in COUNTED.values() if unit.name in units}
    options = LOOK | TRAINING | {"seed": seed, "unit": units, "target": target, "budget": "per-layer"}
    options |= {
        "steps": steps,
        "mask_learning_rate": 30 / steps,  # the default
        "ramp": 0.5,
        "criterion": "reconstruction",
        "batches": 8,
        "tie_heads": False,
        "first_step": subject.steps,
        "learning_rate": subject.rates[1],
        "precision": "fp32",
    }
    told = train_mask.GateOptions(**options)
    train_mask.run(replace(job({}, {"model": planted.model, "data": text}, out), options=told))
    masks = fill_all(make_budgets(subject.config, units, target, "per-layer"), load_scores(out))
    return everything(subject.config).then({key: mask.tolist() for key, mask in masks.items()})


def start_alike(monkeypatch: Any, seed: int) -> None:
    """Let all gates start alike but for a little noise, so that no score tells units apart."""

    def alike(scores: dict[Any, Tensor]) -> dict[Any, Tensor]:
        draw = torch.Generator().manual_seed(seed)
        return {key: 2.0 + 0.01 * torch.randn(value.shape, generator=draw) for key, value in scores.items()}

    monkeypatch.setattr("sprunec.masks.learn.start_from", alike)


def cut_gradient(monkeypatch: Any) -> None:
    """Let no gradient of the language model's loss reach the gates, as BMCook did, which detached its masks."""
    backward = GateLearner.backward

    def detached(self: GateLearner, unscale: float) -> None:
        for leaf in self._leaves.values():
            leaf.grad = None
        backward(self, unscale)

    monkeypatch.setattr(GateLearner, "backward", detached)
