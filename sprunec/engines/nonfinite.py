"""Non-finite steps: fp16's loss scale, how often in a row it may leave a step out, and what is said of one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sprunec.checkpoint.torch_file import tensors_in
from sprunec.data.batches import Batch
from sprunec.errors import PassError

GROWTH, BACKOFF, INTERVAL = 2.0, 0.5, 2000  # of the loss scale
MOST_SKIPS = 20  # twenty halvings bring the usual first loss scale, 65536, below 1


class LossScale:
    """fp16's dynamic loss scale (Micikevicius et al. 2018): doubles after INTERVAL good steps, halves after a bad one.

    Which step is bad, all ranks say together; `torch.amp.GradScaler` decides for itself, and takes no mix of sharded
    and whole gradients.
    """

    def __init__(self, first: float, *, enabled: bool) -> None:
        self.enabled, self.value, self._good = enabled, first if enabled else 1.0, 0

    def update(self, finite: bool) -> None:
        if self.enabled:
            self._good = (self._good + 1) % INTERVAL if finite else 0
            self.value *= BACKOFF if not finite else 1.0 if self._good else GROWTH

    def state_dict(self) -> dict[str, Any]:
        return {"scale": self.value, "_growth_tracker": self._good} if self.enabled else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.enabled:
            self.value, self._good = state["scale"], state["_growth_tracker"]


def batch_digest(batch: Batch) -> str:
    """Hash a batch's tensors by their names: which sequences they were, whatever the device."""
    digest = hashlib.sha256()
    for name, tensor in (*sorted(batch.inputs.items()), ("targets", batch.targets)):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def non_finite_step(loss: float, norm: float, when: str, batch: Batch, saved: Path | None) -> PassError:
    """Make the error to raise: the first number that is not finite, its batch, and where the last good save is."""
    numbers = {"the loss": loss, "the gradient norm": norm}
    bad = [f"{name} became {value}" for name, value in numbers.items() if not math.isfinite(value)]
    what = bad[0] if bad else "the gradient of a gate became infinite"
    kept = f"the last good save is {saved}" if saved is not None else "nothing had been saved before"
    return PassError(
        f"{what} {when}; lower the learning rate, or clip gradients (batch sha256 {batch_digest(batch)}; {kept})"
    )


def non_finite(state: Any) -> bool:
    """Say whether a tensor anywhere in a nested state holds NaN or infinity."""
    return any(not bool(torch.isfinite(tensor).all()) for tensor in tensors_in(state) if tensor.is_floating_point())
