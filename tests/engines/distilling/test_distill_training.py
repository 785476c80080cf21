"""What distillation trains: projections too, alike however a batch is parted or a run stopped, and to some purpose."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from pydoc_data import topics
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprunec.data.batches import IGNORED, Batch
from sprunec.engines.checkpoints import Saves
from sprunec.engines.device import Place
from sprunec.engines.distilling.distillation import Distiller, make_projections
from sprunec.engines.loop import fit
from sprunec.engines.torch_engine import TorchEngine
from sprunec.errors import InputError
from sprunec.families.states import Pair
from tests.conftest import tiny_model
from tests.engines.test_loop import CPU, batch, farthest
from tests.helpers.students import INSIDE, NORM, TRAINING, WIDE, distiller, gradients, loss_of


def test_states_of_unlike_widths_need_a_projection() -> None:
    with pytest.raises(InputError, match=r"w_in:\[post\]encoder.layers.2: the student's state is 40 wide, .* 24") as e:
        distiller(tiny_model(1), tiny_model(2), WIDE, hidden=1.0)
    assert e.value.diagnostics[0].hint == 'write "project": true, or pair states of one width'


def test_projections_are_drawn_from_the_seed_with_their_std() -> None:
    pair = Pair.read(WIDE)
    first, same, other = (
        make_projections([pair], [(40, 500)], project=True, seed=seed, device=CPU.place.device)[0] for seed in (3, 3, 4)
    )
    assert first.shape == (40, 500)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert float(first.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert make_projections([pair], [(24, 24)], project=False, seed=3, device=CPU.place.device) == [None]


def test_a_projection_is_trained_beside_the_weights() -> None:
    """With every weight of the student held, only the projection can bring the loss down."""
    student = tiny_model(1).requires_grad_(False)
    objective, events = distiller(student, tiny_model(2), WIDE, project=True, hidden=1.0), []
    before = objective.parameters()[0].detach().clone()
    training = replace(TRAINING, steps=8, weight_decay=0.0, learning_rate=0.005)
    fit(student, lambda _: batch(0), training, CPU, first_step=0, report=events.append, auxiliary_loss=objective)
    assert not torch.equal(objective.parameters()[0], before)
    assert events[-1]["distillation"] < 0.9 * events[0]["distillation"]
    assert events[-1]["loss"] == events[0]["loss"]


def run(objective: Callable[[nn.Module], Distiller] | None, **changes: Any) -> tuple[list[dict[str, Any]], nn.Module]:
    student, events = tiny_model(1), []
    training = replace(TRAINING, **changes)
    made = objective(student) if objective is not None else None
    fit(student, batch, training, CPU, first_step=0, report=events.append, auxiliary_loss=made)
    return events, student


def everything(student: nn.Module) -> Distiller:
    return distiller(student, tiny_model(2), NORM, WIDE, project=True, logits=0.5, temperature=2.0, hidden=30.0)


def test_events_tell_both_losses_apart() -> None:
    (plain,), _ = run(None, steps=1)
    (event,), _ = run(everything, steps=1)
    student = tiny_model(1)
    assert "distillation" not in plain
    assert event["loss"] == plain["loss"]
    assert event["distillation"] == pytest.approx(float(loss_of(student, everything(student), batch(0))), rel=1e-5)
    assert list(event)[list(event).index("loss") + 1] == "distillation"


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_may_be_parted(parts: int) -> None:
    whole, parted = tiny_model(1), tiny_model(1)
    wanted, found = loss_of(whole, everything(whole), batch(0)), loss_of(parted, everything(parted), batch(0), parts)
    assert float(found) == pytest.approx(float(wanted), rel=1e-6)
    largest = max(float(g.abs().max()) for g in gradients(whole).values())
    assert farthest(gradients(whole), gradients(parted)) < 1e-5 * largest
    (event,), _ = run(everything, steps=1)
    (slices,), _ = run(everything, steps=1, accumulate=parts)
    assert slices["distillation"] == pytest.approx(event["distillation"], rel=1e-6)


def test_a_run_stopped_in_the_middle_ends_with_the_same_bytes(tmp_path: Path) -> None:
    def trained(steps: int | None) -> dict[str, Tensor]:
        student = tiny_model(1)
        objective, done = everything(student), []
        saves = Saves(tmp_path, 100, lambda: steps is not None and len(done) >= steps)
        report = done.append
        training = replace(TRAINING, steps=6)
        fit(student, batch, training, CPU, first_step=0, report=report, auxiliary_loss=objective, saves=saves)
        assert len(done) == 3
        return student.state_dict() | {"projection": objective.parameters()[1].detach()}

    student = tiny_model(1)
    objective = everything(student)
    whole = replace(TRAINING, steps=6)
    fit(student, batch, whole, CPU, first_step=0, report=lambda event: None, auxiliary_loss=objective)
    with pytest.raises(KeyboardInterrupt):
        trained(3)
    again = trained(None)
    wanted = student.state_dict() | {"projection": objective.parameters()[1].detach()}
    assert all(torch.equal(again[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_teacher_stays_as_it_is_in_every_precision(dtype: torch.dtype) -> None:
    student, teacher = tiny_model(1), tiny_model(2).train()
    before = copy.deepcopy(teacher.state_dict())
    objective, events = distiller(student, teacher, NORM, INSIDE, project=True, logits=0.5, hidden=1.0), []
    engine = TorchEngine(Place(CPU.place.device, dtype))
    fit(
        student,
        lambda _: batch(0),
        replace(TRAINING, steps=4),
        engine,
        first_step=0,
        report=events.append,
        auxiliary_loss=objective,
    )
    assert not teacher.training
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())
    assert events[-1]["distillation"] < events[0]["distillation"]
    assert objective.state().keys() == {"projections"}


def text_batch(step: int) -> Batch:
    """Real text as ids below TINY's vocab_size."""
    text, prompt = "".join(topics.topics[key] for key in sorted(topics.topics)), 5
    starts = torch.randint(len(text) - 40, (4,), generator=torch.Generator().manual_seed(step)).tolist()
    words = torch.tensor([[ord(letter) % 97 for letter in text[start : start + 33]] for start in starts])
    columns = prompt + 32
    is_text = (torch.arange(columns) >= prompt).expand(4, -1)
    inputs = {
        "input": torch.cat([(torch.arange(prompt) + 2 * prompt).expand(4, -1), words[:, :-1]], 1),
        "length": torch.full((4,), columns),
        "context": ~is_text,
        "segment": is_text * 2,
        "span": torch.zeros(4, columns, dtype=torch.long),
    }
    return Batch(inputs, F.pad(words[:, 1:], (prompt, 0), value=IGNORED))


def test_distilling_brings_a_disturbed_model_back_better_than_training_does() -> None:
    teacher = tiny_model(2)
    fit(teacher, text_batch, replace(TRAINING, steps=30), CPU, first_step=0, report=lambda event: None)
    disturbed = copy.deepcopy(teacher)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in disturbed.parameters():
            parameter += 0.2 * parameter.std() * torch.randn(parameter.shape, generator=draw)

    def divergence(weights: dict[str, float] | None) -> float:
        student = copy.deepcopy(disturbed)
        objective = (
            None
            if weights is None
            else distiller(student, teacher, *([NORM] if "hidden" in weights else []), **weights)
        )
        training = replace(TRAINING, steps=12, learning_rate=0.003)
        fit(student, text_batch, training, CPU, first_step=100, report=lambda event: None, auxiliary_loss=objective)
        return held_out_divergence(student, teacher)

    before, without = held_out_divergence(disturbed, teacher), divergence(None)
    logits, hidden = divergence({"logits": 2.0}), divergence({"hidden": 50.0})
    assert logits < 0.8 * min(before, without)
    assert hidden < min(before, without)


@torch.no_grad()
def held_out_divergence(student: nn.Module, teacher: nn.Module) -> float:
    data = text_batch(10_000)
    asked = data.targets != IGNORED
    ours, theirs = (model.eval()(**data.inputs)[0][asked].log_softmax(-1) for model in (student, teacher))
    return float(F.kl_div(ours, theirs, log_target=True, reduction="batchmean"))
