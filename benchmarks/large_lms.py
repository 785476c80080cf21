"""Language models as large as the machine, or larger: inspected, planned, scored, refitted, cut, compared and emitted.

    python benchmarks/large_lms.py 3gb                     weights drawn at random, 1.5 billion, bfloat16
    python benchmarks/large_lms.py 8b --no-refit           Llama-3-8B's shape, 16 GB, a sparse file
    python benchmarks/large_lms.py 70b --looks             Llama-3-70B's shape, 141 GB, all zeros: what looks alone
    python benchmarks/large_lms.py 3gb --weights-alone     by weights instead of on data, not refitted
    python benchmarks/large_lms.py 3gb --search            all choices are scored, for four fifths of its parameters

Nothing is downloaded: see `llamas.py`. `inspect` and `run --dry-run` are looks. A run scores feed-forward dims by
activation and key-value groups by reconstruction, on --tokens of Python's documentation told by its characters, refits
what stays, and emits `huggingface`; what it cuts to is in `CUTS`. One that searches measures all choices on as many
tokens behind those, its states on disk, and emits nothing.

Memory is over that of a bare import of torch and transformers, and stands beside what it is meant to stay under: two
blocks in float32, the hidden states of the calibration, and 500 MB. That of a run is its process's together with all
that it starts; that of a pass is the peak of the run's own process meanwhile, beside what the dry run has foretold. The
folder is taken away afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

from llamas import SHAPES, SPARSE, llama, write_llama
from measure import BARE_LIBRARIES, Measured, measure, measure_tree

from sprunec.families.base_config import unit_cost
from sprunec.families.huggingface.transformers_config import TransformersConfig

CUTS = {  # feed-forward dims, and of key-value groups, of which all have 8
    "300mb": (2048, 6),
    "3gb": (6144, 6),
    "8b": (9216, 8),  # one cut, since each is written out
    "70b": (20_480, 6),
}
ROOM, FLOAT = 500e6, 4  # bytes
RESULTS, PAGE = Path(__file__).with_suffix(".json"), Path(__file__).parents[1] / "docs/benchmarks.md"
# A run that also tells, by pass, the peak of its memory: the kernel forgets the one before where it is asked to.
RUN = """
import json, sys, time
from pathlib import Path
import sprunec
from sprunec.execution.progress import Watcher
plan, out, told = map(Path, sys.argv[1:])

def peak():
    (line,) = (each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("VmHWM"))
    Path("/proc/self/clear_refs").write_text("5")
    return 1024 * int(line.split()[1])

class Told(Watcher):
    def node_started(self, index, total, name):
        self.before, self.processor = peak(), time.process_time()
    def node_finished(self, index, total, name, *, cached, seconds, metrics):
        found = {"name": name, "seconds": seconds, "cpu": time.process_time() - self.processor, "peak": peak()}
        print(f"  {name:34} {seconds:8.1f} s {found['peak'] / 1e9:6.2f} GB", file=sys.stderr, flush=True)
        with told.open("a") as file:
            file.write(json.dumps(found) + "\\n")

sprunec.execute(sprunec.lower(sprunec.read_plan(plan)), out, Told())
"""


def write_search(folder: Path, shape: str, tokens: int, parameters: int) -> Path:
    """Write the plan that searches a model in `folder / "model"` for four fifths of its parameters."""
    length = min(512, tokens)
    looked = max(1, tokens // length)
    search = {"pass": "search", "units": ["kv_group", "dim_ff"], "batches": looked, "damage_batches": looked}
    target = {"parameters": parameters * 4 // 5}
    plan = {
        "name": f"{shape}-searched",
        "model": {"path": "model"},
        "data": {"source": "python-docs", "tokenizer": "characters", "max_length": length, "batch_size": 1},
        "engine": {"hidden_states": "disk"},
        "passes": [search | {"target": target, "finalists": 1, "compensate": None}],
    }
    (folder / "plan.json").write_text(json.dumps(plan, indent=1))
    return folder / "plan.json"


def write_plan(folder: Path, shape: str, tokens: int, weights_alone: bool, refit: bool) -> Path:
    """Write the plan for a model in `folder / "model"`."""
    dims, groups = CUTS[shape]
    length = min(512, tokens)
    data = {"source": "python-docs", "tokenizer": "characters", "max_length": length, "batch_size": 1}
    rest: dict[str, Any] = {
        "budget": "per-layer",
        "batches": max(1, tokens // length),
        "compensate": "least-squares" if refit else None,
    }
    if weights_alone:
        rest = {"budget": "per-layer"}
    parts = {"dim_ff": ("activation", {"dim_ff": dims})}
    parts |= {"kv_group": ("reconstruction", {"num_kv_groups": groups})} if groups < 8 else {}
    passes = [
        {"pass": "score-mask", "criterion": "magnitude" if weights_alone else criterion, "unit": unit, "target": target}
        for unit, (criterion, target) in parts.items()
    ]
    plan = {
        "name": shape,
        "model": {"path": "model"},
        "data": data,
        "passes": [*(each | rest for each in passes), {"pass": "emit", "formats": ["huggingface"]}],
    }
    (folder / "plan.json").write_text(json.dumps(plan, indent=1))
    return folder / "plan.json"


def bound(config: TransformersConfig, tokens: int) -> dict[str, float]:
    """What memory is meant to stay under, over a bare import, by what it is for."""
    block = max(unit_cost(config, index, "block") for index in range(len(config.layers)))
    parts = {"two_blocks": 2.0 * FLOAT * block, "hidden_states": float(FLOAT * tokens * config.width), "room": ROOM}
    return parts | {"total": sum(parts.values())}


def on_disk(folder: Path) -> int:
    """Bytes of all files below it that are its own, as far as the disk has given them room; links lead elsewhere."""
    files = {
        file.lstat().st_ino: file.lstat() for file in folder.rglob("*") if file.is_file() and not file.is_symlink()
    }
    return sum(512 * each.st_blocks for each in files.values())


def row(taken: Measured, bare: Measured) -> dict[str, Any]:
    return {"seconds": taken.seconds, "cpu": taken.cpu, "over_bare": taken.peak - bare.peak, "code": taken.code}


def measured(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Make the model, look at it, run the plan -> what that took."""
    one_in = options.sparse if options.sparse is not None else {"8b": SPARSE, "70b": 0}.get(options.shape, 1)
    document, tokens = llama(options.shape), options.tokens
    size, config = write_llama(folder / "model", document, one_in), TransformersConfig.from_source(document)
    if options.search:
        plan = write_search(folder, options.shape, tokens, config.parameters())
    else:
        plan = write_plan(folder, options.shape, tokens, options.weights_alone, not options.no_refit)
    bare, command = measure(BARE_LIBRARIES), [sys.executable, "-m", "sprunec"]
    found: dict[str, Any] = {
        "shape": f"{options.shape}, searched" if options.search else options.shape,
        "bytes": size,
        "on_disk": on_disk(folder / "model"),
        "parameters": config.parameters(),
        "tokens": 0 if options.weights_alone else tokens,
        "threads": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count())),
        "bare": bare.peak,
        "bound": bound(config, 0 if options.weights_alone else tokens),
        "inspect": row(measure_tree([*command, "inspect", folder / "model"], quiet=True), bare),
        "dry_run": row(measure_tree([*command, "run", plan, "--out", folder / "out", "--dry-run"], quiet=True), bare),
    }
    if options.looks:
        return found
    dry = [*command, "run", plan, "--out", folder / "out", "--dry-run", "--json"]
    nodes = json.loads(subprocess.run(dry, check=True, capture_output=True).stdout)["nodes"]
    foretold = {node["name"]: node["needs"]["memory"] - bare.peak for node in nodes}
    out, told = folder / "out", folder / "passes.jsonl"
    found["run"] = row(measure_tree([sys.executable, "-c", RUN, plan, out, told]), bare)
    passes = [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else []
    found["passes"] = [
        each | {"over_bare": each.pop("peak") - bare.peak, "foretold": foretold[each["name"]]} for each in passes
    ]
    report = json.loads((out / "report.json").read_text())
    found |= {"out_on_disk": on_disk(out), "status": report["status"], "comparison": report["comparison"]}
    return found | {"left": report["models"]["small"]["parameters"]}


def table(found: dict[str, Any]) -> str:
    """The figures as lines of text; memory in GB, over a bare import."""
    bounds = {name: size / 1e9 for name, size in found["bound"].items()}
    billions, size, there = (found[name] / 1e9 for name in ("parameters", "bytes", "on_disk"))
    lines = [
        f"{found['shape']}: {billions:.2f} billion parameters, {size:.1f} GB in bfloat16 ({there:.1f} GB on the disk);"
        f" {found['tokens']} tokens, {found['threads']} threads",
        f"bound: two blocks {bounds['two_blocks']:.2f} + hidden states {bounds['hidden_states']:.2f} + 0.50"
        f" = {bounds['total']:.2f} GB",
        "",
        f"{'':34} {'seconds':>9} {'processor':>9} {'memory':>8} {'foretold':>9}",
    ]
    rows = {"inspect": found["inspect"], "run --dry-run": found["dry_run"]}
    rows |= {f"  {each['name']}": each for each in found.get("passes", ())}
    rows |= {"whole run": found["run"]} if "run" in found else {}
    for name, taken in rows.items():
        above = "  above the bound" if taken["over_bare"] > found["bound"]["total"] else ""
        figures = f"{taken['seconds']:9.1f} {taken['cpu']:9.1f} {taken['over_bare'] / 1e9:8.2f}"
        figures += f" {taken['foretold'] / 1e9:9.2f}" if "foretold" in taken else ""
        lines.append(f"{name:34} {figures}{above}")
    if "run" in found:
        apart = found["comparison"]
        left = f"{found['left'] / 1e9:.2f} billion parameters are left; OUT takes {found['out_on_disk'] / 1e9:.1f} GB"
        exact = f"{apart['max_abs_difference']:.1g} in float64 and {apart['float32_difference']:.1g} in float32"
        lines += [
            "",
            f"{found['status']}: {left}; masked and small",
            f"logits are {exact} apart, on {apart['tokens']} tokens",
        ]
    return "\n".join(lines)


def page(results: dict[str, Any]) -> str:
    """docs/benchmarks.md with these figures between its marks."""
    shapes = [name for shape in SHAPES for name in (shape, f"{shape}, searched") if name in results]
    tables = "\n\n".join(textwrap.indent(table(results[shape]), "    ") for shape in shapes)
    before, mark, rest = PAGE.read_text(encoding="utf-8").partition("<!-- large-lms -->\n")
    return f"{before}{mark}{tables}\n<!-- /large-lms -->{rest.partition('<!-- /large-lms -->')[2]}"


def publish(found: dict[str, Any]) -> None:
    """Keep the figures of a shape, instead of those that were there, and write the page anew."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[found["shape"]] = found
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    PAGE.write_text(page(results), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--folder", type=Path, default=None, help="where model and OUT go for a while")
    parser.add_argument("--tokens", type=int, default=2048, help="to calibrate on")
    parser.add_argument("--sparse", type=int, metavar="N", help="of every matrix one row in N is there; 0: none")
    parser.add_argument("--looks", action="store_true", help="inspect and --dry-run alone")
    parser.add_argument("--weights-alone", action="store_true", help="score by magnitude, refit nothing")
    parser.add_argument("--search", action="store_true", help="score all choices instead, and cut to the best")
    parser.add_argument("--no-refit", action="store_true", help="leave the weights that stay as they are")
    parser.add_argument("--json", type=Path, help="where the figures go, too")
    parser.add_argument("--publish", action="store_true", help="put the figures into large_lms.json and docs/")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="large-lm-", dir=options.folder))
    try:
        found = measured(folder, options)
    finally:
        shutil.rmtree(folder)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1))
    if options.publish:
        publish(found)
    print(table(found))


if __name__ == "__main__":
    main()
