"""The training loop: the one place where weights, and with them gates, learn; an engine says where it runs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sprunec.data.batches import Batch
from sprunec.engines.checkpoints import Saves
from sprunec.engines.losses import cross_entropy
from sprunec.engines.nonfinite import MOST_SKIPS, non_finite, non_finite_step
from sprunec.engines.training import Training
from sprunec.errors import PassError
from sprunec.interrupts import postponed

if TYPE_CHECKING:
    from sprunec.engines.distilling.distillation import Distiller
    from sprunec.engines.torch_engine import TorchDriver, TorchEngine

Event = dict[str, Any]
HELD_OUT_TIMES, HELD_OUT_STEPS = 10, 10  # so often is held-out text looked at, and never in fewer steps than that


class Learner:
    """What may learn beside a model's weights, such as gates, the same on every rank; the loop calls it at each step.

    This one learns nothing.
    """

    def before(self, step: int, model_step: int) -> None: ...

    def gradients(self) -> list[Tensor]:
        """Return those that have reached it from this rank's sequences; the loop puts their sums in their place."""
        return []

    def backward(self, unscale: float) -> None: ...

    def after(self, step: int) -> Event:
        """Move; return what it adds to the event."""
        return {}

    def skip(self, step: int) -> Event:
        """Stand still at a step that moves nothing, where `backward` and `after` are left out."""
        return {}

    def done(self) -> bool:
        """Say whether nothing is left to learn; asked before each step, it must follow from what `state` holds."""
        return False

    def state(self) -> dict[str, Any] | None:
        return None

    def load(self, state: Any) -> None: ...


def fit(
    model: nn.Module,
    batches: Callable[[int], Batch],
    training: Training,
    engine: TorchEngine,
    *,
    first_step: int,
    report: Callable[[Event], None],
    learner: Learner | None = None,
    saves: Saves | None = None,
    auxiliary_loss: Distiller | None = None,
    kept: Mapping[str, Tensor] | None = None,
    held_out: Batch | None = None,
) -> Event:
    """Train for `training.steps` steps or until `learner` is done, from the last save if there is one.

    All ranks call it alike; `engine.weights(model)` is what was trained.

    Args:
        batches: the global batch of a step, by how many training steps the model has had.
        first_step: how many it has had already.
        learner: what learns beside the weights, such as gates.
        auxiliary_loss: what to add to the language model's loss.
        kept: by parameter name, a bool mask of the weights that train; the others stay zero.
        held_out: on what the loss is told of besides, some ten times, as `held_out` in the events.

    Returns:
        The last step's event.

    Raises:
        PassError: the loss, a gradient or a weight became NaN or infinite; in fp16, in too many steps in a row.
        KeyboardInterrupt: the run was asked to stop; the pass is saved.
        OSError: the pass cannot be saved.
    """
    others = auxiliary_loss.parameters() if auxiliary_loss is not None else ()
    driver = engine.drive(model, training, others, kept)
    trainer = Trainer(driver, first_step, learner or Learner(), auxiliary_loss, saves)
    event, every = trainer.start(), max(HELD_OUT_STEPS, math.ceil(training.steps / HELD_OUT_TIMES))
    with postponed() if saves is not None else nullcontext():
        for step in range(event.get("step", 0), training.steps):
            if trainer.learner.done():
                break
            event = trainer.step(step, batches(first_step + step))
            if held_out is not None and (step + 1) % every == 0:
                event["held_out"] = trainer.loss(held_out)
            report(event)
            if saves is not None:
                saves.after_step(step + 1, training.steps, partial(trainer.state, event))
    if saves is not None:
        saves.settle()
    trainer.check_end()
    return event


@dataclass
class Trainer:
    """A model in training, and what learns beside it: all that changes from step to step."""

    driver: TorchDriver
    first_step: int
    learner: Learner
    auxiliary: Distiller | None = None
    saves: Saves | None = None
    skips: dict[str, int] = field(default_factory=lambda: {"in_a_row": 0, "total": 0})  # steps that fp16 has left out

    def __post_init__(self) -> None:
        self.training, self.world, self.place = self.driver.training, self.driver.engine.world, self.driver.engine.place
        self.beside = {"companion": self.learner, "objective": self.auxiliary}  # by the names that saves have for them

    def start(self) -> Event:
        """Start from the last save, whose event it returns, or from rank 0's gates: each rank has computed its own."""
        if self.world.size > 1:
            self.learner.load(self.world.broadcast(self.learner.state()))
        saved = self.saves.latest() if self.saves is not None else None
        if saved is None:
            return {}
        self.driver.load(saved)
        self.skips = saved["skips"]
        for name, learns in self.beside.items():
            if learns is not None:
                learns.load(saved[name])
        return dict(saved["event"])

    def step(self, step: int, batch: Batch) -> Event:
        """Make one update, or none: a step whose loss or gradients are not finite moves nothing but the loss scale.

        Args:
            batch: the global one, wherever it lies.

        Raises:
            PassError: training cannot go on.
        """
        started, model_step = time.perf_counter(), self.first_step + step
        rate = self.training.rate(step, model_step)
        self.learner.before(step, model_step)
        losses = self._backward(batch)
        norm, scale = self.driver.norm(), self.driver.scale
        gates, loss = self.learner.gradients(), sum(losses.values())
        self.world.all_reduce(gates)
        finite = math.isfinite(loss + norm) and not non_finite(gates)
        self._count(finite, loss, norm, model_step, batch)
        if finite:
            self.learner.backward(1.0 / scale)
            self.driver.step(rate, norm)
        self.driver.end(finite)
        self.place.synchronize()
        event = {
            "step": step + 1,
            "steps": self.training.steps,
            "model_steps": model_step + 1,
            **losses,
            "learning_rate": rate,
            "gradient_norm": norm if finite and self.training.clip_grad is not None else None,
            "tokens_per_second": batch.target_count / (time.perf_counter() - started),
            "memory": self.place.memory_in_use(),
        }
        event |= self.learner.after(step) if finite else self.learner.skip(step)
        if self.driver.scaled:
            event |= {"loss_scale": scale, "skipped_steps": self.skips["total"]} | ({} if finite else {"skipped": True})
        return event

    @torch.no_grad()
    def loss(self, batch: Batch) -> float:
        """Give the language model's loss on a global batch, in nats a target; it moves nothing."""
        count, own = batch.target_count, 0.0
        for part in self._own(batch):
            with self.place.precision():
                _, each = self.driver.losses(part, [cross_entropy(part, 1 / count)])
            own += float(each[0])
        (total,) = self.world.total([own])
        return total

    def _own(self, batch: Batch) -> Sequence[Batch]:
        """Give this rank's sequences of a global batch, in as many slices as a step goes through one by one."""
        return batch.split(self.world.size)[self.world.rank].to(self.place.device).split(self.training.accumulate)

    def _backward(self, batch: Batch) -> dict[str, float]:
        """Get gradients of the sum over all targets divided by their number, however sequences are shared out.

        Returns the global batch's losses, the language model's and the auxiliary one, by their names in events.
        """
        auxiliary, count, own, more = self.auxiliary, batch.target_count, 0.0, 0.0
        if auxiliary is not None:
            auxiliary.begin(batch)
        parts = self._own(batch)
        for number, part in enumerate(parts, start=1):
            with self.driver.part(last=number == len(parts)):
                with self.place.precision():
                    terms = [cross_entropy(part, 1 / count)]
                    terms += [] if auxiliary is None else auxiliary.terms(part)
                    loss, each = self.driver.losses(part, terms, "targets" if auxiliary is None else auxiliary.on)
                    if auxiliary is not None:
                        loss = loss + auxiliary.hidden_loss(part)
                self.driver.backward(loss)
            own, more = own + float(each[0]), more + float(loss.detach() - each[0])
        own, more = self.world.total([own, more])
        return {"loss": own} | ({} if auxiliary is None else {"distillation": more})

    def _count(self, finite: bool, loss: float, norm: float, model_step: int, batch: Batch) -> None:
        """Count the steps that fp16 leaves out; raise PassError at one too many of them, and at any other's first."""
        in_a_row = 0 if finite else self.skips["in_a_row"] + 1
        self.skips = {"in_a_row": in_a_row, "total": self.skips["total"] + (not finite)}
        if finite or (self.driver.scaled and in_a_row < MOST_SKIPS):
            return
        times = f"{MOST_SKIPS} times in a row, for the last time " if self.driver.scaled else ""
        saved = self.saves.last if self.saves is not None else None
        raise non_finite_step(loss, norm, f"{times}at training step {model_step + 1}", batch, saved)

    def check_end(self) -> None:
        """Raise PassError if nothing was trained, or what was is not finite."""
        if self.skips["total"] >= self.training.steps:
            message = "in fp16 no step had finite gradients, so nothing was trained"
            raise PassError(f"{message}; lower loss_scale, or choose precision bf16 or fp32")
        self.state_beside("in the last step")

    def state(self, event: Event) -> dict[str, Any]:
        """Return everything that the steps after `event` depend on; noise and data follow from the step's number.

        Raises:
            PassError: a weight is not finite; the save before is the last good one.
        """
        beside = self.state_beside(f"by training step {event['model_steps']}")
        return {"event": event, **self.driver.state(), "skips": self.skips, **beside}

    def state_beside(self, when: str) -> dict[str, Any]:
        """Return the state of what learns beside the weights; raise PassError if it is not finite, or they are not."""
        found = {name: learns.state() if learns is not None else None for name, learns in self.beside.items()}
        if not self.driver.finite() or non_finite(found):
            raise PassError(f"weights became NaN or infinite {when}; lower the learning rate, or clip gradients")
        return found
