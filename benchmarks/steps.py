"""Training steps side by side, on one thread: of CPM-Ant, and of a Llama of SmolLM2's widths.

    pip install '.[test,hf]' accelerate
    python benchmarks/steps.py [--seconds 60] [--threads 1] [--publish]

The ways take turns in an order that turns each time, so that a busy moment of the machine falls on all of them, and
what counts is the ratio of two steps of one round: medians and quartiles. Weights are drawn. "Products" are a step's
own matrix products, forward and backward, recorded once and made again on random numbers of their shapes: what cannot
be saved. "The class" is the plain loop around transformers' own class (`CpmAntForCausalLM`), `Trainer` its own loop;
"compiled" is our step by `"engine": {"compile": true}`, once its kernels are made.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch
import transformers
from llamas import REST, SIZES, write_llama
from models import TRAINING, model_of
from pages import with_table
from products import Products
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, CpmAntConfig, CpmAntForCausalLM, TrainerCallback, TrainingArguments
from transformers import Trainer as TheirTrainer

from sprunec.checkpoint.reader import open_tensors
from sprunec.data.batches import Batch, Packer, TextData
from sprunec.engines.device import Place
from sprunec.engines.loop import Learner, Trainer
from sprunec.engines.torch_engine import TorchEngine
from sprunec.engines.training import Training
from sprunec.families.base_config import everything, unit_sizes
from sprunec.families.cpm_ant.blocks import build, example_inputs, initialize
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.families.cpm_ant.huggingface_names import stock_keys
from sprunec.families.cpm_ant.model import CPMAnt
from sprunec.families.huggingface.transformers_config import TransformersConfig
from sprunec.heap import share_heap
from sprunec.machine import processor
from sprunec.masks.budgets import make_budgets
from sprunec.masks.lagrangian import Lagrangian
from sprunec.masks.learn import GateLearner, start_from
from sprunec.models.meta_models import empty_model, traced
from sprunec.rewrite.gating import insert_gates
from sprunec.rewrite.trace import trace_blocks
from sprunec.units import gate_units

RESULTS, PAGE = Path(__file__).with_suffix(".json"), Path(__file__).parents[1] / "docs/benchmarks.md"
UNITS = ("attention", "feed_forward", "head", "dim_ff")
LEAST, MOST = 9, 100_000  # rounds, steps of a trainer
CPM_ANT = ((256, 8, 160), (256, 4, 512), (1024, 2, 160))  # width, rows, positions; of 4 layers
LLAMA = ((2, 256), (1, 512))  # rows, positions
WIDTHS, VOCABULARY = (576, 4, 9, 3, 1536), 8192
BIG = {"prompt_types": 32, "prompt_length": 32, "segment_types": 32, "vocab_size": 2048}  # what the class wants
Step = Callable[[], None]
RATIOS = (  # what is told: a way, in steps of another, and what is wanted of it
    ("dense", "products", "matrix products of it", "at most 1.15"),
    ("compiled", "products", "compiled, matrix products of it", "at most 1.15"),
    ("class", "dense", "the class, in our steps", "at least 1"),
    ("dense", "trainer", "our step, in steps of `Trainer`", "at most 1"),
    ("compiled", "trainer", "compiled, in steps of `Trainer`", "at most 1"),
    ("dense", "compiled", "our step, compiled", "more than 1"),
    ("gated", "dense", "gates on every unit", "at most 1.05"),
    ("dense", "small", "dense, in steps of the small model", "at least 1.8"),
    ("reader", "dense", "reading and packing its batch", "at most 0.03"),
)


def ours(
    model: nn.Module, batch: Batch, place: Place, learner: Learner | None = None, *, compiled: bool = False
) -> Step:
    driver = TorchEngine(place, compiled=compiled).drive(model, Training(steps=MOST, **TRAINING))
    trainer, taken = Trainer(driver, 0, learner or Learner()), iter(range(MOST))
    trainer.start()
    return lambda: cast(None, trainer.step(next(taken), batch))


def products(model: nn.Module, batch: Batch, place: Place) -> Step:
    step = ours(model, batch, place)
    with Products() as seen:
        step()
    return seen.again


def plain(model: Any, ids: Tensor) -> Step:
    """Train a class of transformers by the loop that one writes."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=TRAINING["learning_rate"])

    def step() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def fresh(config: ModelConfig) -> CPMAnt:
    model = build(config)
    initialize(model, 0)
    return model


def gated(model: Any, blocks: Any, config: Any) -> Learner:
    """Put gates on all sublayers, heads and dims, on the way to half of the model's size."""
    gates = insert_gates(model, blocks, gate_units(UNITS))
    lagrangian = Lagrangian(make_budgets(config, UNITS, {"sparsity": 0.5}, "global"), MOST, 0.5)
    scores = {key: torch.rand(size) for key, size in unit_sizes(config, UNITS).items()}
    start = start_from(scores)
    return GateLearner(gates, start, lagrangian, steps=MOST, rate=0.1, seed=0, device=torch.device("cpu"))


def small_config(config: ModelConfig) -> ModelConfig:
    """Leave a quarter of the heads and half of the dims, as BMCook's guide does."""
    heads, dims = tuple(range(config.num_heads // 4)), tuple(range(config.dim_ff // 2))
    kept = [{"head": heads, "dim_head": tuple(range(config.dim_head)), "dim_ff": dims}] * config.num_layers
    return config.cut(everything(config), kept)


def reader(packer: Packer, rows: int) -> tuple[Step, Batch]:
    """Draw a text, and read batches out of it."""
    ids = np.random.default_rng(0).integers(4, packer.config.vocab_size, 1_000_000, dtype=np.int32)
    data, taken = TextData(ids, ids[:1000], cast(Any, None), packer, rows, 0), iter(range(MOST))
    return lambda: cast(None, data.batch(next(taken))), data.batch(0)


def cpm_ant(width: int, rows: int, positions: int, place: Place) -> dict[str, Step]:
    config = model_of(width, 4, **BIG)
    read, batch = reader(Packer(config, positions), rows)
    model = fresh(config)
    learner = gated(model, trace_blocks(model, example_inputs(config)), config)
    ids = batch.inputs["input"][:, config.prompt_length :].long().contiguous()
    return {
        "dense": ours(fresh(config), batch, place),
        "compiled": ours(fresh(config), batch, place, compiled=True),
        "products": products(fresh(config), batch, place),
        "class": plain(CpmAntForCausalLM(CpmAntConfig(**stock_keys(config))), ids),
        "gated": ours(model, batch, place, learner),
        "small": ours(fresh(small_config(config)), batch, place),
        "reader": read,
    }


class TheirSteps(TrainerCallback):
    """Let transformers' `Trainer` make one step at a time, in a thread of its own."""

    def __init__(self) -> None:
        self.wanted, self.made = threading.Semaphore(0), threading.Semaphore(0)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.wanted.acquire()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.made.release()

    def __call__(self) -> None:
        self.wanted.release()
        self.made.acquire()


def theirs(model: nn.Module, ids: Tensor, folder: Path) -> Step:
    step, rows = TheirSteps(), [{"input_ids": row, "labels": row} for row in ids]
    how = TrainingArguments(
        str(folder), max_steps=MOST, per_device_train_batch_size=len(rows), use_cpu=True, report_to="none",
        save_strategy="no", logging_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = TheirTrainer(model, how, train_dataset=cast(Any, rows), callbacks=[step])
    threading.Thread(target=trainer.train, daemon=True).start()
    return step


def llama(rows: int, positions: int, place: Place, folder: Path) -> dict[str, Step]:
    sizes = REST | dict(zip(SIZES, WIDTHS, strict=True)) | {"vocab_size": VOCABULARY, "tie_word_embeddings": True}
    write_llama(folder, sizes | {"head_dim": 64})
    config = TransformersConfig.from_source(json.loads((folder / "config.json").read_text()))
    read, batch = reader(Packer(config, positions), rows)

    def ready(change: Callable[[nn.Module], Any] = lambda model: None) -> tuple[nn.Module, Any]:
        model = empty_model(config)
        changed = change(model)
        return TorchEngine(place).load(model, open_tensors(folder)), changed

    model, learner = ready(lambda empty: gated(empty, traced(empty, config), config))
    return {
        "dense": ours(ready()[0], batch, place),
        "compiled": ours(ready()[0], batch, place, compiled=True),
        "products": products(ready()[0], batch, place),
        "trainer": theirs(
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), batch.inputs["input"], folder
        ),
        "gated": ours(model, batch, place, learner),
        "reader": read,
    }


def measured(ways: dict[str, Step], seconds: float) -> dict[str, Any]:
    """Time the ways in turns -> milliseconds of each, and quartiles of the ratios that are told."""
    times, order, started = {way: list[float]() for way in ways}, list(ways), time.perf_counter()
    for step in ways.values():  # the first of each warms up
        step()
    while time.perf_counter() - started < seconds or len(times["dense"]) < LEAST:
        order.append(order.pop(0))
        for way in order:
            began = time.perf_counter()
            ways[way]()
            times[way].append(time.perf_counter() - began)
    ratios = {
        f"{way} / {of}": quantiles([one / two for one, two in zip(times[way], times[of], strict=True)], n=4)
        for way, of, *_ in RATIOS
        if way in ways and of in ways
    }
    return {"milliseconds": {way: 1000 * median(found) for way, found in times.items()}, "ratios": ratios}


def table(found: dict[str, Any]) -> str:
    lines = ["| model | a step | what | measured | quartiles | wanted |", "|---|---:|---|---:|---:|---:|"]
    for row in found["rows"]:
        start = f"| {row['model']} | {row['milliseconds']['dense']:.0f} ms |"
        for way, of, what, wanted in RATIOS:
            if quartiles := row["ratios"].get(f"{way} / {of}"):
                low, middle, high = quartiles
                lines.append(f"{start} {what} | {middle:.3f} | {low:.3f}-{high:.3f} | {wanted} |")
                start = "| | |"
    packages = f"torch {found['torch']}, transformers {found['transformers']}"
    return "\n".join([*lines, "", f"{found['threads']} thread of {found['processor']}; {packages}.", ""])


def page(found: dict[str, Any]) -> str:
    """Put the table into the page."""
    return with_table(PAGE.read_text(encoding="utf-8"), "steps", table(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="for a model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--publish", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    share_heap()
    place, rows = Place.of("cpu", "fp32"), list[dict[str, Any]]()
    found = {"threads": options.threads, "processor": processor(), "torch": torch.__version__, "rows": rows}
    found |= {"transformers": transformers.__version__}
    for width, count, positions in CPM_ANT:
        ways = cpm_ant(width, count, positions, place)
        rows.append({"model": f"CPM-Ant, width {width}, {count} x {positions}"} | measured(ways, options.seconds))
        print(json.dumps(rows[-1]), flush=True)
    for count, positions in LLAMA:
        with TemporaryDirectory() as folder:
            ways = llama(count, positions, place, Path(folder))
            rows.append({"model": f"SmolLM2's widths, {count} x {positions}"} | measured(ways, options.seconds))
        print(json.dumps(rows[-1]), flush=True)
    print(table(found))
    if options.publish:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
        PAGE.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
