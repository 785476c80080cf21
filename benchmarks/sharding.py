"""What one rank holds and sends: one process, two that hold all (DDP), two that hold a part each (FSDP2).

    python benchmarks/sharding.py [--family llama] [--width 768] [--layers 16] [--steps 3] [--json]

The model is large and the batch small, so that weights, gradients and Adam's moments are what counts. Memory is each
process's own peak (VmHWM, from the kernel): of loading the model, of all of it, and anew of gathering what was trained;
less what it had once torch and the empty model were there and the processes had met. It has activations in it, and all
that the C allocator does not give back, though told to.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch._dynamo  # which torch imports when it shards a model, and transformers always: no memory of weights
import torch.distributed as dist
from models import TRAINING, model_of
from torch import Tensor

from sprunec.data.compared import random_batch
from sprunec.engines.device import Place
from sprunec.engines.loop import fit
from sprunec.engines.processes.distributed import ProcessGroup
from sprunec.engines.processes.world import World
from sprunec.engines.sharding import local
from sprunec.engines.torch_engine import TorchDriver, TorchEngine
from sprunec.engines.training import Training
from sprunec.families.base_config import ModelConfig, everything
from sprunec.families.huggingface.transformers_config import TransformersConfig
from sprunec.families.model_directory import open_model_tensors, read_config, save_model
from sprunec.models.meta_models import empty_model
from sprunec.plan.scale import Cost, Setting, cost

MODES = {"one process": (1, False), "DDP": (2, False), "FSDP2": (2, True)}
ROWS, TEXT = 2, 28
COLUMNS = ("loading", "saving", "state", "computed", "peak", "computed", "", "sent", "computed")


def measure(folder: Path, mode: str, steps: int) -> dict[str, float]:
    """This process's part of a training: bytes held between steps, at the peak, and sent in a step."""
    processes, full = MODES[mode]
    world: Any = World()
    if processes > 1:
        world = ProcessGroup()
        world.join("cpu", 120)
    config, engine = read_config(folder), TorchEngine(Place.of("cpu", "fp32"), world, full=full)
    empty, before = empty_model(config), memory("VmRSS")
    model = engine.load(empty, open_model_tensors(folder))
    found = {"loading": memory("VmHWM") - before}
    batch, sent = random_batch(config, rows=ROWS, text=TEXT), Sent(processes)
    step = TorchDriver.step

    def look(self: TorchDriver, rate: float, norm: float) -> None:
        step(self, rate, norm)
        found["state"] = float(sum(local(tensor).nbytes for tensor in held(self)))

    TorchDriver.step = look  # type: ignore[method-assign]
    with sent:
        fit(model, lambda _: batch, Training(steps=steps, **TRAINING), engine, first_step=0, report=lambda _: None)
    found |= {"peak": memory("VmHWM") - before, "traffic": sent.bytes / steps}
    Path("/proc/self/clear_refs").write_text("5")  # the kernel forgets the peak
    before, weights = memory("VmRSS"), engine.weights(model)
    for name in weights:
        weights[name]
    return found | {"saving": memory("VmHWM") - before}


def held(driver: TorchDriver) -> list[Tensor]:
    parameters = list(driver.model.parameters())
    moments = [value for entry in driver.optimizer.state.values() for value in entry.values() if value.dim()]
    return [*parameters, *(p.grad for p in parameters if p.grad is not None), *moments]


class Sent:
    """Counts what a rank of a ring sends in the collectives that carry weights and gradients."""

    TIMES: ClassVar = {"all_reduce": 2, "all_gather_single": 1, "reduce_scatter_single": 1}

    def __init__(self, ranks: int) -> None:
        self.bytes, self._around = 0.0, (ranks - 1) / ranks
        self._real = {name: getattr(dist, name) for name in self.TIMES}

    def __enter__(self) -> Sent:
        for name, real in self._real.items():
            setattr(dist, name, self._counting(real, self.TIMES[name]))
        return self

    def _counting(self, real: Any, times: int) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            whole = max(value.nbytes for value in (*given, *named.values()) if isinstance(value, Tensor))
            if whole > 512:  # else the few numbers of a step
                self.bytes += times * self._around * whole
            return real(*given, **named)

        return call

    def __exit__(self, *_: object) -> None:
        for name, real in self._real.items():
            setattr(dist, name, real)


def memory(what: str) -> float:
    """Bytes, from the kernel."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * int(next(line.split()[1] for line in lines if line.startswith(f"{what}:")))


def run(folder: Path, mode: str, steps: int) -> dict[str, float]:
    """The worst of a mode's processes."""
    processes, worker = MODES[mode][0], [__file__, "--worker", mode, "--folder", str(folder), "--steps", str(steps)]
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    start = start if processes > 1 else []
    settings = {"OMP_NUM_THREADS": "1", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, *start, *worker]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(rows) == processes, done.stderr
    return {key: max(row[key] for row in rows) for key in rows[0]}


def expected(config: ModelConfig, mode: str) -> Cost:
    processes, full = MODES[mode]
    return cost(config, Setting(processes, full, sequences=ROWS // processes, positions=TEXT + config.overhead))


def config_of(family: str, width: int, layers: int) -> ModelConfig:
    """A model of a family; Llama's heads in groups of four, and its feed-forward gated."""
    if family == "cpm-ant":
        return model_of(width, layers)
    sizes = {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers, "vocab_size": 4096}
    heads = {"num_attention_heads": width // 32, "num_key_value_heads": max(1, width // 128)}
    return TransformersConfig.from_source({"model_type": "llama", "max_position_embeddings": 512} | sizes | heads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=("cpm-ant", "llama"), default="cpm-ant")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        line = json.dumps(measure(arguments.folder, arguments.worker, arguments.steps)) + "\n"
        os.write(sys.stdout.fileno(), line.encode())  # at once, or lines of two processes run into each other
        return
    config = config_of(arguments.family, arguments.width, arguments.layers)
    with tempfile.TemporaryDirectory() as name:
        weights = {name: 0.02 * torch.randn(shape) for name, shape in config.tensors().items()}
        save_model(Path(name), config, everything(config), weights)
        found = {mode: run(Path(name), mode, arguments.steps) for mode in MODES}
    if arguments.json:
        print(json.dumps({"config": config.to_dict(), "modes": found}))
        return
    print(f"{config.parameters():,} parameters; MB a rank, and how much of one process's peak\n")
    print("{:14}{:>9}{:>9}{:>9}{:>10}{:>9}{:>10}{:>9}{:>9}{:>10}".format("", *COLUMNS))
    for mode, row in found.items():
        wanted, share = expected(config, mode), row["peak"] / found["one process"]["peak"]
        numbers = [row["loading"], row["saving"], row["state"], wanted.state, row["peak"], wanted.memory]
        words = [f"{number / 1e6:,.0f}" for number in (*numbers, row["traffic"], wanted.traffic)]
        print(
            "{:14}{:>9}{:>9}{:>9}{:>10}{:>9}{:>10}{:>9}{:>9}{:>10}".format(mode, *words[:6], f"{share:.0%}", *words[6:])
        )
    print(f"torch {torch.__version__}, gloo, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
