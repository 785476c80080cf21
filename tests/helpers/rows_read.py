"""What each of several ranks reads of a model's files, and keeps; a program of its own, for its process groups.

Nothing is sent: torch's `fake` backend lets one process be any rank.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from sprunec.checkpoint import reader
from sprunec.engines.device import Place
from sprunec.engines.processes.world import World
from sprunec.engines.sharding import local
from sprunec.engines.torch_engine import TorchEngine
from sprunec.families.model_directory import open_model_tensors, read_config
from sprunec.models.meta_models import empty_model


def load(folder: Path, rank: int, size: int) -> tuple[dict[str, torch.Tensor], int]:
    """One rank's parameters, and how many bytes it has read."""
    dist.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
    world, spans, real = World(), list[tuple[int, int]](), reader.read_into
    world.rank, world.size = rank, size

    def counted(path: Path, wanted: Any, memory: memoryview) -> None:
        spans.extend(wanted)
        real(path, wanted, memory)

    reader.read_into = counted
    engine = TorchEngine(Place.of("cpu", "fp32"), world, full=True)
    model = engine.load(empty_model(read_config(folder)), open_model_tensors(folder))
    reader.read_into = real
    dist.destroy_process_group()
    found = {name: local(tensor.detach()) for name, tensor in model.named_parameters()}
    return found, sum(end - start for start, end in spans)


def main(folder: Path, size: int) -> None:
    whole, parts = open_model_tensors(folder), [load(folder, rank, size) for rank in range(size)]
    equal = all(
        torch.equal(torch.cat([shards[name] for shards, _ in parts]), tensor.float()) for name, tensor in whole.items()
    )
    sizes = [sum(tensor.numel() for tensor in shards.values()) for shards, _ in parts]
    print(json.dumps({"equal": equal, "read": [read for _, read in parts], "numbers": sizes}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
