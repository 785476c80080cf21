"""What the divergences are: held against their definitions in float64, and their gradients against derivatives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sprunec.engines.distilling.divergences import FORMULAS, SKEW, TopTokens, divergence

POSITIONS, TOKENS = 7, 41
Definition = dict[str, Tensor]


def drawn(scale: float = 3.0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(POSITIONS, TOKENS, generator=draw, dtype=torch.double) * scale for _ in range(2))
    return ours, theirs


def by_definition(kind: str, q: Tensor, p: Tensor) -> tuple[float, Tensor]:
    """A divergence of probabilities (m, c) and its derivative by q, word for word."""
    if kind == "forward":
        return float(-(p * q.log()).sum()), -p / q
    if kind == "reverse":
        return float((q * (q / p).log()).sum()), (q / p).log() + 1.0
    mixed = SKEW * p + (1.0 - SKEW) * q
    return float((p * (p / mixed).log()).sum()), -(1.0 - SKEW) * p / mixed


def through_softmax(q: Tensor, by_q: Tensor, temperature: float) -> Tensor:
    """The derivative by logits, from that by their softmax at a temperature."""
    return q * (by_q - (q * by_q).sum(1, keepdim=True)) / temperature


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("kind", FORMULAS)
def test_values_and_gradients_are_those_of_the_definition(kind: str, temperature: float) -> None:
    ours, theirs = drawn()
    q, p = ((logits / temperature).softmax(1) for logits in (ours, theirs))
    value, by_q = by_definition(kind, q, p)
    leaf = ours.float().requires_grad_()
    found = divergence(kind, leaf, theirs.float(), temperature)
    (3.0 * found).backward()
    wanted = 3.0 * temperature**2 * through_softmax(q, by_q, temperature)
    assert float(found.detach()) == pytest.approx(temperature**2 * value, rel=1e-5)
    assert leaf.grad is not None
    assert (leaf.grad - wanted).abs().max() < 2e-6 * max(1.0, float(wanted.abs().max()))
    assert wanted.abs().max() > 0.1


@pytest.mark.parametrize("kind", FORMULAS)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(kind: str) -> None:
    logits = drawn()[0].float().requires_grad_()
    found = divergence(kind, logits, logits.detach(), 1.0)
    found.backward()
    p = logits.detach().softmax(1)
    entropy = float(-(p * p.log()).sum()) if kind == "forward" else 0.0
    assert float(found.detach()) == pytest.approx(entropy, abs=1e-4)
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-6


def test_of_two_tokens_forward_covers_and_reverse_keeps_to_the_likely_one() -> None:
    """The teacher has two likely tokens; of two students with one each, and one between, each kind likes another."""
    teacher = torch.tensor([[6.0, 6.0, 0.0]])
    one, both = torch.tensor([[6.0, 0.0, 0.0]]), torch.tensor([[3.0, 3.0, 3.0]])
    forward, reverse = (
        [float(divergence(kind, student, teacher, 1.0).detach()) for student in (one, both)]
        for kind in ("forward", "reverse")
    )
    assert forward[1] < forward[0]
    assert reverse[0] < reverse[1]


def test_the_skewed_one_is_bounded_where_the_student_rules_out_what_the_teacher_says() -> None:
    teacher, student = torch.tensor([[50.0, 0.0]]), torch.tensor([[0.0, 50.0]], requires_grad=True)
    skewed, forward = (divergence(kind, student, teacher, 1.0) for kind in ("skewed", "forward"))
    assert float(skewed.detach()) == pytest.approx(math.log(1 / SKEW), rel=1e-5)
    assert float(forward.detach()) == pytest.approx(50.0, rel=1e-5)


def top(logits: Tensor, k: int, dtype: torch.dtype = torch.float32) -> TopTokens:
    """What a cache has of logits, computed another way."""
    probabilities = logits.double().softmax(1)
    found, ids = probabilities.topk(k)
    rest = (probabilities.sum(1) - found.sum(1)).clamp(min=0).log()
    return TopTokens(found.log().to(dtype), ids, rest.float())


@pytest.mark.parametrize("kind", FORMULAS)
@pytest.mark.parametrize("k", [1, 5, TOKENS - 1])
def test_tokens_that_are_not_known_are_one_class(kind: str, k: int) -> None:
    ours, theirs = drawn(2.0)
    known = top(theirs, k)
    q, p = ours.softmax(1), theirs.softmax(1)
    classes = torch.full((POSITIONS, TOKENS), k).scatter(1, known.ids, torch.arange(k).expand(POSITIONS, -1))
    coarse = [torch.zeros(POSITIONS, k + 1, dtype=torch.double).scatter_add(1, classes, each) for each in (q, p)]
    value, by_class = by_definition(kind, *coarse)
    leaf = ours.float().requires_grad_()
    found = divergence(kind, leaf, known, 1.0)
    found.backward()
    assert float(found.detach()) == pytest.approx(value, rel=1e-4)
    wanted = through_softmax(q, by_class.gather(1, classes), 1.0)
    assert leaf.grad is not None
    assert (leaf.grad - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("kind", FORMULAS)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float16, 1e-3)])
def test_all_tokens_known_are_the_whole_distribution(kind: str, dtype: torch.dtype, limit: float) -> None:
    ours, theirs = (each.float() for each in drawn())
    one, other = ours.clone().requires_grad_(), ours.clone().requires_grad_()
    whole, known = divergence(kind, one, theirs, 1.0), divergence(kind, other, top(theirs, TOKENS, dtype), 1.0)
    (whole + known).backward()
    assert float(known.detach()) == pytest.approx(float(whole.detach()), rel=limit)
    assert one.grad is not None
    assert other.grad is not None
    assert (one.grad - other.grad).abs().max() < limit * one.grad.abs().max()


def test_half_precision_is_computed_in_float32() -> None:
    ours, theirs = (each.bfloat16() for each in drawn())
    leaf = ours.clone().requires_grad_()
    found = divergence("reverse", leaf, theirs, 1.0)
    found.backward()
    assert found.dtype == torch.float32
    assert float(found.detach()) == pytest.approx(float(divergence("reverse", ours.float(), theirs.float(), 1.0)))
    assert leaf.grad is not None
    assert leaf.grad.dtype == torch.bfloat16
