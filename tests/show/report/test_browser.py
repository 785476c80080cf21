"""The page in Chromium, by keyboard and pointer: charts with the runs' numbers, and no word to anyone else.

Needs `pip install 'sprunec[browser]'` and the system's Chromium.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sprunec.show.report.page import write_page
from sprunec.show.report.runs import open_runs
from tests.helpers.fake_runs import fake_search
from tests.helpers.small_plans import EMIT, mask_pass, plan, read_report
from tests.helpers.small_plans import execute as run_plan

pytestmark = pytest.mark.slow
NO_NETWORK = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", *NO_NETWORK]
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two real runs, one of which claims to have searched."""
    directory = tmp_path_factory.mktemp("browser")
    head = mask_pass("head", {"num_heads": 3}, steps=24, budget="global")
    run_plan(plan({"pass": "train", "steps": 20}, head, EMIT, name="learned"), directory, "learned")
    score = {"pass": "score-mask", "criterion": "magnitude", "unit": "dim_ff", "target": {"dim_ff": 24}}
    run_plan(plan({"pass": "train", "steps": 20}, score, EMIT, name="scored"), directory, "scored")
    report = directory / "scored" / "report.json"
    report.write_text(json.dumps(read_report(directory / "scored") | {"search": fake_search()}))
    write_page(directory / "page.html", open_runs([directory / "learned", directory / "scored"]))
    return directory / "page.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        yield chromium
        chromium.close()


def events(page_file: Path, run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (page_file.parent / run / "events.jsonl").read_text().splitlines()]


class Opened:
    """A page that notes what it complains of, and what it asks for besides itself."""

    def __init__(self, browser: Any, file: Path, size: str = "desktop", **options: Any) -> None:
        width, height = SIZES[size]
        self.page = browser.new_context(viewport={"width": width, "height": height}, **options).new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())

    def tip(self) -> str:
        return str(self.page.locator("#tip:not([hidden])").inner_text(timeout=2000))

    def chart(self, label: str) -> Any:
        return self.page.locator(f'svg[aria-label="{label}"]').first

    def end(self, file: Path) -> None:
        self.page.context.close()
        assert self.complaints == [] and self.requests == [file.as_uri()]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_is_shown_at_every_width_and_in_both_schemes(browser: Any, page_file: Path, size: str, scheme: str) -> None:
    opened = Opened(browser, page_file, size, color_scheme=scheme)
    page = opened.page
    assert page.evaluate("document.documentElement.scrollWidth") == SIZES[size][0]  # nothing sticks out
    boxes = page.evaluate("[...document.querySelectorAll('svg')].map(svg => svg.getBoundingClientRect().toJSON())")
    assert len(boxes) >= 10 and all(box["width"] > 80 and box["height"] > 20 for box in boxes)
    shade = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, shade[4:-1].split(","))) < 150) == (scheme == "dark")
    letters = page.evaluate(
        "[...document.querySelectorAll('.drawing > svg text')].map(text => text.getBoundingClientRect().height)"
    )
    assert min(height for height in letters if height) >= 9  # of what is not left out
    opened.end(page_file)


def test_pointer_and_arrow_keys_tell_the_numbers_of_the_runs(browser: Any, page_file: Path) -> None:
    opened = Opened(browser, page_file)
    small = read_report(page_file.parent / "learned")["models"]["small"]
    sizes = opened.chart("held-out loss over parameters")
    sizes.focus()
    opened.page.keyboard.press("Home")
    first = f"learned, small: {small['parameters']:,} parameters, loss {small['loss']:.4f}"
    assert opened.tip() == first
    opened.page.keyboard.press("ArrowRight")
    assert opened.tip().startswith("learned, dense: ")
    opened.page.keyboard.press("Escape")
    assert opened.page.locator("#tip").is_hidden()
    sizes.locator("circle").first.hover()
    assert opened.tip() == first

    losses = opened.chart("training loss over steps")
    losses.focus()
    opened.page.keyboard.press("Home")
    first, last = events(page_file, "learned")[0], events(page_file, "scored")[-1]
    assert opened.tip().splitlines()[:2] == ["step 1", f"learned, {first['node']}: {first['loss']:.4g}"]
    opened.page.keyboard.press("End")
    assert opened.tip() == f"scored, {last['node']}, step {last['step']}: {last['held_out']:.4f} on held-out text"
    opened.end(page_file)


def test_a_run_can_be_left_out_by_the_keyboard(browser: Any, page_file: Path) -> None:
    opened = Opened(browser, page_file)
    shown = "[...document.querySelectorAll('[data-run=\"1\"]')].filter(part => part.getClientRects().length).length"
    before = opened.page.evaluate(shown)
    opened.page.keyboard.press("Tab")
    opened.page.keyboard.press("Tab")
    opened.page.keyboard.press("Space")
    assert before > 10 and opened.page.evaluate(shown) == 0
    opened.chart("training loss over steps").focus()
    opened.page.keyboard.press("Home")
    assert "scored" not in opened.tip()
    opened.page.keyboard.press("End")
    assert "scored" not in opened.tip()
    opened.end(page_file)


def test_the_keyboard_reaches_everything(browser: Any, page_file: Path) -> None:
    opened = Opened(browser, page_file)
    page = opened.page
    wanted = page.evaluate("document.querySelectorAll('input, svg, summary').length")
    reached = set[int]()
    number = "[...document.querySelectorAll('input, svg, summary')].indexOf(document.activeElement)"
    for _ in range(3 * wanted):
        page.keyboard.press("Tab")
        reached.add(page.evaluate(number))
    assert reached >= {*range(wanted)}
    page.locator("summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("details[open] table").first.is_visible()
    opened.end(page_file)


def test_without_scripts_all_but_the_pointer_works(browser: Any, page_file: Path) -> None:
    opened = Opened(browser, page_file, java_script_enabled=False)
    assert opened.page.locator("svg").count() >= 10
    opened.page.locator("#run-1").uncheck()
    assert not opened.page.locator('[data-run="1"]').first.is_visible()
    opened.end(page_file)


def test_print_is_light_and_has_the_tables(browser: Any, page_file: Path) -> None:
    opened = Opened(browser, page_file, color_scheme="dark")
    opened.page.emulate_media(media="print")
    assert opened.page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--ink')") == "#1c2330"
    assert opened.page.locator("figure details table").first.is_visible()
    opened.page.set_viewport_size({"width": 720, "height": 1000})  # as wide as the paper within its margins
    wide = "all => all.filter(each => each.scrollWidth > each.clientWidth + 1).map(each => each.innerText)"
    assert opened.page.eval_on_selector_all("figure .scrolls", wide) == []
    widths = "all => all.map(each => each.parentElement.clientWidth - each.clientWidth)"
    alone = opened.page.eval_on_selector_all(".figures > figure:only-child", widths)
    assert len(alone) == 2 and max(alone) <= 1
    assert len(opened.page.pdf(format="A4")) > 20_000
    opened.end(page_file)
