"""What cuts save of the time that they could: SmolLM2-135M's shape, dense and cut, as users open it.

    pip install '.[test,hf]'
    python benchmarks/savings.py [--folder runs/savings] [--length 256] [--publish]

Directories of `transformers` are opened by `from_pretrained`, and take turns: with a whole text (prefill), and token by
token behind one (decode). Ideal is, of a text, the ratio of the operations; of a token, that of the bytes which are
read for it, weights and cache. Weights do not matter for time: they are drawn.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
import transformers
from latency import Opened, write_model
from llamas import REST
from pages import with_table

from sprunec.families.base_config import token_operations
from sprunec.families.huggingface.transformers_config import TransformersConfig
from sprunec.machine import processor
from sprunec.plan.search.costs import memory

RESULTS, PAGE = Path(__file__).with_suffix(".json"), Path(__file__).parent.parent / "docs/benchmarks.md"
SHAPE = REST | {
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "head_dim": 64,
    "tie_word_embeddings": True,
}
BATCHES, ROUNDS = (1, 4), 15


def cuts(dense: Any) -> dict[str, Any]:
    def each(**sizes: Any) -> Any:
        """Give layer i sizes[i modulo their number] of each unit."""
        shapes = ({unit: of[i % len(of)] for unit, of in sizes.items()} for i in range(len(dense.layers)))
        return dense.with_layers(layer.resized(kept) for layer, kept in zip(dense.layers, shapes, strict=True))

    return {
        "dims by half": each(dim_ff=[768]),
        "groups and dims by a third": each(kv_group=[2], dim_ff=[1024]),
        "ragged": each(kv_group=[3, 2, 3, 1, 0], dim_ff=[1536, 1024, 384, 768]),
    }


def ideal(config: Any, batch: int, length: int) -> dict[str, float]:
    """Count the operations of whole texts, whose last positions alone get logits, and the bytes for a token of each."""
    head = token_operations(config, length, head=True) - token_operations(config, length)
    prefill = batch * (length * token_operations(config, length) + head)
    return {"prefill": prefill, "decode": memory(batch, length, item=4)(config)}


@torch.inference_mode()
def prefill(opened: Opened, ids: torch.Tensor) -> float:
    began = time.perf_counter()
    opened.model(input_ids=ids, use_cache=True, logits_to_keep=1)
    return time.perf_counter() - began


def measured(models: dict[str, Opened], batch: int, length: int) -> dict[str, dict[str, list[float]]]:
    """Time the models in turns -> quartiles of how many times the dense one's speed each has, by what it does."""
    ids, times = torch.randint(SHAPE["vocab_size"], (batch, length)), list[dict[str, Any]]()
    for _ in range(ROUNDS + 1):
        spent = {name: {"prefill": prefill(each, ids), "decode": each.tokens()} for name, each in models.items()}
        times.append(spent)
    found: dict[str, dict[str, list[float]]] = {}
    for name in models:
        for what in ("prefill", "decode"):
            ratios = [spent["dense"][what] / spent[name][what] for spent in times[1:]]
            found.setdefault(name, {})[what] = quantiles(ratios, n=4, method="inclusive")
    found["dense"] = {what: [median(spent["dense"][what] for spent in times[1:])] for what in ("prefill", "decode")}
    return found


def rows(folder: Path, length: int) -> list[dict[str, Any]]:
    dense, found = TransformersConfig.from_source(SHAPE), list[dict[str, Any]]()
    configs = {"dense": dense} | cuts(dense)
    paths = {name: write_model(each, folder / name.replace(" ", "-")) for name, each in configs.items()}
    for batch in BATCHES:
        speeds = measured({name: Opened(path, batch, length) for name, path in paths.items()}, batch, length)
        whole = ideal(dense, batch, length)
        for name, config in configs.items():
            for what, amount in ideal(config, batch, length).items() if name != "dense" else ():
                row = {"batch": batch, "cut": name, "parameters": config.parameters(), "what": what}
                found.append(row | {"ideal": whole[what] / amount, "speed": speeds[name][what]})
                print(json.dumps(found[-1]), flush=True)
    return found


def table(results: dict[str, Any]) -> str:
    lines = ["| cut | parameters | batch | what | ideal | measured | quartiles | of the ideal |"]
    lines.append("|---|---:|---:|---|---:|---:|---:|---:|")
    for row in sorted(results["rows"], key=lambda row: -row["parameters"]):
        low, middle, high = row["speed"]
        cut = f"{row['cut']} | {row['parameters'] / 1e6:.1f}M | {row['batch']} | {row['what']}"
        share = f"{middle / row['ideal']:.0%}"
        lines.append(f"| {cut} | {row['ideal']:.2f}x | {middle:.2f}x | {low:.2f}-{high:.2f} | {share} |")
    about = f"{results['threads']} thread of {results['processor']}, {results['length']} positions, float32"
    packages = f"torch {results['torch']}, transformers {results['transformers']}"
    return "\n".join([*lines, "", f"{about}; {packages}.", ""])


def page(results: dict[str, Any]) -> str:
    """Put the table into the page."""
    return with_table(PAGE.read_text(encoding="utf-8"), "savings", table(results))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/savings"))
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--publish", action="store_true", help="put what is measured into docs/")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    results = {"processor": processor(), "threads": torch.get_num_threads(), "length": options.length}
    results |= {"torch": torch.__version__, "transformers": transformers.__version__}
    results["rows"] = rows(folder, options.length)
    print(table(results))
    if options.publish:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        PAGE.write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
