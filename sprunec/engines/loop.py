"""The training loop: the one place where weights, and with them gates, learn."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprunec.data.batches import IGNORED, Batch
from sprunec.engines.accidents import MOST_SKIPS, Skips, accident, non_finite, what_is_wrong
from sprunec.engines.beside import Companion, Objective
from sprunec.engines.device import Place
from sprunec.engines.hold import Hold
from sprunec.engines.saves import Saves
from sprunec.engines.schedules import SCHEDULES
from sprunec.errors import PassError

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Training:
    """The options of a training pass that the loop reads."""

    steps: int
    optimizer: str
    betas: tuple[float, float]
    learning_rate: float
    schedule: str
    warmup_steps: int
    weight_decay: float
    clip_grad: float | None
    accumulate: int
    loss_scale: float

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Training:
        return cls(**{name: options[name] for name in cls.__dataclass_fields__})

    def rate(self, step: int, model_step: int) -> float:
        """Of a step of the pass; noam counts all steps that the model has had."""
        counted = model_step if self.schedule == "noam" else step
        return self.learning_rate * SCHEDULES[self.schedule](counted, self.steps, self.warmup_steps)


def language_model_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The sum of the cross entropy in nats over the batch's targets."""
    logits, _ = model(**batch.inputs)
    return cross_entropy(logits, batch)


def cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """The sum in nats over the batch's targets, of logits (B, N, V)."""
    return F.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten(), ignore_index=IGNORED, reduction="sum")


def fit(
    model: nn.Module,
    batches: Callable[[int], Batch],
    training: Training,
    place: Place,
    *,
    first_step: int,
    report: Report,
    companion: Companion | None = None,
    saves: Saves | None = None,
    objective: Objective | None = None,
    hold: Hold | None = None,
) -> dict[str, Any]:
    """Train in place for `training.steps` steps or until `companion` is done, from the last save if there is one.

    Args:
        batches: the global batch of a step, by how many training steps the model has had.
        first_step: how many it has had already.
        objective: a loss to add to the language model's.
        hold: the weights that stay zero.

    Returns:
        The last step's event.

    Raises:
        PassError: the loss, a gradient or a weight became NaN or infinite; in fp16, in too many steps in a row.
        KeyboardInterrupt: the run was asked to stop; the pass is saved.
        OSError: the pass cannot be saved.
    """
    trainer = Trainer(model, training, place, first_step, companion, objective, hold)
    saved = saves.latest() if saves is not None else None
    start, event = trainer.load(saved) if saved is not None else (0, {})
    for step in range(start, training.steps):
        if companion is not None and companion.done():
            break
        batch = batches(first_step + step).to(place.device)
        event, wrong = trainer.step(step, batch)
        if wrong is not None:
            raise accident(wrong, first_step + step, batch, saves.last if saves is not None else None)
        report(event)
        if saves is not None:
            saves.after_step(step + 1, training.steps, lambda event=event: trainer.state(event))  # type: ignore[misc]
    if trainer.skips.total >= training.steps:
        words = "in fp16 no step had finite gradients, so nothing was trained"
        raise PassError(f"{words}; lower loss_scale, or choose precision bf16 or fp32")
    trainer.check_weights("in the last step")
    return event


class Trainer:
    """A model with its optimizer, and what learns beside it: all that changes from step to step."""

    def __init__(
        self,
        model: nn.Module,
        training: Training,
        place: Place,
        first_step: int,
        companion: Companion | None,
        objective: Objective | None,
        hold: Hold | None,
    ) -> None:
        self.model, self.training, self.place, self.hold = model.train(), training, place, hold
        self.first_step, self.companion, self.objective = first_step, companion, objective
        self.optimizer = make_optimizer(model, training, objective.parameters() if objective is not None else ())
        half = place.dtype == torch.float16
        self.scaler = torch.amp.GradScaler(place.device.type, init_scale=training.loss_scale, enabled=half)
        self.skips = Skips()

    def step(self, step: int, batch: Batch) -> tuple[dict[str, Any], str | None]:
        """One update, or none: a step whose loss or gradients are not finite moves nothing but the loss scale.

        Returns:
            Its event, and what is wrong if training cannot go on.
        """
        started, rate, companion = time.perf_counter(), self.training.rate(step, self.first_step + step), self.companion
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if companion is not None:
            companion.before(step, self.first_step + step)
        losses = self._backward(batch)
        norm, scale = self._norm(), self.scaler.get_scale()
        loss = sum(losses.values())
        finite = math.isfinite(loss + norm) and (companion is None or companion.finite())
        wrong = None if finite else self._wrong(loss, norm)
        moved = self._update(finite, norm, scale) if wrong is None else {}
        self.place.synchronize()
        event = {
            "step": step + 1,
            "steps": self.training.steps,
            "model_steps": self.first_step + step + 1,
            **losses,
            "learning_rate": rate,
            "gradient_norm": norm if finite and self.training.clip_grad is not None else None,
            "tokens_per_second": batch.target_count / (time.perf_counter() - started),
        }
        if companion is not None and wrong is None:
            event |= companion.after(step) if finite else companion.skip(step)
        return event | moved, wrong

    def _backward(self, batch: Batch) -> dict[str, float]:
        """Gradients of the sum over all targets divided by their number, however the rows are shared out.

        Returns:
            By their names in events: the language model's loss, and the objective's.
        """
        objective, count = self.objective, batch.target_count
        totals = {"loss": 0.0} | ({"distillation": 0.0} if objective is not None else {})
        if objective is not None:
            objective.begin(batch)
        for part in batch.split(self.training.accumulate):
            with self.place.precision():
                logits, _ = self.model(**part.inputs)
                losses = [cross_entropy(logits, part) / count]
                losses += [objective.loss(part, logits)] if objective is not None else []
            self.scaler.scale(torch.stack(losses).sum()).backward()
            for name, loss in zip(totals, losses, strict=True):
                totals[name] += float(loss.detach())
        return totals

    def _norm(self) -> float:
        """Of all gradients, without the loss scale; not finite if any of them is not."""
        self.scaler.unscale_(self.optimizer)
        if self.hold is not None:
            self.hold.gradients()
        return float(nn.utils.get_total_norm([p.grad for p in self._trained() if p.grad is not None]))

    def _trained(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]

    def _wrong(self, loss: float, norm: float) -> str | None:
        """Why to stop at a step that is not finite; None: fp16 leaves it out."""
        if self.scaler.is_enabled() and self.skips.in_a_row + 1 < MOST_SKIPS:
            return None
        times = f" {MOST_SKIPS} times in a row, for the last time" if self.scaler.is_enabled() else ""
        return what_is_wrong(loss, norm) + times

    def _update(self, finite: bool, norm: float, scale: float) -> dict[str, Any]:
        """Clip, step, forget the gradients; returns what fp16 adds to the event."""
        if finite:
            if self.companion is not None:
                self.companion.backward(1.0 / scale)
            if self.training.clip_grad is not None:
                nn.utils.clip_grads_with_norm_(self._trained(), self.training.clip_grad, torch.tensor(norm))
            self.scaler.step(self.optimizer)
            if self.hold is not None:
                self.hold.weights()
        self.scaler.update()
        if not finite and self.scaler.get_scale() >= scale:  # it saw finite gradients: the loss was not, or a gate's
            self.scaler.update(scale * self.scaler.get_backoff_factor())
        self.optimizer.zero_grad(set_to_none=True)
        self.skips = self.skips.after(finite)
        return self.skips.event(finite, scale) if self.scaler.is_enabled() else {}

    def check_weights(self, when: str) -> None:
        """Raises PassError if what was trained, with what learned beside it, is not finite."""
        beside = [beside.state() for beside in (self.companion, self.objective) if beside is not None]
        if non_finite([list(self.model.parameters()), beside]):
            raise PassError(f"weights became NaN or infinite {when}; lower the learning rate, or clip gradients")

    def state(self, event: dict[str, Any]) -> dict[str, Any]:
        """Everything that the steps after `event` depend on; noise and data follow from the step's number.

        Raises:
            PassError: a weight is not finite; the save before is the last good one.
        """
        self.check_weights(f"by training step {event['model_steps']}")
        return {
            "event": event,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "skips": asdict(self.skips),
            "companion": self.companion.state() if self.companion is not None else None,
            "objective": self.objective.state() if self.objective is not None else None,
        }

    def load(self, state: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """The steps that are done, and the last one's event."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.skips = Skips(**state["skips"])
        if self.companion is not None:
            self.companion.load(state["companion"])
        if self.objective is not None:
            self.objective.load(state["objective"])
        return state["event"]["step"], state["event"]


def make_optimizer(model: nn.Module, training: Training, others: Iterable[nn.Parameter] = ()) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019), Adam with decay as an L2 term, or SGD with the first beta as its momentum.

    Args:
        others: what is trained beside the model.
    """
    parameters = [*(p for p in model.parameters() if p.requires_grad), *others]
    rate, decay = training.learning_rate, training.weight_decay
    if training.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=training.betas[0], weight_decay=decay)
    kind = torch.optim.AdamW if training.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=rate, betas=training.betas, weight_decay=decay)
