"""PyTorch's own engine: one process on one device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sprunec.engines.accidents import non_finite
from sprunec.engines.device import Place
from sprunec.engines.hold import Hold
from sprunec.engines.training import Training
from sprunec.engines.world import Alone, World


@dataclass(frozen=True)
class TorchEngine:
    """See `Engine`."""

    place: Place
    world: World = field(default_factory=Alone)

    def drive(
        self,
        model: nn.Module,
        training: Training,
        others: Iterable[nn.Parameter] = (),
        kept: Mapping[str, Tensor] | None = None,
    ) -> TorchDriver:
        return TorchDriver(self, model, training, others, kept)

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        return model.state_dict()


class TorchDriver:
    """See `Driver`."""

    def __init__(
        self,
        engine: TorchEngine,
        model: nn.Module,
        training: Training,
        others: Iterable[nn.Parameter],
        kept: Mapping[str, Tensor] | None,
    ) -> None:
        self.model, self.training, self.place = model.train(), training, engine.place
        self.optimizer = make_optimizer(model, training, others)
        self.hold = Hold(model, kept) if kept else None
        half = self.place.dtype == torch.float16
        self.scaler = torch.amp.GradScaler(self.place.device.type, init_scale=training.loss_scale, enabled=half)

    @property
    def scale(self) -> float:
        return self.scaler.get_scale()

    @property
    def scaled(self) -> bool:
        return self.scaler.is_enabled()

    @contextmanager
    def part(self, last: bool) -> Iterator[None]:
        yield

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        logits: Tensor = self.model(**inputs)[0]
        return logits

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def norm(self) -> float:
        self.scaler.unscale_(self.optimizer)
        if self.hold is not None:
            self.hold.gradients()
        return float(nn.utils.get_total_norm([p.grad for p in self._trained() if p.grad is not None]))

    def _trained(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]

    def step(self, rate: float, norm: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.training.clip_grad is not None:
            nn.utils.clip_grads_with_norm_(self._trained(), self.training.clip_grad, torch.tensor(norm))
        self.scaler.step(self.optimizer)
        if self.hold is not None:
            self.hold.weights()

    def end(self, finite: bool) -> None:
        scale = self.scale
        self.scaler.update()
        if not finite and self.scale >= scale:  # it saw finite gradients: the loss was not, or a gate's
            self.scaler.update(scale * self.scaler.get_backoff_factor())
        self.optimizer.zero_grad(set_to_none=True)

    def finite(self) -> bool:
        return not non_finite(list(self.model.parameters()))

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])


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
