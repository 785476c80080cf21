"""Documents as tables: the numbers in the cells, and the schemas of the documents that only commands print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from rich.console import Console, RenderableType

from sprunec.show import report_words, tables
from sprunec.show.graph_tree import graph_table
from sprunec.show.numbers import number, rounded

SCHEMAS = Path(__file__).parents[2] / "schemas"


def node(name: str, inputs: dict[str, str], gives: str, about: str, **more: Any) -> dict[str, Any]:
    start = {"name": name, "pass": name.split("-", 1)[1], "step": "", "inputs": inputs, "gives": gives, "about": about}
    start |= {"digest": "ab12cd34ef", "cached": False, "steps": None, "parameters": None, "needs": needs()}
    return {**start, **more}


def needs(**more: Any) -> dict[str, Any]:
    start = {"memory": 5e8, "memory_of": {"libraries": 5e8}, "in_one_piece": None, "seconds": None}
    return start | dict.fromkeys(("tokens", "disk", "scratch", "read", "operations"), 0.0) | more


IN_MEMORY = {"bytes": 3.21e10, "what": "weights, gradients and moments in memory", "remedy": "train on more devices"}
TRAINED = needs(
    memory=3.26e10,
    memory_of={"model": 8.025e9, "training": 2.4075e10, "libraries": 5e8},
    in_one_piece=IN_MEMORY,
    disk=8.025e9,
    scratch=4.815e10,
    read=4.01e9,
    operations=3.9e12,
    tokens=614_400.0,
)


GRAPH: dict[str, Any] = {
    "plan": "quick[start]",
    "passes": ["train", "load-mask"],
    "nodes": [
        node("1-load", {}, "model", "cpm-ant, 4 layers", parameters=1_062_400, cached=True),
        node(
            "2-train",
            {"model": "1-load"},
            "model",
            "dense",
            parameters=1_062_400,
            steps=300,
            digest=None,
            needs=TRAINED,
            step="/passes/0",
        ),
        node(
            "3-rewrite",
            {"model": "2-train", "masks": "2-train"},
            "model",
            "heads 16 -> 4",
            parameters=531_200,
            step="/passes/1",
        ),
    ],
    "parameters": {"before": 1_062_400, "after": 531_200},
    "cache_bytes_per_token": {"before": 4096, "after": None},
    "needs": TRAINED | {"disk": 9.1e9, "in_one_piece": None},
    "measured": None,
    "tokens": 614_400,
    "flops": 3.9e12,
    "training": [
        {"sharding": "none", "devices": 2, "memory": 3.42e10, "traffic": 6.9e9},
        {"sharding": "full", "devices": 2, "memory": 1.99e10, "traffic": 6.91e9},
    ],
}

INSPECT: dict[str, Any] = {
    "family": "cpm-ant",
    "parameters": {"total": 1_062_400, "prunable": 525_312},
    "cache_bytes_per_token": 1024,
    "layers": [
        {
            "index": 0,
            "attention": {"heads": 16, "dim_head": 16, "parameters": 131_200},
            "feed_forward": {"dim_ff": 256, "parameters": 98_432},
        },
        {"index": 1, "attention": None, "feed_forward": {"dim_ff": 128, "parameters": 49_280}},
    ],
    "sites": [
        {
            "layer": layer,
            "block": f"encoder.layers.{layer}",
            "unit": unit,
            "size": size,
            "parameters_each": each,
            "tensors": [{"name": f"encoder.layers.{layer}.w", "dim": 0}],
            "label": "",
        }
        for layer, unit, size, each in [(0, "head", 16, 8192), (0, "dim_ff", 256, 384), (1, "dim_ff", 128, 256)]
    ],
    "origin": {"plan": "quickstart", "kept": {"0": [1]}},
}

REPORT: dict[str, Any] = {
    "models": {
        "dense": {"parameters": 1_000_000, "loss": 1.8, "perplexity": 6.0496, "tokens_per_second": 20_000.4},
        "masked": {"parameters": 1_000_000, "loss": 1.9, "perplexity": 6.6859, "tokens_per_second": None},
        "small": {
            "parameters": 335_000,
            "loss": 1.9,
            "perplexity": 6.6859,
            "tokens_per_second": 50_001,
            "relative_speed": {"ratio": 2.5, "low": 2.4, "high": 2.7},
        },
    },
    "comparison": {"max_abs_difference": 2.4e-6, "tolerance": 1e-4, "tokens": 4096},
    "kept": {"attention": {"0": [1, 3], "1": None}, "feed_forward": {"0": 128, "1": 256, "10": None}},
    "config": {"num_heads": 4, "dim_ff": 256, "num_layers": 11},
}


def rendered(table: RenderableType, width: int = 120) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return [line.rstrip() for line in capture.get().splitlines() if line.strip()]


def row(lines: list[str], first: str) -> str:
    """The row whose first word is `first`, with single spaces."""
    return next(" ".join(line.split()) for line in lines if line.split()[0] == first)


@pytest.mark.parametrize(("schema", "document"), [("graph", GRAPH), ("inspect", INSPECT)])
def test_documents_keep_to_their_schemas(schema: str, document: dict[str, Any]) -> None:
    text = json.loads((SCHEMAS / f"{schema}.schema.json").read_text())
    Draft202012Validator.check_schema(text)
    validator = Draft202012Validator(text)
    validator.validate(document)
    assert not validator.is_valid({**document, "more": 1})


def test_result_table_sets_the_models_against_dense() -> None:
    lines = rendered(tables.result_table(REPORT), width=80)
    assert row(lines, "dense") == "dense 1,000,000 100.0 % 1.8000 6.05 20,000 1.00 x"
    assert row(lines, "masked") == "masked 1,000,000 100.0 % 1.9000 6.69 - -"
    assert row(lines, "small") == "small 335,000 33.5 % 1.9000 6.69 50,001 2.50 x"
    words = "masked against small: max |delta logit| 2.4e-06, within the tolerance 0.0001, over 4,096 tokens"
    assert " ".join(lines[-3:-1]) == words
    assert lines[-1] == "speeds, quartiles over interleaved rounds: small 2.40 to 2.70 x dense"


def test_result_table_of_a_run_that_failed_early_has_dashes() -> None:
    lines = rendered(tables.result_table({"models": {"dense": None}, "comparison": None}))
    assert row(lines, "dense") == "dense - - - - - -"
    assert lines[-1] == "masked and small were not compared"


@pytest.mark.parametrize(
    ("amount", "words"), [(None, "-"), (999, "999"), (1000, "1 k"), (999_999, "1 M"), (1_016_000_000, "1.02 B")]
)
def test_sizes_are_rounded_to_three_digits(amount: int | None, words: str) -> None:
    assert rounded(amount) == words


@pytest.mark.parametrize("difference", [2e-4, float("nan")])
def test_a_difference_above_the_tolerance_stands_out(difference: float) -> None:
    found = {"comparison": {"max_abs_difference": difference, "tolerance": 1e-4, "tokens": 1}}
    assert "ABOVE the tolerance 0.0001, over 1 token" in report_words.comparison_words(found)


def test_kept_table_draws_heads_and_widths() -> None:
    lines = rendered(tables.kept_table(REPORT))
    assert row(lines, "0") == "0 □■□■ 2 of 4 ████████░░░░░░░░ 128 of 256"
    assert row(lines, "1") == f"1 absent {'█' * 16} 256 of 256"
    assert row(lines, "10") == "10 - absent"
    assert [line.split()[0] for line in lines[2:]] == ["0", "1", "10"]  # by number, not by letter


def test_kept_table_counts_heads_that_are_too_many_to_draw() -> None:
    kept = {"attention": {"0": list(range(12))}, "feed_forward": {}}
    lines = rendered(tables.kept_table({"kept": kept, "config": {"num_heads": 96, "dim_ff": 1}}))
    assert row(lines, "0") == "0 12 of 96 -"


def test_text_of_a_stranger_cannot_drive_the_terminal() -> None:
    document = {**GRAPH, "plan": "a\x1b[2Jb", "nodes": [node("1-\x1b[31m", {}, "model", "[red]about[/red]")]}
    shown = "\n".join(rendered(graph_table(document)))
    assert "\x1b" not in shown
    assert "[red]about[/red]" in shown


@pytest.mark.parametrize(
    ("value", "words"), [(None, "-"), (True, "yes"), (1234567, "1,234,567"), (0.123456, "0.1235"), ("fp16", "fp16")]
)
def test_numbers_read_well(value: Any, words: str) -> None:
    assert number(value) == words


@pytest.mark.parametrize(("difference", "verdict"), [(1e-3, "within"), (0.5, "ABOVE"), (None, "ABOVE")])
def test_every_form_that_was_opened_again_has_its_line(difference: float | None, verdict: str) -> None:
    found = {"max_abs_difference": difference, "tolerance": 0.03, "tokens": 2, "dtype": "bfloat16"}
    (_, line) = report_words.comparison_lines({"formats": {"cpm-live": found}})
    assert line.startswith("cpm-live, opened again: max |delta logit| ")
    assert line.endswith(f"{verdict} the tolerance 0.03 of bfloat16, over 2 tokens")
    assert report_words.comparison_lines({})[1:] == []


def test_only_budgets_that_are_off_are_told_and_not_more_than_four() -> None:
    rows = [{"pass": "2-train-mask-head", "name": f"b{i}", "target": 1000.5 + i, "got": 1000.0 + i} for i in range(6)]
    met = [{"pass": "2-train-mask-head", "name": "met", "target": 12.0, "got": 12.0}]
    assert report_words.missed_lines({"budgets": met}) == []
    words = report_words.missed_lines({"budgets": met + rows})
    assert words[0] == "2-train-mask-head, b0: asked 1,000.5, got 1,000"
    assert (len(words), words[-1]) == (5, "and 2 budgets more")
