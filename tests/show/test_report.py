"""The page of a run: complete, well-formed, and safe with a stranger's text; the fake run shows all it can."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from jsonschema import Draft202012Validator

from sprunec.show import plots
from sprunec.show.page import STATUS, write_html

SCHEMA = json.loads((Path(__file__).parents[2] / "schemas" / "report.schema.json").read_text())
# (node, steps, target per layer or None, full size): 700 steps in all
TRAINED = [("3-train", 250, None, 0), ("4-train-mask-head", 150, 4.0, 16), ("6-finetune", 100, None, 0)]
TRAINED += [("7-train-mask-dim_ff", 120, 128.0, 256), ("9-finetune", 80, None, 0)]
PASSES = ["1-load", "2-trace", "3-train", "4-train-mask-head", "5-rewrite", "6-finetune", "7-train-mask-dim_ff"]
PASSES += ["8-rewrite", "9-finetune", "10-compare", "11-emit"]


def model(parameters: int, loss: float, speed: float, ratio: tuple[float, ...] = ()) -> dict[str, Any]:
    sample = "The import statement <module> is used to & 'names' in the local scope."
    measured = {"loss": loss, "perplexity": math.exp(loss), "tokens_per_second": speed}
    measured["tokens_per_second_spread"] = [0.9 * speed, 1.1 * speed]
    measured["relative_speed"] = dict(zip(("ratio", "low", "high"), ratio, strict=True)) if ratio else None
    return {"parameters": parameters, **measured, "sample": sample}


def fake_passes() -> list[dict[str, Any]]:
    losses = {"3-train": 1.812, "4-train-mask-head": 2.104, "6-finetune": 1.861}
    return [
        {
            "name": name,
            "pass": name.split("-", 1)[1].removesuffix("-head").removesuffix("-dim_ff"),
            "digest": f"{index * 7919:064x}"[::-1],
            "cached": index < 2,
            "seconds": 0.3 if index < 2 else 21.7 + index,
            "metrics": {"loss": losses[name], "learning_rate": 0.01} if name in losses else {},
        }
        for index, name in enumerate(PASSES)
    ]


def fake_budgets() -> list[dict[str, Any]]:
    masks = [(name, target) for name, _, target, _ in TRAINED if target]
    return [
        {
            "pass": name,
            "name": f"layer {layer}",
            "asked": target,
            "target": target,
            "expected": target * 1.006,
            "got": target,
            "settled": layer != 3,
            "undecided": layer,
        }
        for name, target in masks
        for layer in range(4)
    ]


def fake_report() -> dict[str, Any]:
    attention = {"0": [1, 2, 7, 15], "1": [0, 5, 6, 9], "2": None, "3": [3, 4, 11, 12]}
    return {
        "status": "target-missed",
        "plan": {"name": "quickstart", "seed": 1234},
        "versions": {"sprunec": "0.1.0", "python": "3.12.4", "torch": "2.5.1", "device": "cpu", "cuda": None},
        "passes": fake_passes(),
        "models": {
            "dense": model(1_062_400, 1.7984, 21_430.0),
            "masked": model(1_062_400, 1.8427, 20_911.5, (0.98, 0.91, 1.04)),
            "small": model(412_672, 1.8427, 49_870.2, (2.33, 2.1, 2.5)),
        },
        "comparison": {"max_abs_difference": 2.38e-6, "tolerance": 1e-4, "tokens": 46_592},
        "kept": {"attention": attention, "feed_forward": {"0": 128, "1": 160, "2": 96, "3": None}},
        "budgets": fake_budgets(),
        "config": {"num_heads": 16, "dim_ff": 256, "num_layers": 4},
        "error": None,
    }


def budget_lines(step: int, steps: int, target: float, full: float) -> list[dict[str, Any]]:
    share = min(1.0, 2 * step / steps)  # the target is ramped over the first half
    aim = full + (target - full) * share
    lag = [(full - target) * (0.05 + 0.03 * layer) * math.exp(-4 * max(0.0, step / steps - 0.4)) for layer in range(4)]
    more = {"target": aim, "multiplier1": 0.1 * step, "multiplier2": 0.05 * step}
    return [{"name": f"layer {layer}", "expected": min(full, aim + late), **more} for layer, late in enumerate(lag)]


def fake_events() -> list[dict[str, Any]]:
    noise, loss = random.Random(0), 5.6
    events: list[dict[str, Any]] = []
    for name, steps, target, full in TRAINED:
        for step in range(1, steps + 1):
            floor = 2.1 if target else 1.8
            loss += (floor - loss) * 0.02
            events.append(
                {
                    "node": name,
                    "step": step,
                    "steps": steps,
                    "loss": loss + noise.gauss(0, 0.05),
                    "learning_rate": 0.01,
                    "tokens_per_second": 21_000.0,
                    "model_steps": len(events) + 1,
                    "budgets": budget_lines(step, steps, target, full) if target else [],
                    "undecided": 3 if target else 0,
                }
            )
    return events


def written(out: Path, report: dict[str, Any], events: list[dict[str, Any]] | None = None) -> str:
    (out / "report.json").write_text(json.dumps(report))
    if events is not None:
        (out / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return write_html(out).read_text(encoding="utf-8")


class Outline(HTMLParser):
    """Checks that every tag is closed in order, and collects tags and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def drawings(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring("<svg" + part.split("</svg>")[0] + "</svg>") for part in page.split("<svg")[1:]]


def test_the_fake_run_is_a_real_reports_kin() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    validator = Draft202012Validator(SCHEMA)
    validator.validate(fake_report())
    assert sum(steps for _, steps, _, _ in TRAINED) == len(fake_events()) == 700


@pytest.mark.parametrize(
    "change",
    [
        {"status": "finished"},
        {"more": 1},
        {"kept": {"attention": {"zero": []}, "feed_forward": {}}},
        {"comparison": {"max_abs_difference": 0.0, "tolerance": 1e-4}},
        {"models": {"dense": model(1, 1.0, 1.0) | {"tokens_per_second_spread": [1.0]}}},
        {"models": {"dense": model(1, 1.0, 1.0) | {"relative_speed": {"ratio": 1.0}}}},
        {"models": {"dense": {"parameters": 1.5, "loss": 1, "perplexity": 1, "tokens_per_second": 1}}},
    ],
)
def test_the_schema_refuses(change: dict[str, Any]) -> None:
    assert not Draft202012Validator(SCHEMA).is_valid({**fake_report(), **change})


def test_the_page_is_well_formed_and_has_every_section(tmp_path: Path) -> None:
    page = written(tmp_path, fake_report(), fake_events())
    outline = Outline(page)
    words = " ".join(outline.text)
    for title in ("Models", "Speed", "Training loss", "What was kept", "Budgets", "Samples", "Passes", "Versions"):
        assert title in outline.text
    assert "Done and written, but a mask had not settled on its target." in words
    for cell in (
        "38.8 %",
        "1.7984",
        "6.31",
        "49,870",
        "44,883 to 54,857",
        "2.33 x",
        "2.10 to 2.50 x",
        "as dense",
        "+0.044",
        "2.4e-06",
        "4-train-mask-head",
    ):
        assert cell in words
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events.jsonl", "report.html", "report.json"]


def test_the_page_needs_no_network_and_no_script(tmp_path: Path) -> None:
    page = written(tmp_path, fake_report(), fake_events())
    assert not {"script", "link", "img", "iframe"} & set(Outline(page).tags)
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")


def test_the_drawings_show_all_passes_layers_and_heads(tmp_path: Path) -> None:
    speed, loss, heads_mask, width_mask, heads, widths = drawings(written(tmp_path, fake_report(), fake_events()))
    bars = [float(bar.attrib["width"]) for bar in speed.iter("{http://www.w3.org/2000/svg}rect")]
    assert [round(bar / 700, 2) for bar in bars] == [0.39, 0.38, 0.91]  # of the upper quartile of the fastest
    assert loss.attrib["aria-label"] == "training loss over steps"
    named = [title.text for title in loss.iter("{http://www.w3.org/2000/svg}title")]
    assert named == [name for name, *_ in TRAINED]
    for mask in (heads_mask, width_mask):
        kinds = [line.attrib["class"] for line in mask.iter("{http://www.w3.org/2000/svg}polyline")]
        assert kinds == ["target", "curve", "curve", "curve", "curve"]  # four equal targets are one line
    kinds = [cell.attrib["class"] for cell in heads.iter("{http://www.w3.org/2000/svg}rect")]
    assert (kinds.count("on"), kinds.count("off")) == (12, 36)
    full = [float(bar.attrib["width"]) for bar in widths.iter("{http://www.w3.org/2000/svg}rect")][1::2]
    assert full == [400.0, 500.0, 300.0]
    assert all("absent" in "".join(drawing.itertext()) for drawing in (heads, widths))


def test_only_what_was_cut_is_drawn(tmp_path: Path) -> None:
    report = fake_report()
    before = [each.attrib["aria-label"] for each in drawings(written(tmp_path, report))]
    assert before[-2:] == ["kept heads", "kept dims"]
    report["kept"]["attention"] = {str(layer): [*range(16)] for layer in range(4)}
    page = written(tmp_path, report)
    assert [each.attrib["aria-label"] for each in drawings(page)] == [*before[:-2], "kept dims"]
    assert "All 16 heads in every layer." in Outline(page).text
    report["kept"]["feed_forward"] = dict.fromkeys("0123", 256)
    page = written(tmp_path, report)
    assert [each.attrib["aria-label"] for each in drawings(page)] == before[:-2]
    assert "All 256 dims in every layer." in Outline(page).text
    report["kept"]["attention"]["2"] = None
    assert "absent" in "".join(drawings(written(tmp_path, report))[-1].itertext())


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    evil = "</title><script>alert('x')</script>\x00\ud800"
    report, events = fake_report(), fake_events()
    report.update(plan=evil, error=evil, versions={evil: evil})
    report["passes"][2]["name"] = report["models"]["small"]["sample"] = report["budgets"][0]["name"] = evil
    for event in events:
        event["node"] = evil
        for budget in event["budgets"]:
            budget["name"] = evil
    page = written(tmp_path, report, events)
    outline = Outline(page)
    assert "script" not in outline.tags
    assert "\x00" not in page
    assert sum("<script>alert('x')</script>" in text for text in outline.text) >= 8
    assert len(drawings(page)) == 5


@pytest.mark.parametrize("status", STATUS)
def test_a_run_that_has_only_begun_has_a_page(tmp_path: Path, status: str) -> None:
    empty: dict[str, Any] = {"attention": {}, "feed_forward": {}}
    report = {
        **fake_report(),
        "status": status,
        "passes": [],
        "models": {"dense": None},
        "comparison": None,
        "kept": empty,
    }
    report = {**report, "budgets": [], "error": "data/pretrain: no such file"}
    Draft202012Validator(SCHEMA).validate(report)
    outline = Outline(written(tmp_path, report))
    assert STATUS[status][1] in outline.text
    assert "data/pretrain: no such file" in outline.text
    assert "svg" not in outline.tags
    assert "Passes" not in outline.text


def test_a_line_cut_off_and_a_diverged_loss_are_left_out(tmp_path: Path) -> None:
    events = [{**event, "loss": math.nan} if event["step"] % 2 else event for event in fake_events()]
    written(tmp_path, fake_report(), events)
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"node": "9-fine')
    page = write_html(tmp_path).read_text(encoding="utf-8")
    assert "nan" not in page.split("<svg")[2].split("</svg>")[0]
    assert len(drawings(page)) == 6


def test_a_failed_write_leaves_the_old_page(tmp_path: Path) -> None:
    old = written(tmp_path, fake_report())
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(KeyError):
        write_html(tmp_path)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == old


def test_long_runs_are_thinned_to_means() -> None:
    points = [(float(step), float(step % 2)) for step in range(100_000)]
    thin = plots.thinned(points, 200_000, 1000)
    assert (len(thin), thin[0]) == (500, (99.5, 0.5))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 700, [0, 200, 400, 600]), (1.7, 5.6, [2, 3, 4, 5]), (3, 3, [3]), (0, 0.05, [0, 0.01, 0.02, 0.03, 0.04, 0.05])],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert plots.ticks(low, high) == expected


def test_showing_needs_no_torch() -> None:
    code = "import sys, sprunec.show.console, sprunec.show.page; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)
