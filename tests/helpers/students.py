"""Students and teachers for the tests of distillation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sprunec.data.batches import Batch
from sprunec.engines.distilling.distillation import Distiller, make_projections
from sprunec.engines.losses import cross_entropy, losses
from sprunec.engines.training import Distillation, Training
from sprunec.families.states import Pair
from sprunec.rewrite.taps import observable
from tests.conftest import tiny_config
from tests.engines.test_loop import CPU, OPTIONS

NORM = "[post]encoder.output_layernorm:[post]encoder.output_layernorm"
INSIDE = "[pre]encoder.layers.1.ffn.layernorm_before_ffn:[pre]encoder.layers.1.ffn.layernorm_before_ffn"
WIDE = "[post]encoder.layers.0.ffn.ffn.w_in:[post]encoder.layers.2"
TRAINING = Training(**OPTIONS)


def distiller(student: nn.Module, teacher: Any, *pairs: str, project: bool = False, **weights: Any) -> Distiller:
    found = [Pair.read(pair) for pair in pairs]
    widths = [(pair.student.width(tiny_config()), pair.teacher.width(tiny_config())) for pair in found]
    return Distiller(
        teacher,
        Distillation(**({"logits": 0.0, "temperature": 1.0, "hidden": 0.0} | weights), pairs=(), project=False),
        found,
        observable(student, [pair.student for pair in found]),
        observable(teacher, [pair.teacher for pair in found]) if found else {},
        make_projections(found, widths, project=project, seed=3, device=CPU.place.device),
    )


def loss_of(student: nn.Module, objective: Distiller, data: Batch, parts: int = 1) -> Tensor:
    """The objective's loss of a batch; gradients are left in the student."""
    student.zero_grad()
    objective.begin(data)
    found = 0.0
    for part in data.split(parts):
        total, _ = losses(student, part, [cross_entropy(part, 0.0), *objective.terms(part)], on=objective.on)
        total = total + objective.hidden_loss(part)
        total.backward()
        found = found + total.detach()
    return found


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def seen(model: nn.Module, name: str, side: str, data: Batch) -> Tensor:
    """A state, by a hook of the test's own."""
    states: list[Tensor] = []
    module = model.get_submodule(name)
    if side == "pre":
        handle = module.register_forward_pre_hook(lambda _, given: states.append(given[0]))
    else:
        handle = module.register_forward_hook(lambda _, given, result: states.append(result))
    with torch.no_grad():
        model(**data.inputs)
    handle.remove()
    return states[0]


def by_columns(student: Tensor, teacher: Tensor, lengths: Sequence[int]) -> float:
    """The definition, column after column in float64, of states (B, N, S)."""
    total = 0.0
    for row, length in enumerate(lengths):
        for column in range(length):
            ours, theirs = student[row, column].double(), teacher[row, column].double()
            features = (ours / math.sqrt(float(ours @ ours)) - theirs / math.sqrt(float(theirs @ theirs))).tolist()
            total += sum(x * x for x in features) / len(features)
    return total / sum(lengths)
