"""The training loop: the one place where weights, and with them gates, learn."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprunec.data.batches import IGNORED, Batch
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
    """Train in place for `training.steps` steps, from the last save if there is one.

    Args:
        batches: the global batch of a step, by how many training steps the model has had.
        first_step: how many it has had already.
        objective: a loss to add to the language model's.
        hold: the weights that stay zero.

    Returns:
        The last step's event.

    Raises:
        PassError: the loss became NaN or infinite.
        KeyboardInterrupt: the run was asked to stop; the pass is saved.
    """
    trainer = Trainer(model, training, place, first_step, companion, objective, hold)
    saved = saves.latest() if saves is not None else None
    start, event = trainer.load(saved) if saved is not None else (0, {})
    for step in range(start, training.steps):
        event = trainer.step(step, batches(first_step + step).to(place.device))
        report(event)
        if saves is not None:
            saves.after_step(step + 1, training.steps, lambda event=event: trainer.state(event))  # type: ignore[misc]
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
        raise PassError("weights became NaN or infinite in the last step; lower the learning rate, or clip gradients")
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

    def step(self, step: int, batch: Batch) -> dict[str, Any]:
        """One update; returns its event."""
        started, rate, companion = time.perf_counter(), self.training.rate(step, self.first_step + step), self.companion
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if companion is not None:
            companion.before(step, self.first_step + step)
        losses = self._backward(batch)
        _check_finite(sum(losses.values()), self.first_step + step)
        if companion is not None:
            companion.backward(1.0 / self.scaler.get_scale())
        norm = _update(self.optimizer, self.scaler, self.training.clip_grad, self.hold)
        self.place.synchronize()
        event = {
            "step": step + 1,
            "steps": self.training.steps,
            "model_steps": self.first_step + step + 1,
            **losses,
            "learning_rate": rate,
            "gradient_norm": norm,
            "tokens_per_second": batch.target_count / (time.perf_counter() - started),
        }
        return event | (companion.after(step) if companion is not None else {})

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

    def state(self, event: dict[str, Any]) -> dict[str, Any]:
        """Everything that the steps after `event` depend on; noise and data follow from the step's number."""
        return {
            "event": event,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "companion": self.companion.state() if self.companion is not None else None,
            "objective": self.objective.state() if self.objective is not None else None,
        }

    def load(self, state: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """The steps that are done, and the last one's event."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
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


def _check_finite(loss: float, model_step: int) -> None:
    if not math.isfinite(loss):
        raise PassError(
            f"the loss became {loss} at training step {model_step + 1}; lower the learning rate, or clip gradients"
        )


def _update(
    optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, clip: float | None, hold: Hold | None
) -> float | None:
    """Clip, step, forget the gradients; returns the norm before clipping, when that was asked for."""
    scaler.unscale_(optimizer)
    if hold is not None:
        hold.gradients()
    norm = None
    if clip is not None:
        trained = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        total = nn.utils.clip_grad_norm_(trained, clip)
        norm = float(total) if torch.isfinite(total) else None
    scaler.step(optimizer)
    if hold is not None:
        hold.weights()
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return norm
