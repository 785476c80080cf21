"""The training loop: the one place where weights, and with them gates, learn; an engine says where it runs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprunec.data.batches import IGNORED, Batch
from sprunec.engines.checkpoints import Saves
from sprunec.engines.learner import Learner
from sprunec.engines.nonfinite import MOST_SKIPS, Skips, non_finite, non_finite_step, what_is_wrong
from sprunec.engines.training import Training
from sprunec.errors import PassError
from sprunec.interrupts import postponed

if TYPE_CHECKING:
    from sprunec.engines.distillation import Distiller
    from sprunec.engines.torch_engine import TorchEngine

Report = Callable[[dict[str, Any]], None]


def language_model_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Sum the cross entropy in nats over the batch's targets."""
    logits, _ = model(**batch.inputs)
    return cross_entropy(logits, batch)


def cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """Sum the cross entropy in nats over the batch's targets, of logits (B, N, V)."""
    return F.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten(), ignore_index=IGNORED, reduction="sum")


def fit(
    model: nn.Module,
    batches: Callable[[int], Batch],
    training: Training,
    engine: TorchEngine,
    *,
    first_step: int,
    report: Report,
    learner: Learner | None = None,
    saves: Saves | None = None,
    auxiliary_loss: Distiller | None = None,
    kept: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Train for `training.steps` steps or until `learner` is done, from the last save if there is one.

    All ranks call it alike; `engine.weights(model)` is what was trained.

    Args:
        batches: the global batch of a step, by how many training steps the model has had.
        first_step: how many it has had already.
        learner: what learns beside the weights, such as gates.
        auxiliary_loss: what to add to the language model's loss.
        kept: by parameter name, a bool mask of the weights that train; the others stay zero.

    Returns:
        The last step's event.

    Raises:
        PassError: the loss, a gradient or a weight became NaN or infinite; in fp16, in too many steps in a row.
        KeyboardInterrupt: the run was asked to stop; the pass is saved.
        OSError: the pass cannot be saved.
    """
    trainer = Trainer(model, training, engine, first_step, learner, auxiliary_loss, kept)
    start, event = trainer.start(saves.latest() if saves is not None else None)
    with postponed() if saves is not None else nullcontext():
        for step in range(start, training.steps):
            if trainer.learner.done():
                break
            batch = batches(first_step + step)
            event, wrong = trainer.step(step, batch)
            if wrong is not None:
                raise non_finite_step(wrong, first_step + step, batch, saves.last if saves is not None else None)
            report(event)
            if saves is not None:
                saves.after_step(step + 1, training.steps, lambda event=event: trainer.state(event))  # type: ignore[misc]
    if saves is not None:
        saves.settle()
    trainer.check_end()
    return event


class Trainer:
    """A model in training, and what learns beside it: all that changes from step to step."""

    def __init__(
        self,
        model: nn.Module,
        training: Training,
        engine: TorchEngine,
        first_step: int,
        learner: Learner | None,
        auxiliary_loss: Distiller | None,
        kept: Mapping[str, Tensor] | None,
    ) -> None:
        self.training, self.world, self.place = training, engine.world, engine.place
        self.first_step, self.learner, self.auxiliary = first_step, learner or Learner(), auxiliary_loss
        others = self.auxiliary.parameters() if self.auxiliary is not None else ()
        self.driver = engine.drive(model, training, others, kept)
        self.skips = Skips()

    def start(self, saved: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
        """Start from a save, or from rank 0's gates: each rank has computed for itself where they begin.

        Returns:
            The steps that are done, and the last one's event.
        """
        if self.world.size > 1:
            self.learner.load(self.world.broadcast(self.learner.state()))
        if saved is None:
            return 0, {}
        self.driver.load(saved)
        self.skips = Skips(**saved["skips"])
        self.learner.load(saved["companion"])
        if self.auxiliary is not None:
            self.auxiliary.load(saved["objective"])
        return saved["event"]["step"], saved["event"]

    def step(self, step: int, batch: Batch) -> tuple[dict[str, Any], str | None]:
        """Make one update, or none: a step whose loss or gradients are not finite moves nothing but the loss scale.

        Args:
            batch: the global one, wherever it lies.

        Returns:
            Its event, and what is wrong if training cannot go on.
        """
        started, rate = time.perf_counter(), self.training.rate(step, self.first_step + step)
        self.learner.before(step, self.first_step + step)
        losses = self._backward(batch)
        norm, scale = self.driver.norm(), self.driver.scale
        self.world.all_reduce(self.learner.gradients())
        loss = sum(losses.values())
        finite = math.isfinite(loss + norm) and self.learner.finite()
        wrong = None if finite else self._wrong(loss, norm)
        moved = self._update(finite, rate, norm, scale) if wrong is None else {}
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
        if wrong is None:
            event |= self.learner.after(step) if finite else self.learner.skip(step)
        return event | moved, wrong

    def _backward(self, batch: Batch) -> dict[str, float]:
        """Get gradients of the sum over all targets divided by their number, however sequences are shared out.

        Returns the global batch's losses, the language model's and the auxiliary one, by their names in events.
        """
        auxiliary, count = self.auxiliary, batch.target_count
        totals = {"loss": 0.0} | ({"distillation": 0.0} if auxiliary is not None else {})
        if auxiliary is not None:
            auxiliary.begin(batch)
        parts = batch.split(self.world.size)[self.world.rank].to(self.place.device).split(self.training.accumulate)
        for number, part in enumerate(parts, start=1):
            with self.driver.part(last=number == len(parts)):
                with self.place.precision():
                    logits = self.driver.forward(part.inputs)
                    losses = [cross_entropy(logits, part) / count]
                    losses += [auxiliary.loss(part, logits)] if auxiliary is not None else []
                self.driver.backward(torch.stack(losses).sum())
            for name, loss in zip(totals, losses, strict=True):
                totals[name] += float(loss.detach())
        return dict(zip(totals, self.world.total(list(totals.values())), strict=True))

    def _wrong(self, loss: float, norm: float) -> str | None:
        """Say why to stop at a step that is not finite; None: fp16 leaves it out."""
        if self.driver.scaled and self.skips.in_a_row + 1 < MOST_SKIPS:
            return None
        times = f" {MOST_SKIPS} times in a row, for the last time" if self.driver.scaled else ""
        return what_is_wrong(loss, norm) + times

    def _update(self, finite: bool, rate: float, norm: float, scale: float) -> dict[str, Any]:
        """Clip, step, forget the gradients; return what fp16 adds to the event."""
        if finite:
            self.learner.backward(1.0 / scale)
            self.driver.step(rate, norm)
        self.driver.end(finite)
        self.skips = self.skips.after(finite)
        return self.skips.event(finite, scale) if self.driver.scaled else {}

    def check_end(self) -> None:
        """Raise PassError if nothing was trained, or what was is not finite."""
        if self.skips.total >= self.training.steps:
            message = "in fp16 no step had finite gradients, so nothing was trained"
            raise PassError(f"{message}; lower loss_scale, or choose precision bf16 or fp32")
        self.check_weights("in the last step")

    def check_weights(self, when: str) -> None:
        """Raise PassError if what was trained, with what learned beside it, is not finite."""
        if not self.driver.finite() or non_finite(self._beside()):
            raise PassError(f"weights became NaN or infinite {when}; lower the learning rate, or clip gradients")

    def state(self, event: dict[str, Any]) -> dict[str, Any]:
        """Return everything that the steps after `event` depend on; noise and data follow from the step's number.

        Raises:
            PassError: a weight is not finite; the save before is the last good one.
        """
        self.check_weights(f"by training step {event['model_steps']}")
        return {"event": event, **self.driver.state(), "skips": asdict(self.skips), **self._beside()}

    def _beside(self) -> dict[str, Any]:
        """Collect the state of what learns beside the weights, by the names that saves have for it."""
        auxiliary = self.auxiliary.state() if self.auxiliary is not None else None
        return {"companion": self.learner.state(), "objective": auxiliary}
