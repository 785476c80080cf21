"""The plan's passes as a tree of nodes, what each takes of the machine, and the graph for other tools."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from sprunec.show.graph_tree import dot, graph_table, mermaid
from tests.helpers.small_plans import guide, write
from tests.show.test_fitted import graph_document
from tests.show.test_tables import GRAPH, IN_MEMORY, TRAINED, needs, node, rendered, row
from tests.test_cli import run


def test_graph_table_shows_each_node_and_the_cost() -> None:
    lines = rendered(graph_table(GRAPH))
    assert lines[0] == "plan quick[start]"
    assert [" ".join(line.split()) for line in lines[3:9]] == [
        "model and data",
        "└ 1-load cpm-ant, 4 layers - 1.06 M ab12cd stored",
        "1. train",
        "└ 2-train dense 1 300 1.06 M lacks input",
        "2. load-mask",
        "└ 3-rewrite heads 16 -> 4 2 - 531 k ab12cd",
    ]
    assert lines[-9:] == [
        "3 nodes, 1 already in the store, 1 lacking input",
        "parameters 1,062,400 -> 531,200 (50.0 %)",
        "key-value cache 4,096 -> unknown bytes a token",
        "614,400 training tokens, about 3.9e+12 floating-point operations",
        "each of 2 devices with all of the model (DDP): about 34.2 GB, sends 6.90 GB a step",
        "each of 2 devices with a part of the model (FSDP2): about 19.9 GB, sends 6.91 GB a step",
        "at most 32.6 GB of memory: the model 8.03 GB, gradients and moments 24.1 GB, torch and other libraries 500 MB",
        "9.1 GB on the disk, and 48.1 GB more for a while; 4.01 GB read",
        "2-train needs weights, gradients and moments in memory, 32.1 GB; train on more devices",
    ]


def needs_rows(document: dict[str, Any], width: int) -> list[str]:
    lines = [" ".join(line.split()) for line in rendered(graph_table(document), width)]
    first = next(index for index, line in enumerate(lines) if line.startswith("needs "))
    return lines[first:]


def test_graph_table_shows_what_each_pass_of_the_plan_needs() -> None:
    lines = needs_rows(GRAPH, 80)
    assert lines[0] == "needs tokens operations memory disk reads"
    assert lines[2:6] == [
        "model and data - - 500 MB - -",
        "1. train 614 k 3.9e+12 32.6 GB 8.03 GB 4.01 GB",
        "2. load-mask - - 500 MB - -",
        "in all 614 k 3.9e+12 32.6 GB 9.1 GB 4.01 GB",
    ]
    assert needs_rows(GRAPH, 120)[3].split(" 32.6 GB ")[1] == "gradients and moments 24.1 GB 8.03 GB 4.01 GB"


def test_what_a_pass_of_the_plan_needs_is_that_of_its_nodes_together() -> None:
    second = node("4-compare", {}, "comparison", "", step="/passes/0", needs=needs(tokens=100.0, memory=6e8, read=1e9))
    first, train, *_ = GRAPH["nodes"]
    lines = needs_rows(GRAPH | {"nodes": [first, train, second]}, 80)
    assert lines[3:6] == [
        "1. train 614 k 3.9e+12 32.6 GB 8.03 GB 5.01 GB",
        "├ 2-train 614 k 3.9e+12 32.6 GB 8.03 GB 4.01 GB",
        "└ 4-compare 100 - 600 MB - 1 GB",
    ]


def test_graph_table_says_a_time_where_one_was_measured() -> None:
    speeds = {
        "device": "cpu",
        "float32": 5.2e10,
        "float64": 2.1e10,
        "training": 4.3e10,
        "decoding": 4e9,
        "read": 1.2e9,
        "trace": 0.5,
        "opening": 0.1,
    }
    nodes = [node | {"needs": node["needs"] | {"seconds": 75.0}} for node in GRAPH["nodes"]]
    timed = GRAPH | {"measured": speeds, "nodes": nodes, "needs": GRAPH["needs"] | {"seconds": 12345.0}}
    lines = rendered(graph_table(timed))
    assert row(lines, "in").endswith("32.6 GB gradients and moments 24.1 GB 9.1 GB 4.01 GB 3:25:45")
    kinds = (("5.2e+10", "float32"), ("2.1e+10", "float64"), ("4.3e+10", "training"))
    speed = ", ".join(f"{rate} operations a second in {kind}" for rate, kind in kinds)
    told = f"about 3:25:45, by what was measured on cpu: {speed}, 1.2 GB a second read"
    assert " ".join(lines[-3:]).endswith(told)
    lines = rendered(graph_table(timed | {"measured": speeds | {"read": None}}))
    assert lines[-1].endswith("reading was not measured")


def test_passes_that_need_the_model_in_memory_are_told_together() -> None:
    less = TRAINED | {"in_one_piece": IN_MEMORY | {"bytes": 1e9}}
    nodes = [*GRAPH["nodes"], node("4-finetune", {}, "model", "") | {"needs": less}]
    words = "2-train and 4-finetune need weights, gradients and moments in memory, 32.1 GB; train on more devices"
    assert rendered(graph_table(GRAPH | {"nodes": nodes}))[-1] == words


@pytest.mark.parametrize(("size", "told"), [(9e8, 0), (1.1e9, 1), (None, 1)])
def test_what_fits_anywhere_is_not_told(size: float | None, told: int) -> None:
    small = {"memory": 1e9, "memory_of": {}, "in_one_piece": IN_MEMORY | {"bytes": size}}
    train = next(each for each in GRAPH["nodes"] if each["name"] == "2-train")
    lines = rendered(graph_table(GRAPH | {"nodes": [train | {"needs": train["needs"] | small}]}))
    assert sum("train on more devices" in line for line in lines) == told


@pytest.mark.parametrize(("form", "arrow"), [(mermaid, "-->"), (dot, "->")])
def test_every_node_and_every_input_is_in_the_graph_of_another_tool(form: Any, arrow: str, tmp_path: Path) -> None:
    document = graph_document(write(tmp_path, guide()))
    text = form(document)
    edges = {(giver, taker) for giver, taker in re.findall(rf"(?m)^  (\w+) {arrow} (\w+);?$", text)}
    wanted = {(giver, each["name"]) for each in document["nodes"] for giver in each["inputs"].values()}
    assert edges == {tuple("n" + re.sub(r"\W", "_", name) for name in pair) for pair in wanted}
    for each in document["nodes"]:
        assert re.search(rf"n{re.sub(r'[^0-9A-Za-z_]', '_', each['name'])} ?\[", text)
    assert text.count("subgraph") == 9  # six passes, what comes in, in between, and what comes of it


@pytest.mark.parametrize("form", [mermaid, dot])
def test_words_of_a_plan_end_no_label(form: Any) -> None:
    text = form({**GRAPH, "plan": 'a"b', "nodes": [node("1-load", {}, "model", 'x"]; evil -> worse\x1b')]})
    assert "\x1b" not in text
    assert re.sub(r'"(?:[^"\\]|\\.)*"', "", text).count("evil") == 0


def test_run_prints_the_graph_for_another_tool(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, guide())
    assert run("run", path, "--dry-run", "--graph", "dot") == 0
    assert capsys.readouterr().out.startswith('digraph "small" {')
    assert run("run", path, "--dry-run", "--graph", "mermaid") == 0
    assert capsys.readouterr().out.startswith("flowchart TD\n")
    assert run("run", path, "--graph", "dot") == 2


def test_a_time_follows_from_a_given_throughput(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, guide())
    assert run("run", path, "--dry-run", "--throughput", "2.5G", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    for each in (document["needs"], *(each["needs"] for each in document["nodes"])):
        assert each["seconds"] == pytest.approx(each["operations"] / 2.5e9)
    assert run("run", path, "--dry-run", "--throughput", "2.5G") == 0
    assert "as given: 2.5e+09 operations a second" in " ".join(capsys.readouterr().out.split())
    for wrong in (["--throughput", "fast"], ["--throughput", "0"], ["--throughput", "1T", "--measure"]):
        assert run("run", path, "--dry-run", *wrong) == 2


def test_what_may_not_fit_is_told_with_the_options_that_make_it_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, guide())
    assert run("run", path, "--dry-run", "--json") == 0
    printed = capsys.readouterr()
    assert "takes up to" not in printed.err
    trained = next(each["needs"] for each in json.loads(printed.out)["nodes"] if each["pass"] == "train")
    memory = trained["memory"] - 0.5 * trained["memory_of"]["activations"]
    assert run("run", path, "--dry-run", "--memory", memory / 1e9) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert f"/passes/0: 3-train takes up to {trained['memory'] / 1e9:.1f} GB, and the device has" in told
    assert 'it fits with "accumulate": 4 (' in told or '"activation_checkpointing": true (' in told
    content = guide(training={"accumulate": 4}, engine={"activation_checkpointing": True})
    assert run("run", write(tmp_path, content), "--dry-run", "--memory", memory / 1e9) == 0
    assert "3-train takes up to" not in capsys.readouterr().err
