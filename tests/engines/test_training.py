"""Learning rates over a pass."""

from __future__ import annotations

import math

import pytest

from sprunec.engines.training import SCHEDULES, factor


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
def test_warm_up_is_linear_and_ends_at_the_full_rate(name: str) -> None:
    rates = [factor(name, step, 100, 5) for step in range(6)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5] == pytest.approx(1.0)
    assert factor(name, 0, 100, 0) == 1.0


def test_cosine_and_linear_run_down_and_constant_does_not() -> None:
    at = {name: [factor(name, step, 110, 10) for step in (35, 60, 85, 110, 200)] for name in SCHEDULES}
    assert at["cosine"] == pytest.approx([0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125), 0.0, 0.0])
    assert at["linear"] == pytest.approx([0.75, 0.5, 0.25, 0.0, 0.0])
    assert at["constant"] == [1.0] * 5


def test_noam_peaks_at_the_warm_up() -> None:
    rates = [factor("noam", step, 0, 100) for step in range(400)]
    assert rates[0] == pytest.approx(1 / 1000)
    assert rates[49] == pytest.approx(50 / 1000)
    assert max(range(400), key=rates.__getitem__) == 99
    assert rates[99] == pytest.approx(0.1)
    assert rates[399] == pytest.approx(1 / 20)
    assert factor("noam", 0, 10, 0) == 1.0


@pytest.mark.parametrize("name", [*SCHEDULES, "noam"])
def test_rates_are_never_negative_nor_above_one(name: str) -> None:
    for steps, warmup in ((1, 0), (1, 1), (5, 10), (10, 10), (50, 3)):
        assert all(0.0 <= factor(name, step, steps, warmup) <= 1.0 for step in range(steps + 1))
