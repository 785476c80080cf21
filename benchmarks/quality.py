"""The quality of small models: methods side by side, at equal training tokens, those of calibration counted.

    python benchmarks/quality.py [--budget short] [--target guide] [--methods all] [--seeds 1,2,3] [--with refit]
                                 [--distil 0.5] [--corpus python-docs] [--jobs 2] [--folder runs/quality]

A cell is one method, target, budget and seed: a native plan, run by `sprunec run` on one thread from a dense model that
is trained once for each corpus. What cells gave stands in `benchmarks/quality.json` by the digest of all that decides
it, so a cell is run once, and work adds up over days. `--show` prints the tables of that file, `--publish` puts them
between the marks of `docs/quality.md`, with a picture. The target `dims` also wants torch-pruning.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from methods import EXTRAS, LENGTH, LOOK, METHODS, ROWS, STEPS, TARGETS, Method, cell_plan, dense_plan
from pages import with_table
from peers import torch_pruning_dims
from quality_tables import Setting, picture, tables

from sprunec import lower, read_plan
from sprunec.graph.graph import Graph, plain
from sprunec.plan.declared import PASSES

RESULTS = Path(__file__).with_name("quality.json")
PAGE = Path(__file__).parent.parent / "docs" / "quality.md"
MAIN = Setting("python-docs", "guide", "short", ("refit",), 0.0)
LOCK = threading.Lock()


@dataclass(frozen=True)
class Source:
    """What cells start from: the emitted dense model, and what its data pass has made."""

    model: Path
    data: Path

    @property
    def checkpoint(self) -> Path:
        return self.model / "model.safetensors"


@dataclass(frozen=True)
class Cell:
    """One run of one method."""

    corpus: str
    budget: str
    target: str
    method: str
    extras: tuple[str, ...]
    distil: float
    seed: int

    def stages(self, mask: Path) -> list[list[dict[str, Any]]]:
        method: Method = METHODS[self.method]
        for name in self.extras:
            method = EXTRAS[name](method)
        return method.passes(self.target, STEPS[self.budget], mask)

    def about(self) -> dict[str, Any]:
        return {**vars(self), "extras": list(self.extras), "corpus": Path(self.corpus).name}


def run(plan: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The report of `sprunec run`, on one thread."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(json.dumps(plan, indent=1))
    command = [
        sys.executable,
        "-m",
        "sprunec",
        "run",
        str(folder / "plan.json"),
        "--out",
        str(folder / "out"),
        "--json",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (folder / "log").open("a") as log:
        found = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    if found.returncode not in (0, 4):
        raise RuntimeError(f"{folder}: exit code {found.returncode}, see {folder / 'log'}")
    report: dict[str, Any] = json.loads(found.stdout)
    return report


def digest(graph: Graph, dense: Graph) -> str:
    """Of all that decides a cell: passes, versions and options; for the checkpoint's bytes stands how it is made."""
    nodes: list[tuple[str, int, dict[str, Any]]] = []
    for node in (*dense.nodes, *graph.nodes):
        options = {key: value for key, value in node.options.document().items() if key != "checkpoint"}
        nodes.append((node.pass_, PASSES[node.pass_].version, options))
    loaded = max(index for index, (name, _, _) in enumerate(nodes) if name == "load")
    nodes.insert(loaded + 1, ("trace", 1, {}))  # what stood here when the first cells were measured
    return hashlib.sha256(json.dumps(nodes, sort_keys=True, default=plain).encode()).hexdigest()[:32]


def graph_of(plan: dict[str, Any], folder: Path) -> Graph:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "plan.json"
    path.write_text(json.dumps(plan, indent=1))
    return lower(read_plan(path))


def measure(cell: Cell, dense: Graph, source: Source, folder: Path) -> None:
    """Run a cell that has not been run yet, and write down what it gave."""
    place = folder / hashlib.sha256(repr(cell).encode()).hexdigest()[:16]
    mask = place / "mask.pt"
    if METHODS[cell.method].peer:
        place.mkdir(parents=True, exist_ok=True)
        torch_pruning_dims(source.model, source.data, mask, rows=ROWS, length=LENGTH, seed=cell.seed, look=LOOK)
    stages = cell.stages(mask)
    whole, cut = [p for stage in stages for p in stage], [*(p for stage in stages[:-1] for p in stage), stages[-1][0]]
    plans = [cell_plan(cell.corpus, source.checkpoint, passes, cell.seed, cell.distil) for passes in (cut, whole)]
    key = digest(graph_of(plans[1], place), dense)
    if key in read_results():
        return
    started = time.monotonic()
    before, after = (run(plan, place) for plan in plans)
    small, masks = after["models"]["small"], [p for p in after["passes"] if p["pass"] == "train-mask"]
    found = cell.about() | {
        "dense": after["models"]["dense"]["loss"],
        "cut": before["models"]["small"]["loss"],
        "loss": small["loss"],
        "parameters": small["parameters"],
        "share": small["parameters"] / after["models"]["dense"]["parameters"],
        "settled": after["status"] == "done",
        "undecided": sum(p["metrics"]["undecided"] for p in masks),
        "kept": after["kept"],
        "seconds": round(time.monotonic() - started),
    }
    with LOCK:
        results = read_results() | {key: found}
        RESULTS.write_text(json.dumps({"machine": machine(), "cells": results}, indent=1) + "\n")
    print(f"{cell}: cut {found['cut']:.3f}, then {found['loss']:.3f}, {found['seconds']} s", flush=True)
    shutil.rmtree(place)


def library(folder: Path) -> Path:
    """The standard library's own sources as one text: 2 MB of the same characters wherever this Python is."""
    path = folder / "library.txt"
    if not path.exists():
        sources = sorted(Path(os.__file__).parent.glob("*.py"))
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(source.read_text(encoding="utf-8") for source in sources)[:2_000_000])
    return path


def read_results() -> dict[str, Any]:
    cells: dict[str, Any] = json.loads(RESULTS.read_text())["cells"] if RESULTS.exists() else {}
    return cells


def machine() -> str:
    from importlib.metadata import version

    return f"{os.cpu_count()} cores {platform.machine()}, one thread a cell, torch {version('torch')}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", choices=STEPS, default="short")
    parser.add_argument("--target", choices=TARGETS, default="guide")
    parser.add_argument("--methods", default="all", help="by comma, of: " + ", ".join(METHODS))
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--with", dest="extras", default="", help="options of all methods, of: " + ", ".join(EXTRAS))
    parser.add_argument("--distil", type=float, default=0.0, help="weight of the dense model's logits")
    parser.add_argument("--corpus", default="python-docs", help="python-docs, library (this Python's), or a text file")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("runs/quality"))
    parser.add_argument("--show", action="store_true", help="only print what has been measured")
    parser.add_argument("--publish", action="store_true", help="put what has been measured into docs/")
    options = parser.parse_args()
    if not (options.show or options.publish):
        run_cells(options)
    shown = tables(read_results())
    print("\n\n".join(table.plain() for table in shown))
    if options.publish:
        PAGE.write_text(page(json.loads(RESULTS.read_text())))
        PAGE.with_suffix(".svg").write_text(picture(shown) + "\n")


def page(results: Mapping[str, Any]) -> str:
    """The page with what has been measured between its marks."""
    shown = {table.setting: table for table in tables(results["cells"])}
    main = shown.pop(MAIN)
    parts = {
        "machine": f"Machine: {results['machine']}.",
        "main": main.markdown(),
        "others": "\n\n".join(table.markdown() for table in shown.values()),
    }
    text = PAGE.read_text()
    for name, part in parts.items():
        text = with_table(text, name, f"{part}\n")
    return text


def run_cells(options: argparse.Namespace) -> None:
    corpus = str(library(options.folder)) if options.corpus == "library" else options.corpus
    taken = [name for name, method in METHODS.items() if method.takes(options.target)]
    names = taken if options.methods == "all" else options.methods.split(",")
    extras = tuple(filter(None, options.extras.split(",")))
    folder = options.folder / Path(corpus).stem
    plan = dense_plan(corpus)
    dense = graph_of(plan, folder / "dense")
    out, report = folder / "dense" / "out", run(plan, folder / "dense")
    source = Source(out / "model" / "sprunec", out / "store" / report["passes"][0]["digest"])
    seeds = [int(seed) for seed in options.seeds.split(",")]
    cells = [
        Cell(corpus, options.budget, options.target, name, extras, options.distil, seed)
        for seed in seeds
        for name in names
    ]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda cell: measure(cell, dense, source, folder), cells))


if __name__ == "__main__":
    main()
