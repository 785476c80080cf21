"""A BMCook user's folder: a model, its dense checkpoint, a CPM-Live data set; and the guide's command."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import sprunec
from sprunec.cli import app
from sprunec.families.cpm_ant.blocks import build, initialize
from sprunec.families.cpm_ant.config import ModelConfig
from tests.helpers.bmcook_files import CONFIG, bmcook, write

STEPS = 3
OPTS = ["--batch-size", "4", "--max-length", "40", "--lr", "0.1", "--warmup-iters", "2", "--save-name", "ant"]


def records(count: int, vocab_size: int = 128, seed: int = 0) -> list[np.ndarray[Any, Any]]:
    """Documents of one segment each, of both pretraining tasks, in CPM-Live's layout; words follow one another."""
    draw = np.random.default_rng(seed)
    found = []
    for index in range(count):
        length = int(draw.integers(6, 24))
        words = (draw.integers(20, vocab_size) + 3 * np.arange(length)) % (vocab_size - 10) + 10
        header = [1, 1, length, 1, 0] if index % 2 else [2, 1, length, 2, 1]
        found.append(np.concatenate([header, words]).astype(np.int64))
    return found


def prepare(folder: Path, config: Mapping[str, Any] = CONFIG, count: int = 120) -> None:
    """model.json, dense.pt and data/ in `folder`."""
    write(folder, "model.json", dict(config))
    model = build(ModelConfig.from_dict(config))
    initialize(model, 3)
    torch.save(model.state_dict(), folder / "dense.pt")
    sprunec.write_dataset(folder / "data", records(count))


def command(*more: str, load: str = "dense.pt", steps: int = STEPS, start: int = 0, out: str = "out") -> list[str]:
    """The script's flags for one stage."""
    own = ["--load", load, "--train-iters", str(steps), "--start-step", str(start), "--save", out]
    return ["--model-config", "model.json", "--data_bin_path", "data", *OPTS, *own, *more]


def run(content: dict[str, Any], arguments: list[str], code: int | None = None, **files: Any) -> Any:
    """`sprunec run bmcook.json` in the current folder, with `files` (by stem) beside it; checked for its exit code."""
    folder = Path()
    for stem, second in files.items():
        write(folder, f"{stem}.json", second)
    result = CliRunner().invoke(app, ["run", str(write(folder, "bmcook.json", content)), "--quiet", *arguments])
    finished = (0, 4) if code is None else (code,)  # a mask need not settle in a few steps
    assert result.exit_code in finished, f"{result.output}\n{result.exception}"
    return result


def fine(options: dict[str, Any], arguments: list[str], code: int | None = None) -> Any:
    return run(bmcook("fine-grained"), arguments, code, l0_pruning={"fine-grained": options})


def report(out: str) -> dict[str, Any]:
    return json.loads((Path(out) / "report.json").read_text())


def digests(out: str) -> list[str]:
    return [entry["digest"] for entry in report(out)["passes"]]


def kept(out: str) -> dict[str, Any]:
    return report(out)["kept"]


def emitted(out: str = "out") -> dict[str, torch.Tensor]:
    return load_file(f"{out}/model/sprunec/model.safetensors")
