"""Tables in the width of a terminal: every word whole, every cell in its column, the digest given up first."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len, chop_cells
from rich.console import Console, Group, RenderableType

from sprunec.compiler.lower import lower
from sprunec.plan.plan import check_plan
from sprunec.show import console as live
from sprunec.show import tables
from sprunec.show.fitted import GAP, Column, FittedTable, Line
from sprunec.show.graph_tree import graph_caption, graph_table
from sprunec.show.model_picture import ModelPicture, TwoModels

ROOT = Path(__file__).parents[2]
PLANS = [
    path
    for folder in ("plans", "tests/plans/good")
    for path in sorted((ROOT / folder).glob("*.json"))
    if '"passes"' in path.read_text()
]
WIDTHS = (80, 100, 200)
LARGE = {
    "vocab_size": 30_720, "dim_model": 4096, "num_heads": 32, "dim_head": 128, "dim_ff": 10_240, "num_layers": 48,
    "prompt_types": 32, "prompt_length": 32, "segment_types": 32, "position_bias_num_buckets": 512,
    "position_bias_max_distance": 2048,
}  # fmt: skip
SUBLAYERS = ["attention", "feed_forward"]


def shown(renderable: RenderableType, width: int) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(renderable, crop=False)
    return capture.get().splitlines()


def parts(renderable: Any) -> Iterator[FittedTable | Line]:
    for part in renderable.renderables if isinstance(renderable, Group) else [renderable]:
        assert isinstance(part, (FittedTable, Line))
        yield part


def check(renderable: RenderableType, width: int) -> None:
    """Every line keeps to the width, and every column reads, from top to bottom, as its cells do: whole words."""
    lines = iter(shown(renderable, width))
    for part in parts(renderable):
        if isinstance(part, Line):
            words = part.text.plain.split()
            found: list[str] = []
            while len(found) < len(words):
                found += next(lines).split()
            assert found == words
            continue
        widths = part.fit(width - 2)
        body = list(islice(lines, len(shown(part, width))))
        assert all(cell_len(line) <= width for line in body)
        for number, column in columns_of(body, widths).items():
            cells = [cells[number].plain for cells, _ in part.rows]
            assert column.split() == [word for cell in (part.columns[number].title, *cells) for word in cell.split()]


def columns_of(lines: list[str], widths: dict[int, int]) -> dict[int, str]:
    """What stands in each column, from top to bottom, without title and rules."""
    start = next(place for place, line in enumerate(lines) if "─" in line)
    top = next(place for place in range(start, -1, -1) if not lines[place - 1].strip() or place == 0)
    rows = [line for line in (*lines[top:start], *lines[start + 1 :]) if line.strip()]
    found, left = {}, 1
    for number, width in widths.items():
        found[number] = "\n".join(chop(row, left, width) for row in rows)
        left += width + GAP
    return found


def chop(line: str, left: int, width: int) -> str:
    """The cells of a terminal from `left` on, however many each letter takes."""
    letters = [letter for letter in line for _ in range(max(cell_len(letter), 1))]
    cells = letters[left : left + width]
    return "".join(letter for place, letter in enumerate(cells) if cell_len(letter) < 2 or place % 2 == 0)


def graph_document(path: Path, stored: int = 0) -> dict[str, Any]:
    plan, found = check_plan(path)
    assert plan is not None, found
    graph = lower(plan)
    return graph.document({node.name: True for node in graph.nodes[:stored]}) | {"training": [], "measured": None}


def long_plan(folder: Path, checkpoint: str = "weights.bin") -> Path:
    """Several units in a pass, under a size, on 10B parameters."""
    units = [["head", "dim_head", "dim_ff"], SUBLAYERS, ["dim_head", "dim_ff"]]
    targets = [{"sparsity": 0.3}, {"num_attention": 40, "num_feed_forward": 33}, {"parameters": "5.5B"}]
    learned = [
        {"pass": "train-mask", "unit": unit, "target": target, "steps": 100_000}
        for unit, target in zip(units, targets, strict=True)
    ]
    content = {
        "name": "cpm-ant-plus-10b-to-5b-heads-dims-and-sublayers",
        "model": {"config": LARGE, "checkpoint": checkpoint},
        "data": {"source": "python-docs", "max_length": 512, "batch_size": 32},
        "passes": [*learned, {"pass": "finetune", "steps": 2000}, {"pass": "emit", "formats": ["sprunec", "pt2"]}],
    }
    path = folder / "plan.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.usefixtures("cached_configs")
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_no_word_of_a_plans_graph_is_broken(path: Path, width: int) -> None:
    for stored in (0, 4):
        check(graph_table(graph_document(path, stored)), width)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("checkpoint", ["weights.bin", "cpm_live_checkpoint_10B_pruned.pt"])
def test_no_word_of_a_long_graph_is_broken(tmp_path: Path, checkpoint: str, width: int) -> None:
    document = graph_document(long_plan(tmp_path, checkpoint))
    assert max(len(node["name"]) for node in document["nodes"]) > 34
    check(graph_table(document), width)


def titles(table: Any, width: int) -> list[str]:
    first = next(part for part in parts(table) if isinstance(part, FittedTable))
    return [first.columns[number].title for number in first.fit(width - 2)]


def test_the_digest_goes_first_then_what_matters_less(tmp_path: Path) -> None:
    table = graph_table(graph_document(long_plan(tmp_path, "cpm_live_checkpoint_10B_pruned.pt")))
    all_titles = ["node", "what", "from", "steps", "size", "digest"]
    seen = [titles(table, width) for width in range(200, 40, -1)]
    steps = [have for have, before in zip(seen[1:], seen, strict=False) if have != before]
    assert seen[0] == all_titles
    assert steps == [all_titles[:-1], ["node", "what", "steps", "size"], ["node", "what", "size"], ["node", "what"]]
    quickstart = graph_table(graph_document(ROOT / "plans" / "quickstart.json"))
    assert titles(quickstart, 80) == all_titles[:-1]
    assert titles(quickstart, 100) == all_titles
    assert "1 lacking input" in graph_caption(graph_one_lacking())


def graph_one_lacking() -> dict[str, Any]:
    document = graph_document(ROOT / "plans" / "quickstart.json")
    document["nodes"][3]["digest"] = None
    return document


def model(parameters: int, loss: float) -> dict[str, Any]:
    perplexity = 10.0**304 if loss > 700 else 2.718**loss
    return {"parameters": parameters, "loss": loss, "perplexity": perplexity, "tokens_per_second": 1_234_567.8} | {
        "tokens_per_second_spread": [1_134_567.8, 1_334_567.8],
        "relative_speed": {"ratio": 1.0, "low": 0.5, "high": 1.5},
    }


def large_report(heads: int) -> dict[str, Any]:
    attention = {str(n): None if n % 7 == 3 else list(range(n % heads, heads)) for n in range(48)}
    return {
        "models": {
            "dense": model(10_234_567_890, 2.3456),
            "masked": model(10_234_567_890, 800.0),
            "small": model(5_117_283_945, 2.4567),
        },
        "comparison": {
            "max_abs_difference": 2.4e-6,
            "tolerance": 1e-4,
            "tokens": 123_456,
            "float32_difference": 1e-5,
            "largest_logit": 17.2,
        },
        "formats": {"huggingface": {"max_abs_difference": 0.01, "tolerance": 0.02, "tokens": 9, "dtype": "bfloat16"}},
        "budgets": [{"pass": "12-train-mask-head-dim_head-dim_ff", "name": "all", "target": 9_999_999_999, "got": 1}],
        "kept": {"attention": attention, "feed_forward": {str(n): 10_240 - n if n % 5 else None for n in range(48)}},
        "config": {"num_heads": heads, "dim_ff": 10_240, "num_layers": 48},
    }


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("heads", [4, 16, 40, 64, 96])
def test_no_word_of_a_result_is_broken(heads: int, width: int) -> None:
    report = large_report(heads)
    check(tables.result_table(report), width)
    check(tables.kept_table(report), width)
    assert titles(tables.kept_table(report), width).count("") == 2  # both drawings have room


def test_drawings_are_given_up_before_numbers() -> None:
    lines = shown(tables.kept_table(large_report(40)), 40)
    assert [line.split() for line in lines[3:6]] == [
        ["0", "40", "of", "40", "absent"],
        ["1", "39", "of", "40", "10,239", "of", "10,240"],
        ["2", "38", "of", "40", "10,238", "of", "10,240"],
    ]


@pytest.mark.parametrize("width", WIDTHS)
def test_no_word_of_a_model_is_broken(width: int) -> None:
    attention = {"heads": 64, "dim_head": 128, "parameters": 134_230_016}
    feed_forward = {"dim_ff": 28_672, "parameters": 704_655_360}
    units = ["block", "layer", *SUBLAYERS, "head", "dim_head", "dim_ff"]
    document = {
        "family": "cpm-ant",
        "parameters": {"total": 10_234_567_890, "prunable": 9_876_543_210},
        "cache_bytes_per_token": 1_234_567,
        "layers": [
            {"index": n, "attention": attention if n % 3 else None, "feed_forward": feed_forward if n % 5 else None}
            for n in range(48)
        ],
        "sites": [{"unit": unit, "size": 28_672, "parameters_each": 134_230_016 * n} for n in (1, 2) for unit in units],
        "origin": {
            "plan": "cpm-ant-plus-10b",
            "checkpoint": "/data/" + "x" * 90,
            "made": "2026-01-01T00:00:00+00:00",
            "files": "as emitted",
            "dense_loss": 2.3456,
        },
    }
    check(ModelPicture(document).drawn(width), width)
    check(TwoModels(document, {**document, "layers": document["layers"][1:]}).drawn(width), width)


@pytest.mark.parametrize("width", WIDTHS)
def test_no_word_of_what_can_go_is_broken(width: int) -> None:
    reasons = ["no plan refers to it", "left behind by a run that was stopped"]
    names = ["a" * 64, "partial-" + "b" * 64, "events-" + "c" * 64 + ".jsonl", "writing-abcdefgh", ".publishing"]
    entries = [
        {"path": f"runs/quick/store/{name}", "bytes": 12_345_678_901 * place, "reason": reasons[place % 2]}
        for place, name in enumerate(names)
    ]
    document = {"out": "runs/" + "quick" * 30, "bytes": 123_456_789_012, "entries": entries}
    for dry_run in (True, False):
        check(tables.waste_table(document, dry_run), width)


def test_a_word_wider_than_the_terminal_runs_over_unbroken() -> None:
    table = FittedTable(Column("what", wraps=True), Column("size", right=True))
    table.add("short " + "x" * 100 + " words", "12 k")
    assert "x" * 100 in " ".join(shown(table, 80)).split()
    assert [line.strip() for line in shown(Line("short " + "y" * 100), 80)] == ["short", "y" * 100]


def test_letters_of_two_cells_are_measured_as_such() -> None:
    table = FittedTable(Column("what", wraps=True, readable=8), Column("more", rank=1))
    table.add("模型模型模型 模型 压缩", "x" * 30)
    titled = Group(Line("模型"), table)
    for width in (60, 40, 20):
        check(titled, width)
    assert max(cell_len(line) for line in shown(titled, 20)) <= 20
    assert chop_cells("模型模", 4) == ["模型", "模"]  # what a break would look like


def test_a_title_of_several_words_wraps_where_its_numbers_are_short() -> None:
    table = FittedTable(Column("held-out loss", right=True), Column("perplexity", right=True))
    table.add("1.25", "3.49")
    assert [line.split() for line in shown(table, 22)[1:3]] == [["held-out"], ["loss", "perplexity"]]


@pytest.mark.parametrize("steps", [3, 123_456])
def test_a_live_line_cuts_no_word_in_80_columns(steps: int) -> None:
    head = "[12/24] 12-train-mask-attention-feed_forward-head-dim_head-dim_ff"
    budgets = [{"name": "all of a long pass", "expected": 123456789.25, "target": 98765432.5}] * 2
    event = {"step": 2, "steps": steps, "loss": 12.5, "tokens_per_second": 1234567.0, "budgets": budgets}
    event |= {"undecided": 123_456, "distillation": 1.25, "skipped": True}
    for name in (head, "[1/9] 3-train"):
        words = " ".join(shown(live.live_lines(name, event, "1:29:00 left"), 80)).split()
        assert {*name.split(), f"2/{steps:,}", "1:29:00", *" ".join(live.step_words(event)).split()} <= set(words)
