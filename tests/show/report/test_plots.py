"""Round numbers for ticks, and few points for many steps."""

from __future__ import annotations

import pytest

from sprunec.show.report import plots


def test_long_runs_are_thinned_to_means() -> None:
    points = [(float(step), float(step % 2)) for step in range(100_000)]
    thin = plots.thinned(points, 200_000, 1000)
    assert (len(thin), thin[0]) == (500, (99.5, 0.5))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 700, [0, 200, 400, 600]),
        (1.7, 5.6, [2, 3, 4, 5]),
        (2.0, 3.0, [2, 2.2, 2.4, 2.6, 2.8, 3]),
        (1.93, 2.99, [2, 2.25, 2.5, 2.75]),
        (3, 3, [3]),
        (0, 0.05, [0, 0.01, 0.02, 0.03, 0.04, 0.05]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert plots.ticks(low, high) == expected


@pytest.mark.parametrize(("value", "written"), [(0, "0"), (0.25, "0.25"), (1500, "1.5k"), (2e7, "20M"), (-3e9, "-3B")])
def test_ticks_are_written_in_few_letters(value: float, written: str) -> None:
    assert plots.short(value) == written


def test_a_curve_tells_the_numbers_that_it_is_drawn_by() -> None:
    axes = plots.Axes(10.0, 0.0, 4.0)
    drawn = axes.curve([(0.0, 4.0), (10.0, 0.0)], "a <b>")
    assert 'data-name="a &lt;b&gt;" data-points="0:4 10:0"' in drawn
    assert (
        f'points="{plots.LEFT}.0,{plots.TOP}.0 {plots.WIDTH - plots.RIGHT}.0,{axes.height - plots.BOTTOM}.0"' in drawn
    )
