"""What commands take that compute nothing: from the shell's prompt to the next, beside the imports of Python's.

    pip install '.[hf]'
    python benchmarks/commands.py [--folder runs/commands] [--rounds 9] [--publish]

The commands take turns, after one round that warms the file cache; medians count. "16 GB" is a directory of Llama 3
8B's shape in bfloat16, most of whose rows are not on the disk, which headers don't show. "A finished run" is the
quickstart's, given again: all that it has made is verified.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from measure import BARE
from pages import with_table

ROOT, RESULTS = Path(__file__).parents[1], Path(__file__).with_suffix(".json")
PAGE = ROOT / "docs/benchmarks.md"
SPRUNEC, PLAN = [sys.executable, "-m", "sprunec"], ROOT / "plans/quickstart.json"


def ways(folder: Path) -> dict[str, tuple[list[object], str]]:
    """Give each command, and what is wanted of it."""
    dense = folder / "llama-8b"
    run: list[object] = [*SPRUNEC, "run", PLAN, "--out", folder / "run"]
    return {
        "`import torch`": ([*BARE], ""),
        "`sprunec --help`": ([*SPRUNEC, "--help"], ""),
        "`validate`": ([*SPRUNEC, "validate", PLAN], ""),
        "`run --dry-run`": ([*SPRUNEC, "run", PLAN, "--dry-run"], ""),
        "`inspect` of a config": ([*SPRUNEC, "inspect", dense / "config.json"], "at most 1 s"),
        "`inspect` of 16 GB": ([*SPRUNEC, "inspect", dense], "at most 1 s"),
        "a finished run": (run, "at most 2 s"),
    }


def seconds(command: list[object]) -> float:
    started = time.perf_counter()
    subprocess.run([str(part) for part in command], check=True, cwd=ROOT, capture_output=True)
    return time.perf_counter() - started


def table(found: dict[str, Any]) -> str:
    lines = ["| command | seconds | quartiles | wanted |", "|---|---:|---:|---|"]
    for name, row in found["commands"].items():
        low, _, high = row["quartiles"]
        lines.append(f"| {name} | {row['seconds']:.2f} | {low:.2f}-{high:.2f} | {row['wanted']} |")
    return "\n".join([*lines, "", f"Medians of {found['rounds']} rounds; {found['versions']}.", ""])


def page(found: dict[str, Any]) -> str:
    """Put the table into the page."""
    return with_table(PAGE.read_text(encoding="utf-8"), "commands", table(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/commands"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--publish", action="store_true")
    options = parser.parse_args()
    folder = options.folder.resolve()
    if not (folder / "llama-8b").exists():
        made = [sys.executable, Path(__file__).with_name("llamas.py"), folder / "llama-8b", "--shape", "8b", "--sparse"]
        subprocess.run([str(part) for part in made], check=True)
    commands, times = ways(folder), dict[str, list[float]]()
    for name, (command, _) in commands.items():
        print(f"{name}: {seconds(command):.2f} s at first", flush=True)
    for _ in range(options.rounds):
        for name, (command, _) in commands.items():
            times.setdefault(name, []).append(seconds(command))
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    found: dict[str, Any] = {"rounds": options.rounds, "versions": packages, "commands": {}}
    for name, spent in times.items():
        row = {"seconds": median(spent), "quartiles": quantiles(spent, n=4), "wanted": commands[name][1]}
        found["commands"][name] = row
    print(table(found))
    shutil.rmtree(folder / "llama-8b")
    if options.publish:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
        PAGE.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
