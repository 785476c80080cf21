"""Which speeds are shown as ratios, and what is said where a ratio would say nothing."""

from __future__ import annotations

from typing import Any

import pytest

from sprunec.show import report_words
from sprunec.show.report.sections import tiles
from sprunec.show.report_words import model_rows, task_rows
from tests.helpers.fake_runs import fake_report


def model(ratio: float, low: float, high: float) -> dict[str, Any]:
    return {"relative_speed": {"ratio": ratio, "low": low, "high": high}}


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        ((1.8, 1.7, 1.9), "1.80 x"),
        ((0.5, 0.4, 0.6), "0.50 x"),
        ((1.5, 1.25, 1.75), "1.50 x"),  # as wide as its difference from 1, and no wider
        ((1.5, 1.24, 1.75), "unclear"),
        ((0.11, 0.05, 1.2), "unclear"),  # something else ran meanwhile
        ((1.02, 0.97, 1.05), "as dense"),
        ((1.02, 0.85, 1.05), "unclear"),
        ((1.08, 1.05, 1.09), "1.08 x"),
        ((1.0, 1.0, 1.0), "1.00 x"),
    ],
)
def test_a_ratio_is_shown_unless_its_spread_is_wider_than_its_difference(measured: Any, words: str) -> None:
    assert report_words.ratio_words(model(*measured)) == words


def test_what_was_not_measured_has_a_dash() -> None:
    for nothing in ({}, {"relative_speed": None}, {"relative_speed": {"ratio": 1.8, "low": 1.7}}):
        assert [
            report_words.ratio_words(nothing),
            report_words.ratio_range(nothing),
            report_words.rate_range(nothing),
        ] == ["-"] * 3
    assert report_words.speed_lines({"models": {"dense": None, "small": {}}}) == []


def test_the_table_the_line_and_the_tile_say_the_same() -> None:
    report = fake_report()
    assert [row[-1] for row in model_rows(report)] == ["1.00 x", "as dense", "2.33 x"]
    (line,) = report_words.speed_lines(report)
    assert line == (
        "speeds, quartiles over interleaved rounds: dense 19,287 to 23,573 tokens/s; masked 0.91 to 1.04 x dense; "
        "small 2.10 to 2.50 x dense"
    )
    assert "<b>2.33 x</b><span>the speed of dense, quartiles 2.10 to 2.50 x</span>" in tiles(report)
    report["models"]["small"] |= model(0.11, 0.05, 1.2)
    assert [row[-1] for row in model_rows(report)] == ["1.00 x", "as dense", "unclear"]
    assert "<b>unclear</b><span>speed against dense, quartiles 0.05 to 1.20 x</span>" in tiles(report)
    del report["models"]["small"]["relative_speed"]
    assert "speed" not in tiles(report)


def test_task_rows_say_what_changes_and_what_is_not_there() -> None:
    acc, most = {"value": 0.5, "stderr": 0.25, "samples": 4}, {"value": 81234.5, "stderr": None, "samples": 4}
    dense = {"tasks": {"one": {"acc": acc, "perplexity": most}, "gone": {"acc": acc | {"samples": None}}}}
    small = {"tasks": {"one": {"acc": acc | {"value": 0.375}, "perplexity": most | {"value": float("nan")}}}}
    assert task_rows({"models": {"dense": dense, "small": small}}) == [
        ("one", "acc", "0.5000 ± 0.2500", "0.3750 ± 0.2500", "-0.1250", "4"),
        ("one", "perplexity", "8.123e+04", "not finite", "-", "4"),
        ("gone", "acc", "0.5000 ± 0.2500", "-", "-", "-"),
    ]
    assert task_rows({"models": {"dense": None}}) == []
