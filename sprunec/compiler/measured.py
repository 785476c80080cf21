"""How fast this machine goes through a block of a plan's model, and reads its checkpoint: in a few seconds.

The block is run as passes run it, with weights of its shapes and a batch of random tokens; how long that takes does not
depend on their values. What passes take of a machine is then a matter of counting, see `graph/arithmetic.py`.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from sprunec.checkpoint.reader import Tensors, open_tensors
from sprunec.compiler.speeds import Speeds
from sprunec.data.affordable import RANDOM_TEXT
from sprunec.data.compared import random_batch
from sprunec.engines.device import DTYPES, Place
from sprunec.engines.loop import Learner, Trainer
from sprunec.engines.torch_engine import TorchEngine
from sprunec.engines.training import Training
from sprunec.families.base import family_of
from sprunec.families.base_config import FORWARD, TRAINING, ModelConfig
from sprunec.graph.arithmetic import Text, forward
from sprunec.graph.model_size import ModelSize, blocks_of
from sprunec.models.meta_models import empty_model
from sprunec.models.streamed import Streamed
from sprunec.plan.plan import Plan
from sprunec.plan.scale import DOUBLE
from sprunec.plan.targets import Left

OPERATIONS = 2e11  # of one run of a block, at most, as long as that leaves it some tokens
LEAST_TOKENS, MOST_TOKENS = 32, 2048
SECONDS, MOST_RUNS = 1.0, 20  # a block is run again until it has had one of both; the first run is a slow one
READ_BYTES, PART_BYTES = 256 * 2**20, 16 * 2**20  # of the checkpoint, and of a tensor
HELD_BYTES = 2**30  # a larger block is multiplied some rows after the others
BETWEEN = 1.3  # times what blocks take: states that are saved, features looked at, gradients added up
STEPS = 1.45  # times what they take in steps of training: the losses, what stands outside, the optimizer
MATRIX = 2**13, 2**13  # of 256 MB: no cache holds it
WEIGHT = 0.01


def measure(plan: Plan) -> Speeds:
    """Trace the model, run its largest block in both arithmetics and on single tokens, and read of its checkpoint."""
    place, config, started = Place.of(plan.engine.device, "fp32"), plan.model.config, time.perf_counter()
    model, exact = empty_model(config), torch.device("cpu") if place.device.type == "mps" else place.device
    traced, started = time.perf_counter() - started, time.perf_counter()
    empty_model(config)
    opening = time.perf_counter() - started
    largest = max([1, *blocks_of(config)])
    tokens = int(min(MOST_TOKENS, max(LEAST_TOKENS, OPERATIONS / (FORWARD * largest))))
    length = min(plan.data.max_length - config.overhead if plan.data is not None else MOST_TOKENS, tokens)
    text = Text(max(1, tokens // length), length)
    single = _run(config, model, text, torch.float32, place.device) / BETWEEN
    double = _run(config, model, text, torch.float64, exact) / BETWEEN
    training = single if DOUBLE * largest >= HELD_BYTES else _training(plan, model, place)
    cached = _run(config, model, Text(1, 1), torch.float32, place.device)
    decoding = 1 / (1 / cached + 1 / (FORWARD * _weights_a_second(place.device)))
    return Speeds(str(place.device), single, double, training, decoding, _read(plan.model.checkpoint), traced, opening)


@torch.no_grad()
def _weights_a_second(device: torch.device) -> float:
    """Multiply a matrix that is in no cache by one vector, in float32 -> how many of its numbers are read a second."""
    matrix = torch.full(MATRIX, WEIGHT, device=device)
    return matrix.numel() / _seconds(lambda _: float((matrix @ matrix[0])[0]), most=5)


def _seconds(work: Callable[[int], object], least: int = 1, most: int = MOST_RUNS) -> float:
    """Do something again and again, by its number -> seconds, not of the first time, where there is another."""
    spent = list[float]()
    while len(spent) < least or (sum(spent) < SECONDS and len(spent) < most):
        began = time.perf_counter()
        work(len(spent))
        spent.append(time.perf_counter() - began)
    return median(spent[1:] or spent)


def _training(plan: Plan, model: nn.Module, place: Place) -> float:
    """Train on a batch of random tokens -> operations a second, in steps of training.

    Where a step is short it is made; else the largest block goes forward and back, with a part of the batch.
    """
    config, data, place = plan.model.config, plan.data, replace(place, dtype=DTYPES[plan.engine.precision])
    trained = next((spec.options for spec in plan.passes if "accumulate" in spec.options), None)
    if data is None or trained is None:
        text = Text(1, RANDOM_TEXT)
    else:
        text = Text(data.batch_size, data.max_length)
        step = TRAINING / FORWARD * forward(ModelSize(Left.of(config), 0.0), text, head=True)
        if step <= OPERATIONS:
            return step / _step(config, place, text, trained)
    most = max(1, int(OPERATIONS / (TRAINING * max([1, *blocks_of(config)]) * text.length)))
    part = Text(min(text.sequences, most), text.length - config.overhead)
    with place.precision():
        return _run(config, model, part, torch.float32, place.device, trains=True) / STEPS


def _step(config: ModelConfig, place: Place, text: Text, options: Mapping[str, Any]) -> float:
    """Make some steps of a pass with these options, on weights that don't matter -> seconds of one."""
    engine, model = TorchEngine(place), empty_model(config)
    model = engine.load(model, _weights(model))
    training = Training(**{each.name: options[each.name] for each in fields(Training)})
    trainer = Trainer(engine.drive(model, training), 0, Learner())
    batch = random_batch(config, text.sequences, text.length - config.overhead)
    return _seconds(lambda step: trainer.step(step, batch), least=2)


def _weights(model: nn.Module) -> Tensors:
    """Give weights of a model's shapes, which take no memory."""
    one = torch.tensor(WEIGHT, dtype=torch.bfloat16)
    return Tensors({name: one.expand(each.shape) for name, each in model.state_dict().items()})


@torch.no_grad()
def _run(
    config: ModelConfig, model: nn.Module, text: Text, dtype: torch.dtype, device: torch.device, *, trains: bool = False
) -> float:
    """Run the largest block on random tokens, and back again if it `trains` -> operations a second."""
    sizes = blocks_of(config)
    index = max(range(len(sizes)), key=sizes.__getitem__)
    inputs = {name: each.to(device) for name, each in random_batch(config, text.sequences, text.length).inputs.items()}
    stream = Streamed(family_of(config), model, _weights(model), [inputs], dtype, device)
    stream.enter()
    path, size = stream.paths[index], DOUBLE * sizes[index]
    with stream.holding_whole(path) if size < HELD_BYTES else stream.holding(path), torch.set_grad_enabled(trains):
        for each in (*stream.hidden, *model.get_submodule(path).parameters()) if trains else ():
            each.requires_grad_()
        seconds = _seconds(lambda _: _through(stream, path, trains=trains))
    alone = ModelSize(Left.of(config.with_layers([config.layers[index]])), 0.0)
    operations = forward(alone, replace(text, length=text.length + config.overhead))
    return operations * (TRAINING / FORWARD if trains else 1) / seconds


def _through(stream: Streamed, path: str, *, trains: bool) -> float:
    found = stream.through(path)[0]
    if trains:
        found.backward(found.detach())
    return float(found.detach().flatten()[-1])  # on every device, a number is there once the work is done


def _read(checkpoint: Path | None) -> float | None:
    """Read parts of a checkpoint, from all over it, into float32 -> bytes a second; None where there is none."""
    if checkpoint is None or not checkpoint.exists():
        return None
    tensors, done, started = open_tensors(checkpoint), 0, time.perf_counter()
    names = [name for name in tensors if tensors.shape(name)]
    random.Random(0).shuffle(names)
    for name in names:
        rows, item = tensors.shape(name)[0], tensors.dtype(name).itemsize
        width = max(1, math.prod(tensors.shape(name)[1:]) * item)
        some = range(min(rows, max(1, PART_BYTES // width)))
        done += tensors.rows(name, some).float().numel() * item
        if done >= READ_BYTES or time.perf_counter() - started > SECONDS:
            break
    return done / (time.perf_counter() - started)
