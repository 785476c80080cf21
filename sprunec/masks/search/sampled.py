"""Gradients at the states behind the last block: of sampled next tokens' log probability, and of the divergence.

The head is gone through some tokens of the vocabulary after the others, so that its weight is never whole in memory:
once for softmax's sum, and once for the samples and the gradients.

Letters in shapes: S samples, B rows, N positions, n positions asked of a batch, D width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sprunec.masks.search.walked import Walked
from sprunec.plan.scale import HEAD_LOGITS


def vocabulary_parts(dense: Walked) -> Iterator[range]:
    """Cut the vocabulary into parts whose logits at a batch's positions are not many."""
    tokens = dense.way.stream.tokens
    step = max(1, HEAD_LOGITS // max(1, *(int(some.sum()) for some in dense.asked)))
    return (range(first, min(first + step, tokens)) for first in range(0, tokens, step))


def asked_states(dense: Walked, number: int) -> Tensor:
    """Give a batch's states (n, D) behind the last block, at the positions that are asked."""
    states = dense.way.hidden[number]
    return states[dense.asked[number].to(states.device)]


@torch.no_grad()
def log_sums(dense: Walked) -> list[Tensor]:
    """Give, for each batch, the logarithm of softmax's sum (n,)."""
    numbers = range(len(dense.asked))
    found = [torch.full((int(some.sum()),), -torch.inf, device=dense.way.stream.device) for some in dense.asked]
    for tokens in vocabulary_parts(dense):
        with dense.way.stream.exit(tokens) as logits:
            for number in numbers:
                part = logits(asked_states(dense, number)).float().logsumexp(1)
                found[number] = torch.logaddexp(found[number], part)
    return found


def sampled_gradients(dense: Walked, samples: int, seed: int) -> list[Tensor]:
    """Sample from the model's own softmax, and give for each batch the gradients (S, B, N, D).

    Of log p(y) at its own position by the logits it is the one-hot of y less the softmax.
    """
    sums, device = log_sums(dense), dense.way.stream.device
    noise = torch.Generator().manual_seed(seed)
    draws = [_Draw(torch.rand(samples, len(each), generator=noise, dtype=torch.double).to(device)) for each in sums]
    parts = list(vocabulary_parts(dense))
    found = [torch.zeros(samples, *dense.way.hidden[number].shape, device=device) for number in range(len(sums))]
    for tokens in parts:
        with dense.way.stream.exit(tokens) as logits:
            for number, draw in enumerate(draws):
                with torch.enable_grad():
                    states = asked_states(dense, number).detach().requires_grad_()
                    part = logits(states)
                wanted = draw.wanted((part.detach().float() - sums[number][:, None]).exp(), last=tokens is parts[-1])
                mask = dense.asked[number].to(device)
                for sample, each in enumerate(wanted):
                    (gradient,) = torch.autograd.grad(part, states, each.to(part), retain_graph=sample < samples - 1)
                    found[number][sample][mask] += gradient
    return found


def divergence_gradients(dense: Walked, cut: Walked) -> list[Tensor]:
    """Give for each batch the gradients (1, B, N, D) of KL(dense || cut), summed over positions, in the cut model.

    By the logits it is that model's softmax less the dense one's. Both have the same head.
    """
    ours, theirs, device = log_sums(cut), log_sums(dense), cut.way.stream.device
    found = [torch.zeros(1, *cut.way.hidden[number].shape, device=device) for number in range(len(ours))]
    for tokens in vocabulary_parts(cut):
        with cut.way.stream.exit(tokens) as logits:
            for number, (own, other) in enumerate(zip(ours, theirs, strict=True)):
                with torch.enable_grad():
                    states = asked_states(cut, number).detach().requires_grad_()
                    part = logits(states)
                with torch.no_grad():
                    wanted = logits(asked_states(dense, number)).float().sub_(other[:, None]).exp_().neg_()
                    wanted += (part.float() - own[:, None]).exp_()
                (gradient,) = torch.autograd.grad(part, states, wanted.to(part))
                found[number][0][cut.asked[number].to(device)] += gradient
    return found


class _Draw:
    """Tokens that are drawn by one uniform number each, while the vocabulary comes by in parts.

    Args:
        uniform: (S, n).
    """

    def __init__(self, uniform: Tensor) -> None:
        self._uniform, self._below = uniform, torch.zeros_like(uniform[0])
        self._drawn = torch.zeros_like(uniform, dtype=torch.bool)

    def wanted(self, shares: Tensor, *, last: bool) -> Iterator[Tensor]:
        """Give, for each sample, the one-hots of tokens drawn here less their softmax `shares` (n, tokens)."""
        upto, end = shares.double().cumsum(1).add_(self._below[:, None]), shares.size(1) - 1
        for uniform, drawn in zip(self._uniform, self._drawn, strict=True):
            place = torch.searchsorted(upto, uniform[:, None], right=True)[:, 0]
            here = ~drawn & ((place <= end) | last)  # rounding may leave a number above all shares
            drawn |= here
            rows = here.nonzero()[:, 0]
            found = -shares
            found[rows, place[rows].clamp(max=end)] += 1.0
            yield found
        self._below = upto[:, -1].clone()
