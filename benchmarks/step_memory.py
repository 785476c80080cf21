"""A training step whose losses run over chunks of positions, beside one that has all logits at once.

    python benchmarks/step_memory.py [--layers 4 30] [--rounds 5] [--threads 2] [--publish]

A Llama of SmolLM2-135M's widths (D 576, F 1,536, 9 heads in 3 groups, tied) with its vocabulary of 49,152, untrained;
2,048 positions, AdamW, float32. A step's peak is what a process of its own has then (VmHWM, from the kernel), less what
the libraries take, and without what glibc would keep of freed tensors, which goes up and down by chance; the steps of
the two take turns in one process with the heap as runs have it, and medians count.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from llamas import REST, SIZES, write_llama
from pages import with_table
from torch import Tensor

from sprunec.checkpoint.reader import open_tensors
from sprunec.data.batches import IGNORED, Batch
from sprunec.engines.losses import language_model_loss
from sprunec.families.huggingface.transformers_config import TransformersConfig
from sprunec.families.model_directory import fill
from sprunec.heap import share_heap
from sprunec.models.meta_models import empty_model

RESULTS, PAGE = Path(__file__).with_suffix(".json"), Path(__file__).parents[1] / "docs/benchmarks.md"
WIDTHS, TOKENS, ROWS, LENGTH = (576, 9, 3, 1536), 49_152, 8, 256


def plain(model: Any, batch: Batch) -> Tensor:
    """Have all logits, as one writes it at first."""
    logits, _ = model(**batch.inputs)
    return F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED, reduction="sum")


M_MMAP_THRESHOLD = -3  # of <malloc.h>
WORDS = {"plain": "all at once", "chunks": "in chunks"}
WAYS: dict[str, Callable[[Any, Batch], Tensor]] = {"plain": plain, "chunks": language_model_loss}


def write(folder: Path, layers: int) -> None:
    width, heads, groups, dims = WIDTHS
    sizes = dict(zip(SIZES, (width, layers, heads, groups, dims), strict=True))
    write_llama(folder, REST | sizes | {"vocab_size": TOKENS, "head_dim": 64, "tie_word_embeddings": True})


def config_of(folder: Path) -> TransformersConfig:
    return TransformersConfig.from_source(json.loads((folder / "config.json").read_text()))


def steps(folder: Path) -> Callable[[str], float]:
    """Make a model and its optimizer; a function makes one step, and tells its seconds."""
    model, tensors = empty_model(config_of(folder)), open_tensors(folder)
    fill(model, {name: tensors.copy(name).float() for name in tensors}, folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    ids = torch.randint(0, TOKENS, (ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    batch = Batch({"input": ids[:, :-1], "length": torch.full((ROWS,), LENGTH)}, ids[:, 1:])

    def step(way: str) -> float:
        started = time.perf_counter()
        (WAYS[way](model, batch) / batch.target_count).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - started

    return step


def memory(field: str) -> int:
    """Read bytes of this process from the kernel."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field)))


def one(folder: Path, way: str) -> None:
    """Print what this process takes: at the peak, and between steps."""
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20)
    empty_model(config_of(folder))  # imports what there is to import
    before, step = memory("VmRSS"), steps(folder)
    step(way)
    between = memory("VmRSS") - before
    step(way)
    print(json.dumps({"peak": memory("VmHWM") - before, "between": between}))


def figures(layers: int, rounds: int) -> dict[str, Any]:
    with TemporaryDirectory() as place:
        folder, found = Path(place), dict[str, Any]()
        write(folder, layers)
        for way in WAYS:
            command = [sys.executable, __file__, "--one", place, way, "--threads", str(torch.get_num_threads())]
            found[way] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        step, seconds = steps(folder), {way: list[float]() for way in WAYS}
        for turn in range(rounds + 1):
            for way in WAYS:
                seconds[way] += [step(way)] if turn else [step(way)][:0]  # the first of each warms up
    return {way: found[way] | {"seconds": median(seconds[way])} for way in WAYS}


def table(found: dict[str, Any]) -> str:
    lines = [
        "| layers | logits | peak | of it the step's | | a step | |",
        "|---:|---|---:|---:|---:|---:|---:|",
    ]
    for layers, ways in found["layers"].items():
        plain = ways["plain"]
        for way, took in ways.items():
            own, whole = took["peak"] - took["between"], plain["peak"] - plain["between"]
            sizes = f"{took['peak'] / 1e9:.2f} GB | {own / 1e9:.2f} GB | {own / whole:.2f}x"
            seconds = f"{took['seconds']:.2f} s | {took['seconds'] / plain['seconds']:.2f}x"
            lines.append(f"| {layers} | {WORDS[way]} | {sizes} | {seconds} |")
    told = f"{found['threads']} threads, medians of {found['rounds']} rounds; torch {found['torch']}."
    return "\n".join([*lines, "", told, ""])


def page(found: dict[str, Any]) -> str:
    """Put the table into the page."""
    return with_table(PAGE.read_text(encoding="utf-8"), "step-memory", table(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 30])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--publish", action="store_true")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    share_heap()
    if options.one:
        one(Path(options.one[0]), options.one[1])
        return
    found = {"threads": options.threads, "rounds": options.rounds, "torch": torch.__version__, "layers": {}}
    found["layers"] = {str(layers): figures(layers, options.rounds) for layers in options.layers}
    print(table(found))
    if options.publish:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
        PAGE.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
