"""The page of runs: complete, well-formed, and safe with a stranger's text; the fake run shows all it can."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from jsonschema import Draft202012Validator

from sprunec.show.report.page import STATUS, page_text, write_html
from sprunec.show.report.runs import Run
from tests.helpers.fake_runs import TRAINED, fake_events, fake_report, fake_search, model

ROOT = Path(__file__).parents[3]
SCHEMA = json.loads((ROOT / "schemas" / "report.schema.json").read_text())
SVG = "{http://www.w3.org/2000/svg}"


def written(out: Path, report: dict[str, Any], events: list[dict[str, Any]] | None = None) -> str:
    (out / "report.json").write_text(json.dumps(report))
    if events is not None:
        (out / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return write_html(out).read_text(encoding="utf-8")


class Outline(HTMLParser):
    """Checks that every tag is closed in order, and collects tags, attributes, headings, cells and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []
        self.of: dict[str, list[str]] = {tag: [] for tag in ("h2", "td", "th", "figcaption", "p")}
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self.open and self.open[-1] in self.of:
            self.of[self.open[-1]].append(data)

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.attributes if key == name]


def drawings(page: str) -> dict[str, ElementTree.Element]:
    """The drawings by their labels; each is well-formed XML."""
    found = [ElementTree.fromstring("<svg" + part.split("</svg>")[0] + "</svg>") for part in page.split("<svg")[1:]]
    return {each.attrib["aria-label"]: each for each in found}


def tips(drawn: ElementTree.Element) -> list[str]:
    return [each.attrib["data-tip"] for each in drawn.iter() if "data-tip" in each.attrib]


def kinds(drawn: ElementTree.Element, tag: str) -> list[str]:
    return [each.attrib["class"] for each in drawn.iter(SVG + tag)]


def test_the_fake_run_is_a_real_reports_kin() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    Draft202012Validator(SCHEMA).validate(fake_report() | {"search": fake_search()})
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
        {"models": {"dense": model(1, 1.0, 1.0) | {"samples": [{"given": "a"}]}}},
        {"models": {"dense": {"parameters": 1.5, "loss": 1, "perplexity": 1, "tokens_per_second": 1}}},
        {"provenance": {"plan": {}, "files": [{"path": "a", "sha256": "b"}], "machine": {}}},
    ],
)
def test_the_schema_refuses(change: dict[str, Any]) -> None:
    assert not Draft202012Validator(SCHEMA).is_valid({**fake_report(), **change})


def test_the_page_is_well_formed_and_has_every_section(tmp_path: Path) -> None:
    outline = Outline(written(tmp_path, fake_report() | {"search": fake_search()}, fake_events()))
    titles = ["Models", "Search", "Losses", "Proof", "What was kept", "Masks while they learn", "Budgets", "Samples"]
    assert outline.of["h2"] == [*titles, "Passes", "Provenance"]
    words = " ".join(outline.text)
    assert "Done and written, but a mask had not settled on its target." in words
    for cell in ("1.7984", "6.31", "49,870", "44,883 to 54,857", "2.33 x", "2.10 to 2.50 x", "as dense", "ab" * 32):
        assert cell in outline.of["td"], cell
    for shown in ("38.8 %", "+0.044", "2.4e-06", "in the local scope", "corpus.txt", '{"pass": "train", "steps": 250}'):
        assert shown in words, shown
    assert {"4-train-mask-head", "logits of masked and small"} <= {*outline.of["th"]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events.jsonl", "report.html", "report.json"]


def test_nothing_is_asked_of_anyone_and_only_its_own_script_runs(tmp_path: Path) -> None:
    page = written(tmp_path, fake_report(), fake_events())
    outline = Outline(page)
    assert (
        not {"link", "img", "iframe", "image", "use", "object"} & {*outline.tags} and outline.tags.count("script") == 1
    )
    assert not [name for name, _ in outline.attributes if name in ("src", "href", "srcset") or name.startswith("on")]
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")
    assert "url(" not in page and "@import" not in page
    script = page.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert policy in outline.all("content")


def test_losses_are_drawn_by_pass_with_what_held_out_text_says(tmp_path: Path) -> None:
    events = fake_events()
    loss = drawings(written(tmp_path, fake_report(), events))["training loss over steps"]
    assert [title.text for title in loss.iter(SVG + "title")] == [name for name, *_ in TRAINED]
    curves = {each.attrib["data-name"]: each for each in loss.iter(SVG + "polyline") if "data-name" in each.attrib}
    assert [*curves] == [name for name, *_ in TRAINED]
    first, value = curves["3-train"].attrib["data-points"].split()[0].split(":")
    means = [event["loss"] for event in events[: 2 * int(float(first)) - 1]]
    assert float(value) == pytest.approx(sum(means) / len(means), rel=1e-3)
    held = [event for event in events if "held_out" in event]
    assert tips(loss)[0] == f"3-train, step 50: {held[0]['held_out']:.4f} on held-out text"
    assert len(tips(loss)) == len(held) == 13


def test_speeds_and_sizes_are_drawn(tmp_path: Path) -> None:
    found = drawings(written(tmp_path, fake_report()))
    bars = [float(bar.attrib["width"]) for bar in found["tokens per second"].iter(SVG + "rect")]
    assert [round(bar / bars[2], 2) for bar in bars] == [0.43, 0.42, 1.0]
    sizes = found["held-out loss over parameters"]
    assert tips(sizes) == [
        "quickstart, small: 412,672 parameters, loss 1.8427",
        "quickstart, dense: 1,062,400 parameters, loss 1.7984",
    ]
    assert kinds(sizes, "circle") == ["dot", "held"]


def test_a_sweep_is_drawn_over_size_and_latency(tmp_path: Path) -> None:
    found = drawings(written(tmp_path, fake_report() | {"search": fake_search()}))
    assert tips(found["loss over size"])[0] == "quickstart: 240,000 parameters, KL 0.0810"
    assert tips(found["latency over size"])[1] == "quickstart: 300,000 parameters, milliseconds 8.25, goes on"
    places = [float(dot.attrib["cx"]) for dot in found["loss over size"].iter(SVG + "circle")]
    assert places == sorted(places) and len(places) == 3


def test_masks_are_drawn_while_they_learn(tmp_path: Path) -> None:
    page = written(tmp_path, fake_report(), fake_events())
    found = drawings(page)
    for name in ("4-train-mask-head", "7-train-mask-dim_ff"):
        lines = kinds(found[f"expected size in {name}"], "polyline")
        assert lines == ["target", "curve", "curve", "curve", "curve"]  # four equal targets are one line
    heads = found["how likely each head is kept"]  # the last step that was told
    assert tips(heads)[0] == "layer 0, head 0: 100 %" and tips(heads)[1] == "layer 0, head 1: 19 %"
    assert len(tips(heads)) == 4 * 16
    dims = found["how likely each dim_ff is kept"]
    assert tips(dims)[:2] == ["layer 0, dim_ff 1 to 48 of 64: 24 %", "layer 0, dim_ff 49 to 64 of 64: 100 %"]
    assert Outline(page).text.count("step 121") == 1  # of heads alone, in the order of steps
    assert re.findall(r"<h4>(step \d+)</h4>", page)[:5] == ["step 1", "step 31", "step 61", "step 91", "step 121"]


def test_what_was_kept_is_drawn_and_listed(tmp_path: Path) -> None:
    page = written(tmp_path, fake_report())
    heads, widths = drawings(page)["kept heads"], drawings(page)["kept feed-forward dims"]
    assert (kinds(heads, "rect").count("on"), kinds(heads, "rect").count("off")) == (12, 36)
    assert tips(heads)[:3] == ["layer 0, head 0: cut", "layer 0, head 1: kept", "layer 0, head 2: kept"]
    full = [float(bar.attrib["width"]) for bar in widths.iter(SVG + "rect")]
    assert [round(bar / full[0], 3) for bar in full[1::2]] == [0.5, 0.625, 0.375]
    assert all("absent" in "".join(drawn.itertext()) for drawn in (heads, widths))
    assert "1, 2, 7, 15" in Outline(page).of["td"]


def test_only_what_was_cut_is_drawn(tmp_path: Path) -> None:
    report = fake_report()
    report["kept"]["attention"] = {str(layer): [*range(16)] for layer in range(4)}
    page = written(tmp_path, report)
    assert "kept heads" not in drawings(page) and "kept feed-forward dims" in drawings(page)
    assert "All 16 heads in every layer." in Outline(page).text
    report["kept"]["feed_forward"] = dict.fromkeys("0123", 256)
    assert "All 256 feed-forward dims in every layer." in Outline(written(tmp_path, report)).text
    report["kept"]["attention"]["2"] = None
    assert "absent" in "".join(drawings(written(tmp_path, report))["kept heads"].itertext())


def test_every_drawing_has_its_numbers_in_a_table(tmp_path: Path) -> None:
    page = written(tmp_path, fake_report(), fake_events())
    own = ("held-out loss over parameters", "tokens per second")  # their numbers are the table above
    for part in page.split("<figure>")[1:]:
        label = part.partition('aria-label="')[2].partition('"')[0]
        assert label in own or "<details><summary>Numbers</summary>" in part.partition("</figure>")[0], label


def several() -> list[Run]:
    small = fake_report()
    small["models"]["small"] |= {"parameters": 300_000, "loss": 1.9}
    return [Run("first", fake_report(), fake_events()), Run("second <b>", small | {"search": fake_search()}, (), 1)]


def test_several_runs_share_their_charts_and_can_be_left_out() -> None:
    page = page_text(several())
    outline, found = Outline(page), drawings(page)
    assert outline.of["h2"][:4] == ["Runs", "Search", "Losses", "Proof"]
    assert "2 runs" in outline.text and "second <b>" in outline.of["th"]
    assert [value for value in outline.all("id") if value.startswith("run-")] == ["run-0", "run-1"]
    assert 'body:has(#run-1:not(:checked)) [data-run="1"] { display: none; }' in page
    sizes = found["held-out loss over parameters"]
    groups = [(group.attrib["data-run"], len(tips(group))) for group in sizes.iter(SVG + "g")]
    assert groups == [("0", 2), ("1", 2)]
    assert tips(sizes)[2] == "second <b>, small: 300,000 parameters, loss 1.9000"
    names = [
        line.attrib["data-name"]
        for line in found["training loss over steps"].iter(SVG + "polyline")
        if "data-name" in line.attrib
    ]
    assert names[0] == "first, 3-train"
    assert not [*found["training loss over steps"].iter(SVG + "title")]  # passes of unlike runs have no bands


def test_what_was_not_measured_has_no_column(tmp_path: Path) -> None:
    report, measured = fake_report(), ["held-out loss", "perplexity", "tokens/s", "quartiles", "speed"]
    heads = ["model", "parameters", "of dense", *measured, "quartiles"]
    assert Outline(written(tmp_path, report)).of["th"][:9] == heads
    for each in report["models"].values():
        each |= dict.fromkeys(("loss", "perplexity", "tokens_per_second", "tokens_per_second_spread", "relative_speed"))
    assert Outline(written(tmp_path, report)).of["th"][:4] == ["model", "parameters", "of dense", "dense"]
    report["models"]["small"]["loss"] = 1.5
    assert Outline(written(tmp_path, report)).of["th"][:4] == ["model", "parameters", "of dense", "held-out loss"]


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    evil = "</title><script>alert('x')</script>\x00\ud800\" onload='x"
    report, events = fake_report() | {"search": fake_search()}, fake_events()
    report.update(plan=evil, error=evil, versions={evil: evil})
    report["passes"][2]["name"] = report["budgets"][0]["name"] = report["search"][0]["pass"] = evil
    report["models"]["small"]["samples"] = [{"given": evil, "written": evil}] * 2
    report["provenance"] |= {"plan": {"name": evil}, "files": [{"path": evil, "sha256": evil}]}
    for event in events:
        event["node"] = evil
        for budget in event["budgets"]:
            budget["name"] = evil
    page = written(tmp_path, report, events)
    outline = Outline(page)
    assert outline.tags.count("script") == 1 and "onload" not in dict(outline.attributes)
    assert "\x00" not in page
    assert sum("<script>alert('x')</script>" in text for text in outline.text) >= 8
    assert len(drawings(page)) >= 8


@pytest.mark.parametrize("status", STATUS)
def test_a_run_that_has_only_begun_has_a_page(tmp_path: Path, status: str) -> None:
    empty: dict[str, Any] = {"attention": {}, "feed_forward": {}}
    report = {**fake_report(), "status": status, "passes": [], "models": {"dense": None}, "comparison": None}
    report |= {"kept": empty, "budgets": [], "error": "data/pretrain: no such file"}
    del report["provenance"]
    Draft202012Validator(SCHEMA).validate(report)
    outline = Outline(written(tmp_path, report))
    assert STATUS[status][1] in outline.text
    assert "data/pretrain: no such file" in outline.text
    assert "svg" not in outline.tags
    assert outline.of["h2"] == ["Models", "Provenance"]


def test_a_line_cut_off_and_a_diverged_loss_are_left_out(tmp_path: Path) -> None:
    events = [{**event, "loss": math.nan} if event["step"] % 2 else event for event in fake_events()]
    written(tmp_path, fake_report(), events)
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"node": "9-fine')
    page = write_html(tmp_path).read_text(encoding="utf-8")
    assert "nan" not in ElementTree.tostring(drawings(page)["training loss over steps"], encoding="unicode")


def test_a_failed_write_leaves_the_old_page(tmp_path: Path) -> None:
    old = written(tmp_path, fake_report())
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(KeyError):
        write_html(tmp_path)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == old


def test_showing_needs_no_torch() -> None:
    code = "import sys, sprunec.show.console, sprunec.show.report.end_of_run; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
