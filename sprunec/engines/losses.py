"""The losses of a training step, some positions at a time: the logits of all of them are never there at once.

With a vocabulary of 49,152 to 262,144 tokens, logits, their softmax and its gradient would decide what memory a step
takes. Here the head and the losses run on a chunk of positions, forward and at once backward, and all that is left of
it are the gradients of its hidden states and of the head (as in the fused linear cross entropy of Hsu et al. 2024).

Letters in shapes: B rows, N positions of each, P = B N, D width, V tokens of the vocabulary, m positions of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sprunec.data.batches import IGNORED, Batch, places_of
from sprunec.families.module_lists import blocks
from sprunec.plan.scale import CHUNK, LOGITS

CHUNKS = {"cpu": CHUNK}  # logits at a time; on other devices `LOGITS`
PART = 2**20  # of them, what is gone through together

Term = Callable[[Tensor, Tensor], Tensor]  # logits (m, V) and their places (m,) among all P -> a loss, summed over them


def cross_entropy(batch: Batch, factor: float = 1.0) -> Term:
    """Make the cross entropy in nats over a batch's targets, times a factor."""
    targets = batch.targets.flatten()

    def term(logits: Tensor, places: Tensor) -> Tensor:
        loss: Tensor = _CrossEntropy.apply(logits, targets[places], factor)  # type: ignore[no-untyped-call]
        return loss

    return term


def language_model_loss(model: Any, batch: Batch) -> Tensor:
    """Sum the cross entropy in nats over the batch's targets."""
    total, _ = losses(model, batch, [cross_entropy(batch)])
    return total


def losses(
    model: Any, batch: Batch, terms: Sequence[Term], scale: float = 1.0, on: str = "targets"
) -> tuple[Tensor, Tensor]:
    """Run a model, and sum losses over positions of a batch.

    Args:
        model: has `states(**inputs)`, hidden states (B, N, D), and `project(hidden)`, logits (n, V) of some (n, D).
        scale: what the sum is multiplied by before its backward pass. Gradients are taken here already, and in half
            precision small ones would be lost without it.
        on: which positions, see `places_of`.

    Returns:
        Their sum, and each loss (terms,), which has no gradient.
    """
    states = model.states(**batch.inputs).flatten(0, 1)
    places = places_of(batch, on).flatten().nonzero()[:, 0]
    inside = tuple(f"{path}." for path, _ in blocks(model))
    head = [weight for name, weight in model.named_parameters() if not name.startswith(inside)]
    total, each = _Chunked.apply(model.project, terms, places, scale, states, *head)  # type: ignore[no-untyped-call]
    return total, each


class WithLosses(nn.Module):
    """A model whose forward pass gives `losses`, so that what surrounds it in training (DDP, FSDP2) surrounds these."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, terms: Sequence[Term], scale: float, on: str) -> tuple[Tensor, Tensor]:
        return losses(self.model, batch, terms, scale, on)


class _Chunked(torch.autograd.Function):
    """See `losses`; `head` may hold weights that the head does not use."""

    @staticmethod
    def forward(
        ctx: Any,
        project: Callable[[Tensor], Tensor],
        terms: Sequence[Term],
        places: Tensor,
        scale: float,
        states: Tensor,
        *head: Tensor,
    ) -> tuple[Tensor, Tensor]:
        sums = states.new_zeros(len(terms), dtype=torch.float32)
        learning = [weight for weight in head if weight.requires_grad]
        gradients = _Gradients(learning)
        ctx.scale, ctx.states = scale, torch.zeros_like(states)
        step = max(1, CHUNKS.get(states.device.type, LOGITS) // project(states[:1]).size(-1))
        for some in places.split(step) if len(places) else ():
            with torch.enable_grad():
                chunk = states.detach()[some].requires_grad_()
                with gradients:
                    logits = project(chunk)
                each = torch.stack([term(logits, some) for term in terms])
                found = torch.autograd.grad(each.sum() * scale, [chunk, *learning], allow_unused=True)
            sums += each.detach()
            ctx.states[some] = found[0]
            for weight, gradient in zip(learning, found[1:], strict=True):
                if gradient is not None:
                    gradients.add(weight, gradient)
        ctx.head = [gradients.found.get(weight) for weight in head]
        ctx.mark_non_differentiable(sums)
        return sums.sum(), sums

    @staticmethod
    def backward(ctx: Any, total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        factor = total / ctx.scale
        found = [gradient if gradient is None else gradient.mul_(factor) for gradient in (ctx.states, *ctx.head)]
        return None, None, None, None, *found


class _CrossEntropy(torch.autograd.Function):
    """Torch's own, summed, some rows of logits at a time: nothing as large as these is made but their gradient."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, factor: float) -> Tensor:
        normalizers = torch.cat([some.float().logsumexp(1) for some in logits.split(_rows(logits))])
        share = factor * (targets != IGNORED).float()
        targets = targets.clamp(min=0)[:, None]
        ctx.save_for_backward(logits, targets, normalizers, share)
        return (share * (normalizers - logits.gather(1, targets)[:, 0].float())).sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        logits, targets, normalizers, share = ctx.saved_tensors
        found, each = torch.empty_like(logits), (gradient * share)[:, None]
        single = found if found.dtype == torch.float32 else found[: _rows(logits)].float()
        for start in range(0, len(logits), _rows(logits)):
            some = slice(start, start + _rows(logits))
            probabilities = found[some] if single is found else single[: len(found[some])]
            torch.sub(logits[some], normalizers[some, None], out=probabilities).exp_()
            probabilities.scatter_add_(1, targets[some], probabilities.new_full((len(probabilities), 1), -1.0)).mul_(
                each[some]
            )
            if single is not found:
                found[some] = probabilities
        return found, None, None


def _rows(logits: Tensor) -> int:
    """Say how many rows are worked on at a time."""
    return max(1, PART // logits.size(1))


class _Gradients(TorchFunctionMode):
    """Adds up what chunks give weights, inside it those of linear layers in place.

    Autograd would make a gradient of the whole head for every chunk, and add it then: of a small chunk, that is as much
    work as the products.

    Attributes:
        found: the sums so far, by weight.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self.found, self._weights, self._cast = dict[Tensor, Tensor](), set(weights), dict[Tensor, Tensor]()

    def add(self, weight: Tensor, gradient: Tensor) -> None:
        if weight in self.found:
            self.found[weight].add_(gradient)
        else:
            self.found[weight] = gradient.to(weight.dtype)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(zip(("input", "weight", "bias"), args, strict=False)) | (kwargs or {})
        if func is not F.linear or given["weight"] not in self._weights:
            return func(*args, **(kwargs or {}))
        weight, bias = given["weight"], given.get("bias")
        if weight not in self._cast:
            self._cast[weight] = weight.detach().to(_autocast(weight))
        cast, add = self._cast[weight], partial(self._add, weight)
        rows, bias = given["input"].to(cast.dtype), None if bias is None else bias.to(cast.dtype)
        return _Linear.apply(rows, cast, bias, add)  # type: ignore[no-untyped-call]

    def _add(self, weight: Tensor, gradient: Tensor, rows: Tensor) -> None:
        """Add the gradient of a weight (O, C), by those of outputs (m, O) and its inputs (m, C)."""
        if weight in self.found and weight.dtype == gradient.dtype:
            self.found[weight].addmm_(gradient.T, rows)
        else:
            self.add(weight, gradient.T @ rows)


class _Linear(torch.autograd.Function):
    """A linear layer that hands what the gradient of its weight is made of to `add`."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, add: Callable[[Tensor, Tensor], None]
    ) -> Tensor:
        ctx.save_for_backward(rows, weight)
        ctx.add = add
        return F.linear(rows, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        each = gradient.flatten(0, -2)
        ctx.add(each, rows.flatten(0, -2))
        return gradient @ weight, None, each.sum(0) if ctx.needs_input_grad[2] else None, None


def _autocast(weight: Tensor) -> torch.dtype:
    """Say in what type linear layers work now."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
