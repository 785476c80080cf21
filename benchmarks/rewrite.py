"""Cutting a checkpoint, side by side in one run, each way in a process of its own with the file in the page cache.

    python benchmarks/rewrite.py [--gigabytes 3] [--rounds 5] [--folder DIR]

    floor           reads the pages that hold what is kept, and writes as many bytes as the small model has
    copy            shutil: copies as many bytes
    sprunec         the pass `rewrite`: from file to file, in chunks
    in memory       loads everything, slices, saves: how a script does it
    torch-pruning   its functions on a tree of nn.Linear, where that package is installed (pip install torch-pruning)

At the end the whole command, `sprunec run` of load-mask and emit with its comparison, beside a plain copy of the
checkpoint, in turn: it should take at most three copies and 20 seconds, and twice the largest tensor and 200 MB.

The generated checkpoint has blocks of CPM-Ant 10B in fp16; half of the heads and 30% of the feed-forward dims stay.
Time is that of the work, without imports, with warm memory and page cache, the best of all rounds; memory is the
process's peak over that of a process that only imports torch.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measure import BARE, measure, pages_read
from models import write_masks

from sprunec.checkpoint.safetensors_file import Stored, read_safetensors
from sprunec.families.base_config import everything
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.units import Kept

SHAPE = {"dim_model": 4096, "num_heads": 32, "dim_head": 128, "dim_ff": 10240}
HEADS, DIMS = 16, 3072
CHUNK = 2**25


def prepare(folder: Path, size: float) -> tuple[int, int]:
    """A checkpoint as a pass finds it, and what to keep -> its bytes, and those of its largest tensor."""
    layers = max(1, round((size * 1e9 - 0.27e9) / 0.386e9))
    config = ModelConfig.from_dict(SHAPE | {"num_layers": layers})
    draw = random.Random(0)
    kept = Kept(
        {
            "head": tuple(sorted(draw.sample(range(32), HEADS))),
            "dim_head": tuple(range(128)),
            "dim_ff": tuple(sorted(draw.sample(range(10240), DIMS))),
        }
        for _ in range(layers)
    )
    for name in ("model", "masks"):
        (folder / name).mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(config.to_dict()))
    (folder / "model" / "kept.json").write_text(json.dumps(everything(config).to_json()))
    (folder / "masks" / "kept.json").write_text(json.dumps(kept.to_json()))
    header, end = {}, 0
    for name, shape in config.tensors().items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    _fill(folder / "model" / "model.safetensors", len(text).to_bytes(8, "little") + text, end)
    small = config.cut(everything(config), kept)
    _fill(folder / "copied", b"", sum(2 * math.prod(shape) for shape in small.tensors().values()))
    return end, max(2 * math.prod(shape) for shape in config.tensors().values())


def _fill(path: Path, head: bytes, size: int) -> None:
    noise = np.random.default_rng(0).standard_normal(CHUNK // 2).astype(np.float16).tobytes()
    with path.open("wb") as file:
        file.write(head)
        for first in range(0, size, CHUNK):
            file.write(noise[: size - first])


def slices(folder: Path) -> dict[str, dict[int, Any]]:
    """What every tensor keeps, by dim, worked out by hand: the other ways do not know the recipe."""
    found: dict[str, dict[int, Any]] = {}
    for index, layer in enumerate(json.loads((folder / "masks" / "kept.json").read_text())):
        rows = (np.array(layer["heads"])[:, None] * 128 + np.arange(128)).ravel()
        dims, place = np.array(layer["dim_ff"]), f"encoder.layers.{index}"
        for name in ("project_q", "project_k", "project_v"):
            found[f"{place}.self_att.self_attention.{name}.weight"] = {0: rows}
        found[f"{place}.self_att.self_attention.attention_out.weight"] = {1: rows}
        found |= {f"{place}.ffn.ffn.w_in.{name}.weight": {0: dims} for name in ("w_0", "w_1")}
        found[f"{place}.ffn.ffn.w_out.weight"] = {1: dims}
    return found


def floor(folder: Path, out: Path) -> None:
    cuts, buffer = slices(folder), bytearray(CHUNK)
    with (
        (folder / "model" / "model.safetensors").open("rb", buffering=0) as file,
        out.open("wb", buffering=0) as target,
    ):
        for name, place in read_safetensors(folder / "model" / "model.safetensors").items():
            cut = cuts.get(name, {})
            for start, length in _runs(place, cut.get(0)):
                file.seek(start)
                while length:
                    length -= file.readinto(memoryview(buffer)[: min(length, CHUNK)]) or length
            left = place.nbytes * math.prod(len(kept) / place.shape[dim] for dim, kept in cut.items())
            for first in range(0, round(left), CHUNK):
                target.write(memoryview(buffer)[: min(CHUNK, round(left) - first)])


def _runs(place: Stored, rows: Any) -> list[tuple[int, int]]:
    if rows is None:
        return [(place.start, place.nbytes)]
    width = place.nbytes // place.shape[0]
    starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
    lengths = np.diff(np.append(starts, len(rows)))
    return [(place.start + int(rows[s]) * width, int(n) * width) for s, n in zip(starts, lengths, strict=True)]


def copy(folder: Path, out: Path) -> None:
    shutil.copyfile(folder / "copied", out)


def streamed(folder: Path, out: Path) -> None:
    from sprunec.graph.options import Options
    from sprunec.passes import cut as rewrite
    from sprunec.passes.job import Job

    out.mkdir()
    inputs = {"model": folder / "model", "masks": folder / "masks"}
    rewrite.run(Job(Options(), inputs, {}, out, "cpu", lambda event: None))


def in_memory(folder: Path, out: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model" / "model.safetensors")
    for name, cut in slices(folder).items():
        for dim, kept in cut.items():
            state[name] = state[name].index_select(dim, torch.from_numpy(kept))
    save_file(state, out)


def torch_pruning(folder: Path, out: Path) -> None:
    import torch
    import torch_pruning as tp
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model" / "model.safetensors")
    for name, cut in slices(folder).items():
        rows, columns = state[name].shape
        linear = torch.nn.utils.skip_init(torch.nn.Linear, columns, rows, bias=False, dtype=state[name].dtype)
        linear.weight = torch.nn.Parameter(state[name])
        ((dim, kept),) = cut.items()
        gone = np.setdiff1d(np.arange(state[name].shape[dim]), kept).tolist()
        prune = tp.prune_linear_out_channels if dim == 0 else tp.prune_linear_in_channels
        state[name] = prune(linear, gone).weight.detach()
    save_file(state, out)


WAYS: dict[str, Callable[[Path, Path], None]] = {
    "floor": floor,
    "copy": copy,
    "sprunec": streamed,
    "in memory": in_memory,
    "torch-pruning": torch_pruning,
}
LOADING = ("in memory", "torch-pruning")


def work(way: str, folder: Path) -> None:
    """In a process of its own."""
    if way not in ("floor", "copy"):
        import torch  # noqa: F401
    if way == "sprunec":
        from sprunec.models.meta_models import traced_shape

        traced_shape(ModelConfig.from_dict({"num_layers": 1}))  # torch loads 800 modules when it first traces
    if way == "torch-pruning":
        import torch_pruning  # noqa: F401
    _warm(way, folder)
    started = time.perf_counter()
    WAYS[way](folder, folder / "out")
    seconds, peak = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    (folder / "measured").write_text(json.dumps([seconds, peak]))


def _warm(way: str, folder: Path) -> None:
    """The checkpoint into the page cache, and as much free memory as the way needs taken once before.

    On a virtual machine the first touch of memory that was given back to the host costs more than the work: without
    this, a way is the slower the longer ago memory was freed.
    """
    files = [folder / "model" / "model.safetensors", folder / "copied"]
    os.sync()
    pages_read(files)
    size = 2 * files[1].stat().st_size + (files[0].stat().st_size if way in LOADING else 0)
    subprocess.run([sys.executable, "-c", f"bytes([1]) * {size}"], check=True)  # its memory is free once it has ended


def one(way: str, folder: Path) -> tuple[float, int, int]:
    """Seconds, peak, and bytes written."""
    subprocess.run([sys.executable, __file__, "--way", way, "--folder", str(folder)], check=True)
    seconds, peak = json.loads((folder / "measured").read_text())
    out = folder / "out"
    files = out.glob("*.safetensors") if out.is_dir() else [out]
    written = sum(file.stat().st_size for file in files)
    if way == "sprunec":
        _check(folder)
    shutil.rmtree(out) if out.is_dir() else out.unlink()
    return seconds, peak, written


def whole_run(folder: Path, size: int, largest: int, bare: int, rounds: int) -> None:
    """Of everything that a user waits for, and of everything that is in memory meanwhile."""
    config = ModelConfig.from_dict(json.loads((folder / "model" / "config.json").read_text()))
    write_masks(folder, config, json.loads((folder / "masks" / "kept.json").read_text()))
    files = sorted(f"masks/{file.name}" for file in (folder / "masks").glob("*.pt"))
    passes = [{"pass": "load-mask", "path": files}, {"pass": "emit"}]
    model = {"config": config.to_dict(), "checkpoint": "model/model.safetensors"}
    (folder / "plan.json").write_text(json.dumps({"name": "whole", "model": model, "passes": passes}))
    command = [sys.executable, "-m", "sprunec", "run", "plan.json", "--out", "run", "--quiet"]
    copies, runs = [], []
    for _ in range(rounds):
        copies.append(measure(["cp", "model/model.safetensors", "copied"], cwd=folder).seconds)
        runs.append(measure(command, cwd=folder))
        assert runs[-1].code == 0
        report = json.loads((folder / "run" / "report.json").read_text())
        shutil.rmtree(folder / "run")
    seconds, copied = statistics.median(run.seconds for run in runs), statistics.median(copies)
    memory, bound = max(run.peak for run in runs) - bare, 2 * largest + 200 * 10**6
    print(f"\nwhole run of load-mask and emit, median of {rounds}, compared on {report['comparison']['tokens']} tokens")
    limit = 3 * copied + 20
    print(f"  {seconds:6.1f} s; a copy of {size / 1e9:.2f} GB takes {copied:.1f} s, three and 20 s {limit:.1f}")
    print(f"  {memory / 1e6:6.0f} MB; twice the largest tensor and 200 MB are {bound / 1e6:.0f}")
    for entry in report["passes"]:
        print(f"  {entry['seconds']:6.1f} s  {entry['name']}")


def _check(folder: Path) -> None:
    """Slices of two tensors, against numpy's."""
    before, after = (read_safetensors(folder / name / "model.safetensors") for name in ("model", "out"))
    for name, cut in list(slices(folder).items())[3:7]:
        wanted = _array(before[name])
        for dim, kept in cut.items():
            wanted = wanted.take(kept, axis=dim)
        assert np.array_equal(_array(after[name]), wanted), name


def _array(place: Stored) -> Any:
    return np.memmap(place.file, np.int16, "r", place.start, place.shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        work(options.way, options.folder)
        return
    folder = Path(tempfile.mkdtemp(prefix="rewrite-", dir=options.folder))
    try:
        size, largest, bare = compare(folder, options.gigabytes, options.rounds)
        whole_run(folder, size, largest, bare, min(3, options.rounds))
    finally:
        shutil.rmtree(folder)


def compare(folder: Path, gigabytes: float, rounds: int) -> tuple[int, int, int]:
    """Returns the checkpoint's bytes, its largest tensor's, and those of a bare import of torch."""
    size, largest = prepare(folder, gigabytes)
    ways = [way for way in WAYS if way != "torch-pruning" or importlib.util.find_spec("torch_pruning")]
    if len(ways) < len(WAYS):
        print("torch-pruning is not installed, and left out")
    bare = measure(BARE).peak
    runs: dict[str, list[tuple[float, int, int]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            runs[way].append(one(way, folder))
    print(f"\n{size / 1e9:.2f} GB to {runs['sprunec'][0][2] / 1e9:.2f} GB; largest tensor {largest / 1e6:.0f} MB")
    print(f"best of {rounds} rounds that take turns; memory over `import torch` ({bare / 1e6:.0f} MB)\n")
    print("way              seconds   x floor   GB/s written   memory, MB   x sprunec")
    ours = max(peak for _, peak, _ in runs["sprunec"]) - bare
    base = min(seconds for seconds, _, _ in runs["floor"])
    for way, found in runs.items():
        seconds, memory = min(run[0] for run in found), max(0, max(run[1] for run in found) - bare)
        row = f"{way:15s} {seconds:8.2f} {seconds / base:9.2f} {found[0][2] / seconds / 1e9:14.2f}"
        print(f"{row} {memory / 1e6:12.0f} {memory / ours:11.1f}")
    return size, largest, bare


if __name__ == "__main__":
    main()
