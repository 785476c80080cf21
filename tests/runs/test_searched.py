"""A search from a plan to a small model: within its limits, exact, and solved anew for another target."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import validate

from sprunec.errors import InputError, PassError
from sprunec.families.cpm_ant.config import ModelConfig as OwnConfig
from sprunec.families.huggingface.transformers_config import TransformersConfig
from sprunec.plan.schema import load_schema
from sprunec.plan.search.choices import choices
from sprunec.show.report.page import write_html
from tests.helpers.small_plans import EMIT, MODEL, execute, plan, save_weights
from tests.runs.test_causal_lms import config_of_small, directory, run

SIZES = {"gpt2": {"n_layer": 3}}
UNITS = {"gpt2": ["head", "dim_ff"]}
SEARCH = {"pass": "search", "batches": 2, "damage_batches": 1, "finalists": 2}


def whole(folder: Path) -> TransformersConfig:
    return TransformersConfig.from_source(json.loads((folder / "dense/config.json").read_text()))


def prepared(folder: Path, name: str) -> tuple[dict[str, Any], int]:
    """Make a model -> a search for four fifths of its parameters in blocks, and their number in the whole model."""
    directory(folder, name, **SIZES.get(name, {"num_hidden_layers": 3}))
    config = whole(folder)
    outside = config.with_layers(layer.resized(dict.fromkeys(layer.counts, 0)) for layer in config.layers).parameters()
    most = outside + (config.parameters() - outside) * 4 // 5
    units = UNITS.get(name, ["kv_group", "dim_ff"])
    return SEARCH | {"units": units, "target": {"parameters": most}}, most


@pytest.mark.parametrize(
    "name", ["llama", *(pytest.param(n, marks=pytest.mark.slow) for n in ("qwen3", "gemma3_text", "gpt2"))]
)
def test_a_solution_is_within_its_limit_and_exact(name: str, tmp_path: Path) -> None:
    search, most = prepared(tmp_path, name)
    report = run(tmp_path, search)
    assert report.status == "done"
    assert report.data["comparison"]["max_abs_difference"] <= report.data["comparison"]["tolerance"]
    small = report.data["models"]["small"]["parameters"]
    assert 0.9 * most < small <= most
    metrics = {entry["pass"]: entry["metrics"] for entry in report.data["passes"]}
    assert metrics["search"]["parameters"] <= most and metrics["search"]["gap"] == 0
    assert metrics["measure-finalists"]["parameters"] == small
    finalists = metrics["measure-finalists"]["finalists"]
    assert len(finalists) == 2 and metrics["measure-finalists"]["kl"] == min(each["kl"] for each in finalists)


def test_every_kind_of_unit_of_our_own_family(tmp_path: Path) -> None:
    save_weights(tmp_path / "weights.pt")
    most = OwnConfig.from_dict(MODEL).parameters() * 4 // 5
    units = ["head", "dim_head", "dim_ff", "layer", "block"]
    search = SEARCH | {"units": units, "target": {"parameters": most}, "most_absent": 2, "save_mask": "mask.pt"}
    report = execute(plan(search, EMIT, model={"config": MODEL, "checkpoint": "weights.pt"}), tmp_path)
    assert report["status"] == "done" and report["models"]["small"]["parameters"] <= most
    assert report["comparison"]["max_abs_difference"] <= report["comparison"]["tolerance"]
    absent = [each["absent"] for entry in report["passes"] for each in entry["metrics"].get("finalists", ())]
    assert len(absent) == 2 and max(absent) <= 2 and len({bool(count) for count in absent}) == 2
    assert (tmp_path / "mask.pt").is_file()


def test_layers_that_are_alike_open_in_the_stock_class(tmp_path: Path) -> None:
    search, most = prepared(tmp_path, "llama")
    report = run(tmp_path, search | {"uniform": True})
    assert report.status == "done" and report.data["models"]["small"]["parameters"] <= most
    assert config_of_small(tmp_path)["architectures"] == ["LlamaForCausalLM"]


def test_another_target_scores_nothing_again(tmp_path: Path) -> None:
    search, most = prepared(tmp_path, "llama")
    run(tmp_path, search | {"finalists": 1})
    report = run(
        tmp_path, search | {"finalists": 1, "target": {"parameters": most * 9 // 10, "memory": {"gigabytes": 1}}}
    )
    cached = {entry["pass"]: entry["cached"] for entry in report.data["passes"]}
    assert (cached["score-choices"], cached["search"]) == (True, False)
    assert report.data["models"]["small"]["parameters"] <= most * 9 // 10


def test_a_solution_is_refined_by_what_changes_where_it_stands(tmp_path: Path) -> None:
    search, most = prepared(tmp_path, "llama")
    report = run(tmp_path, search | {"refine": 2})
    names = [entry["name"].partition("-")[2] for entry in report.data["passes"]]
    start = names.index("search-0")
    rounds = [name.format(n) for n in (1, 2) for name in ("compensate-{}", "score-exchanges-{}", "search-{}")]
    assert [name for name in names[start:] if not name.startswith("measure")][1:7] == rounds
    entries = {entry["name"].partition("-")[2]: entry["metrics"] for entry in report.data["passes"]}
    divergences = [entries[f"measure-finalists-{n}"]["kl"] for n in range(3)]
    assert divergences == sorted(divergences, reverse=True)  # what was taken before is among the finalists
    for number in (1, 2):
        assert any(
            each["kl"] == divergences[number - 1] for each in entries[f"measure-finalists-{number}"]["finalists"]
        )
    (row,) = report.data["search"]
    assert row["kl"] == divergences[-1] and row["chosen"] and row["damage"] > 0
    assert report.status == "done" and report.data["models"]["small"]["parameters"] == row["parameters"] <= most
    validate(report.data, load_schema("report"))


@pytest.mark.slow
def test_a_sweep_solves_all_its_targets_by_one_scoring(tmp_path: Path) -> None:
    search, most = prepared(tmp_path, "llama")
    targets = [{"parameters": most}, {"parameters": most * 9 // 10}]
    report = run(tmp_path, search | {"target": targets, "chosen": 2, "finalists": 1})
    assert [entry["pass"] for entry in report.data["passes"]].count("score-choices") == 1
    validate(report.data, load_schema("report"))
    first, second = report.data["search"]
    assert (first["chosen"], second["chosen"]) == (False, True)
    assert first["parameters"] <= most and second["parameters"] <= most * 9 // 10
    assert first["kl"] > 0 and first["damage"] < second["damage"]
    assert report.data["models"]["small"]["parameters"] == second["parameters"]
    page = write_html(tmp_path / "out").read_text()
    assert "loss over size" in page and f"{first['kl']:.4f}" in page


def test_what_only_the_solver_finds_impossible_ends_the_run(tmp_path: Path) -> None:
    """All layers are to be alike, and one of them is whole."""
    search, most = prepared(tmp_path, "llama")
    dense = whole(tmp_path).parameters()
    with pytest.raises(PassError, match=f"parameters: {most:,} asked for, and {dense:,} is the least possible"):
        run(tmp_path, search | {"units": ["dim_ff"], "uniform": True, "whole_first": 1})


def test_times_of_a_table_are_a_limit(tmp_path: Path) -> None:
    search, _ = prepared(tmp_path, "llama")
    parts = [
        {"sublayer": c.sublayer, "layers": [0, 1, 2], "kept": dict(c.kept), "decode": 0.001 * sum(c.kept.values())}
        for c in choices(whole(tmp_path), search["units"])
        if c.layer == 0
    ]
    table = {"device": "cpu", "versions": {}, "dtype": "float32", "threads": 1, "batch": 1, "length": 64}
    table |= {"base": {"decode": 0.01}, "sublayers": parts, "dense": {"decode": 1.0}}
    table |= {"check": {"said": {"decode": 1.0}, "measured": {"decode": 1.0}}}
    (tmp_path / "times.json").write_text(json.dumps(table))
    timed = search | {"latency_table": "times.json", "finalists": 1}
    report = run(tmp_path, timed | {"target": {"latency": {"speedup": 1.2, "length": 64}}})
    limit = report.data["search"][0]["limits"]["milliseconds"]
    assert report.status == "done" and 0.9 * limit["asked"] < limit["got"] <= limit["asked"]
    with pytest.raises(InputError, match="this table is of length 64, and the target's latency of length 128"):
        run(tmp_path, timed | {"target": {"latency": {"speedup": 1.2, "length": 128}}})


@pytest.mark.slow
def test_times_are_measured_where_no_table_is_given(tmp_path: Path) -> None:
    search, _ = prepared(tmp_path, "llama")
    units = {"units": ["kv_group", "dim_ff", "layer"], "grid": {"dim_ff": [28]}, "finalists": 1}
    report = run(tmp_path, search | units | {"target": {"latency": {"speedup": 1.1, "length": 48}}})
    limit = report.data["search"][0]["limits"]["milliseconds"]
    (times,) = (entry["metrics"] for entry in report.data["passes"] if entry["pass"] == "measure-latency")
    assert report.status == "done" and limit["got"] <= limit["asked"] == pytest.approx(times["milliseconds"] / 1.1)
