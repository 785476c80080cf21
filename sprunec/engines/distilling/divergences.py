"""How far a student's probabilities q are from a teacher's p, summed over positions.

forward  H(p, q): KL(p || q) but for the teacher's own entropy, which no student changes (Hinton, Vinyals & Dean 2015).
         The student covers all that the teacher thinks possible.
reverse  KL(q || p), of each position by itself (MiniLLM, Gu et al. 2024, without its sampling). The student keeps to
         what the teacher thinks likely.
skewed   KL(p || a p + (1 - a) q) with a = 0.1 (DistiLLM, Ko et al. 2024). Bounded, and so are its gradients, wherever
         q is nearly 0 and p is not.

Both are softmaxes of logits divided by a temperature T; T^2 keeps the size of the gradients whatever T is.

Where of a teacher only the k most likely tokens are known, all other tokens are one class, of the probability that is
left: the exact coarse-graining of both distributions, so that a student is told how much is left, and not whose it is.

Letters in shapes: m positions, V tokens of the vocabulary, k of them known, c classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

SKEW = 0.1


class TopTokens(NamedTuple):
    """What is known of a teacher at some positions, at the temperature that a student learns at.

    Attributes:
        log_probabilities: (m, k), of any floating dtype.
        ids: (m, k) int64, of these tokens.
        rest: (m,) float32, the logarithm of the probability of all others.
    """

    log_probabilities: Tensor
    ids: Tensor
    rest: Tensor

    def rows(self, some: slice | Tensor) -> TopTokens:
        return TopTokens(*(tensor[some] for tensor in self))


def divergence(kind: str, student: Tensor, teacher: Tensor | TopTokens, temperature: float) -> Tensor:
    """Sum T^2 times a divergence in nats over all positions, in float32; the gradient goes to the student's logits.

    Args:
        kind: see above.
        student: logits (m, V).
        teacher: logits (m, V), or what is known at this temperature.
    """
    logits = student.float() / temperature
    if isinstance(teacher, TopTokens):
        ours, theirs = in_classes(logits, teacher)
    else:
        ours, theirs = logits.log_softmax(-1), (teacher.float() / temperature).log_softmax(-1)
    return temperature**2 * FORMULAS[kind](ours, theirs)


def in_classes(logits: Tensor, known: TopTokens) -> tuple[Tensor, Tensor]:
    """Give log probabilities (m, c) of the student and of the teacher: of the known tokens, then of all others.

    What is stored of the teacher is rounded; its probabilities are made to add up to 1 again.
    """
    top, whole = logits.gather(1, known.ids), logits.logsumexp(1, keepdim=True)
    if known.ids.size(1) == logits.size(1):
        return top - whole, known.log_probabilities.float().log_softmax(1)
    rest = logits.scatter(1, known.ids, -math.inf).logsumexp(1, keepdim=True)
    theirs = torch.cat([known.log_probabilities.float(), known.rest[:, None]], 1)
    return torch.cat([top, rest], 1) - whole, theirs.log_softmax(1)


def _forward(ours: Tensor, theirs: Tensor) -> Tensor:
    return -(theirs.exp() * ours).sum()


def _reverse(ours: Tensor, theirs: Tensor) -> Tensor:
    return (ours.exp() * (ours - theirs)).sum()


def _skewed(ours: Tensor, theirs: Tensor) -> Tensor:
    mixed = torch.logaddexp(theirs + math.log(SKEW), ours + math.log1p(-SKEW))
    return (theirs.exp() * (theirs - mixed)).sum()


# By the names that plans have for them: log probabilities (m, c) of the student and of the teacher -> a sum.
FORMULAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "forward": _forward,
    "reverse": _reverse,
    "skewed": _skewed,
}
