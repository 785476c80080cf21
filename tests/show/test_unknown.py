"""What a run never learned, or learned to be no number, is shown as a dash or in words, wherever it stands."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from sprunec.execution.report import Report
from sprunec.execution.store import Artifact, strict_json
from sprunec.graph.graph import Node, Roles
from sprunec.show import report_words, tables
from sprunec.show.console import metric_words, step_words
from sprunec.show.graph_tree import graph_table
from sprunec.show.model_picture import ModelPicture
from sprunec.show.numbers import number, percent, plural, rounded
from sprunec.show.output import show_report
from sprunec.show.report.markdown import markdown_text
from sprunec.show.report.page import page_text
from sprunec.show.report.runs import Run
from tests.helpers.fake_runs import fake_events, fake_report, fake_search
from tests.show.test_fitted import graph_document
from tests.show.test_tables import GRAPH, INSPECT

MISSING = "missing"
UNKNOWNS = (None, math.nan, math.inf, -math.inf, MISSING)
EVENTS = [event for event in fake_events() if event["step"] % 25 == 1]
QUICKSTART = Path(__file__).parents[2] / "plans" / "quickstart.json"
WASTE = {
    "out": "runs/quickstart",
    "removed": False,
    "bytes": 1_234_567,
    "entries": [
        {"path": "runs/quickstart/store/" + "a" * 64, "bytes": 1_234_566, "reason": "no plan refers to it"},
        {"path": "runs/quickstart/store/writing-x", "bytes": 1, "reason": "left behind"},
    ],
}


def whole_report() -> dict[str, Any]:
    """With everything that a report may hold."""
    report = fake_report()
    report["comparison"] |= {"float32_difference": 1e-5, "float32_tolerance": 1e-4, "largest_logit": 17.0}
    report["search"] = fake_search()
    report["formats"] = {"pt2": {"max_abs_difference": 1e-6, "tolerance": 1e-4, "tokens": 12, "dtype": "float32"}}
    return report


def leaves(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a document has numbers."""
    inside = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in inside:
        if isinstance(value, (dict, list)):
            yield from leaves(value, (*path, key))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield (*path, key)


def kinds(document: Any) -> Iterator[tuple[Any, ...]]:
    """Of those that differ only in their place in a list, the first: a page of many entries takes long."""
    yield from {tuple(key for key in path if isinstance(key, str)): path for path in [*leaves(document)][::-1]}.values()


def without(document: Any, losses: dict[tuple[Any, ...], Any]) -> Any:
    changed = copy.deepcopy(document)
    for path, value in sorted(losses.items(), key=lambda item: repr(item[0]), reverse=True):
        place = changed
        for key in path[:-1]:
            place = place[key]
        if value is not MISSING:
            place[path[-1]] = value
        elif isinstance(place, dict):
            del place[path[-1]]
        else:
            place[path[-1]] = None  # an entry of a list has no name to miss it by
    return changed


def losing(document: Any) -> st.SearchStrategy[Any]:
    """The document with some of its numbers lost."""
    places = st.sampled_from(sorted(leaves(document), key=repr))
    return st.dictionaries(places, st.sampled_from(UNKNOWNS), min_size=1, max_size=5).map(
        lambda losses: without(document, losses)
    )


def check(words: str) -> None:
    found = re.search(r"\b(nan|inf|None|null)\b.*", words)
    assert found is None, found


def printed(renderable: Any) -> str:
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        console.print(renderable, crop=False)
    return capture.get()


patient = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@patient
@given(losing({"report": whole_report(), "events": EVENTS}), st.booleans())
def test_a_report_with_lost_numbers_has_its_page(document: dict[str, Any], several: bool) -> None:
    runs = [Run("a run", document["report"], document["events"])]
    runs += [Run("another", fake_report(), (), 1)] if several else []
    page = page_text(runs).partition("</style>")[2].partition("<script>")[0]
    check(re.sub(r"<pre>.*?</pre>", "", page, flags=re.DOTALL))
    check(markdown_text(runs))


@patient
@given(losing(whole_report()))
def test_a_report_with_lost_numbers_has_its_tables(capsys: pytest.CaptureFixture[str], report: Any) -> None:
    show_report(SimpleNamespace(data=report), Path("out"), as_json=False)
    check(capsys.readouterr().out)
    json.loads(strict_json(report))


@patient
@given(losing(EVENTS))
def test_steps_with_lost_numbers_have_their_words(events: list[dict[str, Any]]) -> None:
    check(" ".join(word for event in events for word in step_words(event)))


@pytest.mark.parametrize(
    ("document", "table", "places"),
    [
        (GRAPH, graph_table, leaves),
        (graph_document(QUICKSTART), graph_table, kinds),
        (INSPECT | {"origin": {"plan": "quickstart", "dense_loss": 1.5, "small_loss": 1.6}}, ModelPicture, leaves),
        (WASTE, lambda document: tables.waste_table(document, dry_run=True), leaves),
    ],
    ids=["graph", "quickstart", "inspect", "gc"],
)
def test_every_number_of_a_document_can_be_lost(
    document: Any, table: Callable[[Any], Any], places: Callable[[Any], Iterable[tuple[Any, ...]]]
) -> None:
    for path in places(document):
        for value in UNKNOWNS:
            check(printed(table(without(document, {path: value}))))


def test_every_number_of_a_report_can_be_lost() -> None:
    report = whole_report()
    for path in leaves(report):
        for value in (None, math.nan, MISSING):
            changed = without(report, {path: value})
            check(printed(tables.result_table(changed)) + printed(tables.kept_table(changed)))


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_what_is_unknown_is_never_within_a_tolerance(value: float | None) -> None:
    report = {"comparison": {"max_abs_difference": value, "tolerance": 1e-4, "tokens": 12}}
    shown = "unknown" if value is None else "not finite"
    assert f"max |delta logit| {shown}, ABOVE the tolerance 0.0001, over 12 tokens" in report_words.comparison_words(
        report
    )
    report = {"comparison": {"max_abs_difference": 0.0, "tolerance": value, "tokens": None}}
    words = "max |delta logit| 0, the tolerance is unknown, over unknown tokens"
    assert words in report_words.comparison_words(report)


@pytest.mark.parametrize("value", [None, math.nan])
def test_a_budget_of_unknown_size_counts_as_missed(value: float | None) -> None:
    budget = {"pass": "2-train-mask", "name": "all", "target": 12.0, "got": value}
    shown = number(value)
    assert report_words.missed_lines({"budgets": [budget]}) == [f"2-train-mask, all: asked 12, got {shown}"]


def test_the_worst_budget_shown_is_the_one_that_is_not_known() -> None:
    known, lost = {"name": "a", "expected": 9.0, "target": 4.0}, {"name": "b", "expected": None, "target": 4.0}
    assert "size - -> 4.0 (b)" in step_words({"loss": 1.0, "budgets": [known, lost]})
    assert step_words({"loss": None}) == ["loss -"]


def test_words_for_what_is_no_number() -> None:
    assert [number(value) for value in UNKNOWNS[:4]] == ["-", "not finite", "not finite", "not finite"]
    assert [rounded(math.nan), plural(None, "token"), plural(math.inf, "token")] == [
        "not finite", "unknown tokens", "not finite tokens",
    ]  # fmt: skip
    assert {percent(value, 2.0) for value in UNKNOWNS} == {percent(1.0, value) for value in UNKNOWNS} == {"-"}
    assert {percent(1.0, 0.0), percent(1.0, 10**400)} == {"-"}
    assert metric_words({"loss": math.nan, "steps": 3}) == ["loss not finite", "steps 3"]


@pytest.mark.parametrize("lost", [None, math.nan])
@pytest.mark.parametrize("order", [1, -1])
def test_the_worst_of_all_comparisons_is_the_one_that_is_no_number(lost: Any, order: int) -> None:
    good = {"max_abs_difference": 1e-6, "tolerance": 1e-5, "tokens": 9, "float32_difference": 1e-6}
    good |= {"float32_tolerance": 1e-5, "largest_logit": 3.0, "worst_block": 0, "worst_block_difference": 1e-6}
    bad = good | {"max_abs_difference": lost, "worst_block": 1, "worst_block_difference": lost, "tokens": 3}
    report = Report(
        SimpleNamespace(roles=Roles(), parameters=(1, 1)),
        Path(),
        {"passes": [], "comparison": None},
    )  # type: ignore[arg-type]
    for metrics in (good, bad)[::order]:
        node = Node("8-compare", "compare", {}, {}, "ab", "comparison")
        report.add(node, Artifact(Path(), {"metrics": metrics}), cached=False, seconds=0.0)
    found = report.data["comparison"]
    assert (found["worst_block"], found["tokens"], found["float32_difference"]) == (1, 9, 1e-6)
    assert number(found["max_abs_difference"]) in ("-", "not finite")
