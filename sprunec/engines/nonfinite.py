"""Non-finite steps: what is said of one, and how often in a row fp16 may leave one out."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sprunec.checkpoint.torch_file import tensors_in
from sprunec.data.batches import Batch
from sprunec.errors import PassError

MOST_SKIPS = 20  # twenty halvings bring the usual first loss scale, 65536, below 1


@dataclass(frozen=True)
class Skips:
    """Steps that fp16 left out, of a pass so far."""

    in_a_row: int = 0
    total: int = 0

    def after(self, finite: bool) -> Skips:
        return Skips(0, self.total) if finite else Skips(self.in_a_row + 1, self.total + 1)

    def event(self, finite: bool, scale: float) -> dict[str, Any]:
        return {"loss_scale": scale, "skipped_steps": self.total} | ({} if finite else {"skipped": True})


def batch_digest(batch: Batch) -> str:
    """Hash a batch's tensors by their names: which sequences they were, whatever the device."""
    digest = hashlib.sha256()
    for name, tensor in (*sorted(batch.inputs.items()), ("targets", batch.targets)):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def what_is_wrong(loss: float, norm: float) -> str:
    """Name the first of a step's numbers that is not finite."""
    if not math.isfinite(loss):
        return f"the loss became {loss}"
    return f"the gradient norm became {norm}" if not math.isfinite(norm) else "the gradient of a gate became infinite"


def non_finite_step(what: str, model_step: int, batch: Batch, saved: Path | None) -> PassError:
    """Make the error to raise: the step, its batch, and where the last good save is.

    Args:
        model_step: training steps that the model had before this one.
    """
    kept = f"the last good save is {saved}" if saved is not None else "nothing had been saved before"
    return PassError(
        f"{what} at training step {model_step + 1}; lower the learning rate, or clip gradients "
        f"(batch sha256 {batch_digest(batch)}; {kept})"
    )


def non_finite(state: Any) -> bool:
    """Say whether a tensor anywhere in a nested state holds NaN or infinity."""
    return any(not bool(torch.isfinite(tensor).all()) for tensor in tensors_in(state) if tensor.is_floating_point())
