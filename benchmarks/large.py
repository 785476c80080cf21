"""A checkpoint as large as CPM-Ant 10B (48 layers, fp16, 18.8 GB) on a small machine: inspect, cut to 1B, compare.

    python benchmarks/large.py [--folder DIR] [--config cpm-ant-1b.json]

Nothing is downloaded. The checkpoint is a sparse file: of every matrix one row in sixteen is drawn at random, the
others are zeros that take no room on the disk; reading and computing treat them as any number. It is cut to the shape
of the given config (absent sublayers, 16 of 32 heads, 700 of 10,240 dims) by masks drawn at random, and the emitted
model is held against the masked one block by block, in float32 and in float64. The folder is taken away afterwards.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path

from measure import BARE, measure
from models import write_masks
from synthetic import write_weights

from sprunec.families.cpm_ant.config import ModelConfig

TEN_BILLION = {"dim_model": 4096, "num_heads": 32, "dim_head": 128, "dim_ff": 10240, "num_layers": 48}
ONE_IN = 16


def draw_masks(large: ModelConfig, small: ModelConfig) -> list[dict[str, list[int] | None]]:
    """What each layer keeps: as much as `small` has, chosen at random."""
    draw = random.Random(0)

    def some(of: int, count: int) -> list[int] | None:
        return sorted(draw.sample(range(of), count)) if count else None

    kept = []
    for layer in small.layers:
        heads, dims = some(large.num_heads, layer.heads), some(large.dim_head, layer.dim_head)
        kept.append({"heads": heads, "dim_head": dims, "dim_ff": some(large.dim_ff, layer.dim_ff)})
    return kept


def prepare(folder: Path, small: ModelConfig) -> int:
    large = ModelConfig.from_dict(TEN_BILLION)
    shapes = {name: tuple(shape) for name, shape in large.tensors().items()}
    size = write_weights(folder / "large.safetensors", shapes, dtype="F16", std=lambda name: 1.0, one_in=ONE_IN)
    write_masks(folder, large, draw_masks(large, small))
    plan = {
        "name": "large",
        "model": {"config": {**TEN_BILLION, "vocab_size": large.vocab_size}, "checkpoint": "large.safetensors"},
        "passes": [
            {"pass": "load-mask", "path": sorted(f"masks/{file.name}" for file in (folder / "masks").glob("*.pt"))},
            {"pass": "emit", "formats": ["sprunec"]},
        ],
    }
    (folder / "plan.json").write_text(json.dumps(plan, indent=1))
    return size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=None, help="where 19 GB (sparse) and 5 GB go for a while")
    parser.add_argument("--config", type=Path, default=Path(__file__).parent.parent / "plans" / "cpm-ant-1b.json")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="large-", dir=options.folder))
    try:
        size = prepare(folder, ModelConfig.from_dict(json.loads(options.config.read_text())))
        bare = measure(BARE)
        inspected = measure([sys.executable, "-m", "sprunec", "inspect", folder / "large.safetensors"])
        ran = measure([sys.executable, "-m", "sprunec", "run", folder / "plan.json", "--out", folder / "out"])
        report = json.loads((folder / "out" / "report.json").read_text())
        print(f"\ncheckpoint {size / 1e9:.1f} GB; import torch: {bare.seconds:.1f} s, {bare.peak / 1e9:.2f} GB")
        for name, found in (("inspect", inspected), ("run", ran)):
            print(f"{name}: {found.seconds:.1f} s, peak {found.peak / 1e9:.2f} GB, exit {found.code}")
        for entry in report["passes"]:
            print(f"  {entry['name']}: {entry['seconds']:.1f} s")
        print(json.dumps({"models": report["models"], "comparison": report["comparison"]}, indent=1))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
