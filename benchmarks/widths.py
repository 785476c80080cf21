"""One layer scored by `reconstruction` and refitted, at the widths of language models: in blocks, and one by one.

    python benchmarks/widths.py [--only NAME] [--seconds 60] [--threads 1] [--publish]

The layer is a down projection of random weights. What goes into it are the features of 2,048 tokens, of unequal sizes,
some of them massive, that share directions; a quarter of them are removed. "In blocks" is what the package does.
"One by one" is what it is held against in the tests: units go one at a time out of the whole inverse and the whole
weight in float64; it is left out where that takes longer than an hour. Ways take turns, each in a process of its own,
until a width has had so many seconds of the processor, and medians are told, of its time by the processor and by the
clock. What they gave stands in `benchmarks/widths.json`; `--publish` puts it between the marks of `docs/benchmarks.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from measure import measure
from pages import with_table

ROOT = Path(__file__).parent.parent
RESULTS, PAGE = Path(__file__).with_suffix(".json"), ROOT / "docs/benchmarks.md"
TOKENS, WIDEST, MOST = 2048, 3072, 9  # the most features of which one goes after the other, and rounds
WIDTHS = {  # outputs, features
    "SmolLM2-135M": (576, 1536), "Qwen3-0.6B": (1024, 3072), "Llama-3.2-1B": (2048, 8192), "Llama-3-8B": (4096, 14336)
}  # fmt: skip
WAYS = ("blocks", "one by one")
STAGES = ("moment", "removal", "refit")


def work(way: str, outputs: int, features: int) -> dict[str, dict[str, float]]:
    """Do a layer in this process -> seconds of each stage."""
    import torch

    from sprunec.masks.least_squares import DAMP, refit, removal_errors
    from sprunec.masks.symmetric import SecondMoment, add_second_moment, mirror
    from tests.helpers.one_by_one import refit_at_once, remove_one_by_one

    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(TOKENS, 256, generator=draw) @ torch.randn(256, features, generator=draw).div_(16)
    rows.add_(torch.randn(TOKENS, features, generator=draw)).mul_(torch.randn(features, generator=draw).exp())
    rows[::256, :8] += 300 * torch.randn(8, generator=draw)
    weight, units = torch.randn(outputs, features, generator=draw), torch.arange(features)[:, None]
    took: dict[str, dict[str, float]] = {}

    def timed(stage: str, call: Callable[[], Any]) -> Any:
        before = time.perf_counter(), time.process_time()
        found = call()
        took[stage] = {"wall": time.perf_counter() - before[0], "cpu": time.process_time() - before[1]}
        return found

    def moment() -> torch.Tensor:
        total = torch.zeros(features, features)
        add_second_moment(total, rows)
        mirror(total)
        return total

    if way == "blocks":
        mean = timed("moment", moment).div_(TOKENS)
        order = timed("removal", lambda: removal_errors(mean, weight, units)).argsort()
    else:
        mean = timed("moment", lambda: rows.T @ rows).div_(TOKENS)
        order = torch.tensor(timed("removal", lambda: remove_one_by_one(mean, weight, units, DAMP)[0]))
    kept = order[features // 4 :].sort().values
    if way == "blocks":
        sums = SecondMoment.of(mean)
        del mean
        timed("refit", lambda: refit(sums, weight, kept, ridge=0.1))
    else:
        timed("refit", lambda: refit_at_once(mean, weight, kept, ridge=0.1))
    return took


def measured(name: str, seconds: float, threads: int) -> dict[str, Any]:
    """Let the ways of a width take turns."""
    outputs, features = WIDTHS[name]
    ways, spent = WAYS if features <= WIDEST else WAYS[:1], 0.0
    rounds: list[dict[str, Any]] = []
    while not rounds or (spent < seconds and len(rounds) < MOST):
        rounds.append({})
        for way in ways if len(rounds) % 2 else ways[::-1]:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "took.json"
                taken = measure([sys.executable, __file__, "--work", way, name, file, "--threads", threads])
                assert taken.code == 0
                rounds[-1][way] = json.loads(file.read_text()) | {"peak": taken.peak}
            spent += taken.cpu
    found: dict[str, Any] = {"outputs": outputs, "features": features, "threads": threads, "rounds": len(rounds)}
    for way in ways:
        found[way] = {
            stage: {clock: round(median(each[way][stage][clock] for each in rounds), 3) for clock in ("cpu", "wall")}
            for stage in STAGES
        } | {"peak": int(median(each[way]["peak"] for each in rounds))}
    return found


def table(results: Mapping[str, Any]) -> str:
    """Tell of all widths, narrow to wide."""
    lines = [
        "| layer of | outputs, features | way | moment | removal | refit | peak |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for name, found in results["widths"].items():
        for way in WAYS:
            if way in found:
                stages = " | ".join(f"{found[way][stage]['cpu']:,.1f} s" for stage in STAGES)
                size = f"{found['outputs']:,}, {found['features']:,}"
                lines.append(f"| {name} | {size} | {way} | {stages} | {found[way]['peak'] / 1e9:.2f} GB |")
    widths = results["widths"].values()
    rounds, threads = (", ".join(str(found[what]) for found in widths) for what in ("rounds", "threads"))
    told = f"Seconds of the processor; by width, medians of {rounds} rounds, on {threads} threads; torch"
    return "\n".join([*lines, "", f"{told} {results['torch']}.", ""])


def page(results: Mapping[str, Any]) -> str:
    """Put the table into the page."""
    return with_table(PAGE.read_text(encoding="utf-8"), "widths", table(results))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="measure the widths whose name has this word")
    parser.add_argument("--seconds", type=float, default=60, help="of the processor, for a width; one round at least")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--publish", action="store_true", help="put what has been measured into docs/")
    parser.add_argument("--work", nargs=3, metavar=("WAY", "NAME", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        way, name, file = options.work
        Path(file).write_text(json.dumps(work(way, *WIDTHS[name])))
        return
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"widths": {}}
    if options.publish:
        PAGE.write_text(page(results), encoding="utf-8")
        return
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    os.environ |= {"OMP_NUM_THREADS": str(options.threads), "PYTHONPATH": path}
    from importlib.metadata import version

    for name in WIDTHS:
        if options.only in name:
            found = measured(name, options.seconds, options.threads)
            print(name, json.dumps(found), flush=True)
            results["torch"] = version("torch")
            done = results["widths"] | {name: found}
            results["widths"] = {each: done[each] for each in WIDTHS if each in done}
            RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
