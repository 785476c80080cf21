"""What training costs a device in memory and in traffic, before anything runs; needs no torch.

Per parameter, 4 bytes of weight, 4 of gradient, 4 for each moment of the optimizer, in every precision. What is frozen
has its weight alone, and beside adapters the matrices of sublayers have no more bytes than they are stored in.

DDP      holds all of it on every device, and in half precision casts of the weights until the backward pass is over. It
         adds the gradients in a ring (Patarasuk & Yuan 2009): each of n devices sends 2 (n - 1) / n of their bytes.
FSDP2    holds one n-th of it (ZeRO-3, Rajbhandari et al. 2020), gathers each block's weights before it works, forward
         and backward, and scatters its gradients: 3 (n - 1) / n, the gathered ones with 2 bytes in half precision. What
         stands outside the blocks is gathered once, and stays full until its gradients are there; while a block works
         in the backward pass, its weights, the next block's and its gradients are full.
BMTrain  shards as FSDP2 does, and gathers with 4 bytes in every precision: its weights stay in fp32 here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sprunec.checkpoint.header import item_bytes
from sprunec.families.base_config import ModelConfig, unit_cost
from sprunec.families.tensor_names import projections, trained_parameters
from sprunec.plan.model_config import teacher_config
from sprunec.plan.plan import Plan

FLOAT, HALF, DOUBLE = 4, 2, 8
INSIDE = 2**24  # numbers in the widest state inside a block
SHARE = 4  # of a memory's bytes, hidden states may take one in so many
TEACHER_SHARE = 0.9  # of a memory, what training and a teacher may take together
TOGETHER = 2**28  # numbers in all hidden states of held-out text that goes through a model together
LOGITS = 2**24  # numbers at a time
CHUNK = 2**25  # of a training step, on a processor, where products of fewer rows take longer
DIRECTIONS = 2**22  # numbers in what is kept of hidden states in front of each block, to compare them
HEAD_LOGITS = 2**22  # numbers at a time, where a head is gone through in parts and much is computed of each
TAILS = 2**28  # bytes of hidden states that choices have changed, on their way through the blocks behind
KEPT_INSIDE = 8  # as many states inside of a block as are kept for a backward pass
HOLES = 1.25  # times activations: what is made and freed between them leaves holes in the heap, most by adapters
MOMENTS = {"adamw": 2, "adam": 2, "sgd": 1}


@dataclass(frozen=True)
class Setting:
    """How a model is trained.

    Attributes:
        devices: processes, one a device.
        full: weights, gradients and moments in shards (FSDP2, BMTrain), not all on every device (DDP).
        sequences, positions: of one part of a device's share of the batch.
        parts: of a device's share of the batch, one after the other; each gathers shards and scatters gradients.
        teacher: bytes of the model that is distilled from, in shards as the model is, but for BMTrain.
        freeze, rank, targets: what does not train, as a plan has it; of adapters, 0 for none.
        item: bytes of a number of a matrix that adapters stand on, or might.
    """

    devices: int = 1
    full: bool = False
    recompute: bool = False
    precision: str = "fp32"
    optimizer: str = "adamw"
    sequences: int = 1
    positions: int = 512
    parts: int = 1
    teacher: float = 0.0
    engine: str = "torch"
    freeze: tuple[str, ...] = ()
    rank: int = 0
    targets: tuple[str, ...] = ()
    item: float = FLOAT

    @property
    def product(self) -> int:
        """Bytes of a number that is multiplied."""
        return FLOAT if self.precision == "fp32" else HALF


@dataclass(frozen=True)
class Cost:
    """Of one device, in bytes; traffic is what it sends in one step."""

    weights: float
    gradients: float
    moments: float
    working: float
    activations: float
    traffic: float

    @property
    def state(self) -> float:
        """What is there between steps, and while the optimizer works."""
        return self.weights + self.gradients + self.moments

    @property
    def memory(self) -> float:
        """At the peak, without what the libraries take for themselves."""
        return self.state + self.working + self.activations


def cost(config: ModelConfig, setting: Setting) -> Cost:
    """Estimate the peak of a device's memory in a training step, and its traffic."""
    parameters, n = config.parameters(), setting.devices
    blocks = [unit_cost(config, index, "block") for index in range(len(config.layers))]
    gradients = 1.0 * FLOAT * trained_parameters(config, setting.freeze, setting.rank, setting.targets)
    weights, share = 1.0 * FLOAT * parameters, n if setting.full else 1
    if setting.rank:
        halved = sum(map(math.prod, projections(config, [""]).values()))
        weights += gradients - (FLOAT - min(setting.item, FLOAT)) * halved
    taught = setting.full and setting.engine == "torch"  # by a teacher in shards
    working, sent = setting.teacher / (n if taught else 1), 2.0 * gradients
    if setting.full and n > 1:
        # BMTrain gathers what it holds, and casts it then
        gathered = FLOAT if setting.engine == "bmtrain" else setting.product
        outside = FLOAT * (parameters - sum(blocks))
        working += 2.0 * outside + (2.0 * gathered + FLOAT) * max(blocks, default=0)
        sent = setting.parts * (outside + 2.0 * gathered * sum(blocks) + gradients)
        # a teacher runs forward alone: what stands outside its blocks stays full, and its blocks wait for ours
        if setting.teacher and taught:
            working += outside
            sent += setting.parts * gathered * sum(blocks)
    elif setting.product < FLOAT and not setting.full and not setting.recompute:
        working += HALF * sum(blocks)  # fp32 weights, cast on their way into products
    moments = MOMENTS[setting.optimizer] * gradients
    weights, gradients, moments = weights / share, gradients / share, moments / share
    kept = activations(config, setting) * (HOLES if setting.rank else 1.0)
    return Cost(weights, gradients, moments, working, kept, (n - 1) / n * sent)


def activations(config: ModelConfig, setting: Setting) -> float:
    """Count the bytes kept for the backward pass; with `recompute` every block's input, and the inside of one block.

    Of a token the inputs of products are kept, in what products are taken in; of a norm its input and what it divides,
    in float32; of attention that is spelled out its scores, in float32; of the loss what a chunk of positions takes.
    """
    tokens, dim = setting.sequences * setting.positions, config.width
    inside = [block_activations(config, index, setting, config.keeps_scores) for index in range(len(config.layers))]
    pairs = 3.0 * FLOAT if config.keeps_scores else 1.0  # by which scores are biased or hidden
    outside = tokens * (3.0 * FLOAT * dim + pairs * setting.positions) + losses(config, setting)
    if not setting.recompute:
        return outside + sum(inside)
    return outside + FLOAT * tokens * dim * len(config.layers) + max(inside, default=0.0)


def losses(config: ModelConfig, setting: Setting) -> float:
    """Count the bytes of logits and their gradient, and of a teacher's and both softmaxes, in a chunk of positions."""
    logits = min(CHUNK, setting.sequences * setting.positions * config.vocab_size)
    return FLOAT * logits * (5.0 if setting.teacher else 2.0)


def block_activations(config: ModelConfig, index: int, setting: Setting, scores: bool = True) -> float:
    """Count the bytes of what is computed inside a block; `scores`: of all pairs of positions, too."""
    layer, dim, tokens = config.layers[index], config.width, setting.sequences * setting.positions
    # the normed input, and four tensors of the inner width: q, k, v, which are repeated for the heads that share them,
    # and the context; or both halves of the gated product, what the activation makes of one, and the product
    sublayers = [2 * FLOAT * dim + setting.product * (dim + 4 * inner) for inner in layer.inner.values() if inner]
    heads = layer.counts.get("head", 0) if scores else 0
    return float(tokens * (sum(sublayers) + FLOAT * setting.positions * heads))


def shards_by_itself(parameters: int, memory: float) -> bool:
    """Decide for `"sharding": "auto"` on devices of so many bytes: shards, once all of it would fill half of one."""
    return 4 * FLOAT * parameters > memory / 2


def rows_at_once(config: ModelConfig, positions: int) -> int:
    """Count the rows of so many positions that go through a block together, so that no state inside it is large."""
    widest = max([config.width, *(inner for layer in config.layers for inner in layer.inner.values())])
    return max(1, INSIDE // (positions * widest))


def states_fit(size: float, memory: float) -> bool:
    """Tell whether so many bytes of hidden states stay in a memory of so many; else they are read from a file."""
    return SHARE * size <= memory


def teacher_stays(keep: str, size: float, training: float, memory: float) -> bool:
    """Tell whether a teacher of so many bytes is in memory, beside training that takes so many; else in its files.

    Args:
        keep: as the plan has it, "memory", "disk" or "auto".
    """
    return keep == "memory" or (keep == "auto" and size + training <= TEACHER_SHARE * memory)


def named_teacher(plan: Plan, distillation: Mapping[str, Any] | None, *, full: bool) -> float:
    """Count the bytes of a teacher in memory that a plan names, or of the plan's model before it is cut; at most.

    Args:
        full: it is in shards, in float32; else it is as it is stored.
    """
    if distillation is None or distillation["teacher_cache"] is not None or plan.engine.teacher_weights == "disk":
        return 0.0
    path = distillation["teacher"]
    item = None if path is None or full else item_bytes(path)
    return (item or FLOAT) * teacher_config(path, plan.model.config).parameters()


def training_setting(
    plan: Plan, options: Mapping[str, Any], devices: int = 1, sharding: str = "none", teacher: float = 0.0
) -> Setting:
    """Say how a pass with these options trains, beside a teacher of so many bytes."""
    data, engine, adapter = plan.data, plan.engine, options["adapter"] or {}
    adapter = adapter if isinstance(adapter, Mapping) else vars(adapter)  # as a plan has it, or a pass
    assert data is not None
    return Setting(
        devices=devices,
        full=sharding == "full" or engine.name == "bmtrain",
        recompute=engine.activation_checkpointing,
        precision=engine.precision,
        optimizer=options["optimizer"],
        sequences=max(1, data.batch_size // devices // options["accumulate"]),
        positions=data.max_length,
        parts=options["accumulate"],
        teacher=teacher,
        engine=engine.name,
        freeze=options["freeze"],
        rank=adapter.get("rank", 0),
        targets=adapter.get("targets", ()),
    )


def plan_costs(plan: Plan, devices: int) -> list[dict[str, Any]]:
    """Estimate what the largest training pass costs each of so many devices, for every sharding that it may get.

    The model is taken as it enters the plan, so it is at most so much.
    """
    config, engine = plan.model.config, plan.engine
    trained = [spec.options for spec in plan.passes if "accumulate" in spec.options]
    if not trained or plan.data is None:
        return []
    found = []
    shardings = ("none", "full") if engine.sharding == "auto" else (engine.sharding,)
    for sharding in shardings if devices > 1 else ("none",):
        full = sharding == "full" and plan.engine.name == "torch"
        taught = [named_teacher(plan, options["distillation"], full=full) for options in trained]
        pairs = zip(trained, taught, strict=True)
        settings = [training_setting(plan, options, devices, sharding, teacher) for options, teacher in pairs]
        worst = max((cost(config, setting) for setting in settings), key=lambda each: each.memory)
        found.append({"sharding": sharding, "devices": devices, "memory": worst.memory, "traffic": worst.traffic})
    return found
