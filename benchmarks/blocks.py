"""Blocks of `transformers`, forward and backward: the class's own modules, their traced graphs, these with gates.

    python benchmarks/blocks.py [--models smollm2 qwen3] [--seconds 60] [--threads 1 2] [--json FILE]

Steps of the three take turns in an order that turns each time, so that a busy moment of the machine falls on all of
them. A step is set against the module's of the same round, in time by the clock and in the process's own on the CPU,
which others on the machine disturb less; medians and quartiles of these ratios are told. The modules are called as
their model calls them where it is given tokens alone.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from sprunec.families.huggingface.recording import record_calls
from sprunec.models.verify import graph_module
from sprunec.rewrite.gating import insert_gates
from sprunec.rewrite.trace import TracedBlock, trace_called
from sprunec.units import gate_units

UNITS = ("attention", "feed_forward", "head", "dim_ff")
SIZES = ((2, 256), (1, 512), (1, 2048))  # rows, positions
LEAST = 9  # rounds
ALL = {"num_hidden_layers": 2, "vocab_size": 64, "max_position_embeddings": 2048, "pad_token_id": 0}
MODELS: dict[str, dict[str, Any]] = {
    "smollm2": {
        "model_type": "llama", "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3,
        "intermediate_size": 1536,
    },
    "qwen3": {
        "model_type": "qwen3", "hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 8,
        "head_dim": 128, "intermediate_size": 3072,
    },
    "gemma3": {
        "model_type": "gemma3_text", "hidden_size": 640, "num_attention_heads": 4, "num_key_value_heads": 1,
        "head_dim": 256, "intermediate_size": 2048,
    },
    "gpt2": {"model_type": "gpt2", "hidden_size": 768, "num_attention_heads": 12},
    "phi3": {
        "model_type": "phi3", "hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 8,
        "intermediate_size": 3072,
    },
}  # fmt: skip
Step = Callable[[], Tensor]


def steps(name: str, rows: int, positions: int) -> dict[str, Step]:
    """Give what a step of each way is: forward, and backward to weights and inputs, whose gradient it returns."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(**ALL | MODELS[name])
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    blocks = trace_called(model, record_calls(model))
    seen = own_calls(model, blocks, torch.randint(64, (rows, positions)))
    given = [block.calls["forward"].tensors(*call) for block, call in zip(blocks, seen, strict=True)]
    modules = [block.module for block in blocks]
    as_trained = [replace(block, calls={}) for block in blocks]  # called with tensors, as in training
    graphs = [graph_module(block) for block in as_trained]
    gates = insert_gates(model, as_trained, gate_units(UNITS))
    for key, size in gates.sizes.items():
        gates.set(*key, torch.ones(size, requires_grad=True))
    gated = [model.get_submodule(block.path) for block in blocks]
    first = given[0][0].detach()

    def step(blocks: list[nn.Module], calls: list[tuple[Any, dict[str, Any]]]) -> Tensor:
        start = hidden = first.clone().requires_grad_()
        for block, (args, kwargs) in zip(blocks, calls, strict=True):
            result = block(hidden, *args[1:], **kwargs)
            hidden = result[0] if isinstance(result, tuple) else result
        hidden.square().mean().backward()
        for block in blocks:
            block.zero_grad()
        assert start.grad is not None
        return start.grad

    tensors = [(inputs, {}) for inputs in given]
    return {
        "module": lambda: step(modules, seen),
        "graph": lambda: step(graphs, tensors),
        "gated": lambda: step(gated, tensors),
    }


def own_calls(model: Any, blocks: tuple[TracedBlock, ...], ids: Tensor) -> list[tuple[Any, dict[str, Any]]]:
    """List what the model gives its blocks where it is given tokens alone."""
    seen: list[tuple[Any, dict[str, Any]]] = []
    handles = [
        block.module.register_forward_pre_hook(lambda _, *call: seen.append(call), with_kwargs=True) for block in blocks
    ]
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def measured(ways: dict[str, Step], seconds: float) -> dict[str, Any]:
    """Time the ways in turns: medians in seconds, and quartiles of the ratios to the module's."""
    clocks = {"wall": time.perf_counter, "cpu": time.process_time}
    times: dict[str, dict[str, list[float]]] = {clock: {way: [] for way in ways} for clock in clocks}
    order, started = list(ways), time.perf_counter()
    while time.perf_counter() - started < seconds or len(times["cpu"]["module"]) < LEAST:
        order.append(order.pop(0))
        for way in order:
            before = {clock: now() for clock, now in clocks.items()}
            ways[way]()
            for clock, now in clocks.items():
                times[clock][way].append(now() - before[clock])
    found: dict[str, Any] = {"rounds": len(times["cpu"]["module"])}
    for clock, by_way in times.items():
        found[f"{clock}_seconds"] = {way: median(values) for way, values in by_way.items()}
        for way in list(ways)[1:]:
            ratios = [one / own for one, own in zip(by_way[way], by_way["module"], strict=True)]
            found[f"{clock}_{way}"] = quantiles(ratios, n=4)
    return found


def peak(step: Step) -> int:
    """Give the most bytes that a step has in memory at once, beside weights and inputs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    assert profile.profiler is not None
    assert profile.profiler.kineto_results is not None
    events = [each for each in profile.profiler.kineto_results.events() if each.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seconds", type=float, default=60, help="for a row")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    print(f"{'':8}{'':>10}{'':>8}{'module':>10}{'graph / module':>30}{'gated / module':>24}{'memory / module':>17}")
    print(f"{'block':8}{'size':>10}{'threads':>8}{'cpu ms':>10}{'cpu':>15}{'clock':>15}{'cpu':>24}{'graph, gated':>17}")
    found = []
    gc.disable()
    for name in arguments.models:
        for rows, positions in SIZES:
            ways = steps(name, rows, positions)
            wanted = ways["module"]()  # the first of each warms up
            apart = {way: float((run() - wanted).abs().max() / wanted.abs().max()) for way, run in ways.items()}
            memory = {way: peak(run) for way, run in ways.items()}
            for threads in arguments.threads:
                torch.set_num_threads(threads)
                row = {"block": name, "rows": rows, "positions": positions, "threads": threads}
                row |= measured(ways, arguments.seconds) | {"peak_bytes": memory, "gradients_apart": apart}
                print(line(row), flush=True)
                found.append(row)
            gc.collect()
    if arguments.json:
        arguments.json.write_text(json.dumps({"torch": torch.__version__, "rows": found}, indent=1) + "\n")


def line(row: dict[str, Any]) -> str:
    size, own = f"{row['rows']} x {row['positions']}", row["peak_bytes"]["module"]
    cpu, wall, gated = (
        f"{middle:.3f} ({low:.2f}-{high:.2f})"
        for low, middle, high in (row["cpu_graph"], row["wall_graph"], row["cpu_gated"])
    )
    memory = ", ".join(f"{row['peak_bytes'][way] / own:.2f}" for way in ("graph", "gated"))
    own_ms = 1000 * row["cpu_seconds"]["module"]
    return f"{row['block']:8}{size:>10}{row['threads']:>8}{own_ms:>10.0f}{cpu:>21}{wall:>19}{gated:>19}{memory:>15}"


if __name__ == "__main__":
    main()
