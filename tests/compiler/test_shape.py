"""What a config says of a model without a trace, held against what the trace finds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig

from sprunec.compiler.inspect import describe
from sprunec.compiler.shape import look_at, shape_of
from sprunec.families.cards import native, read_config
from sprunec.families.cpm_ant.config import ModelConfig
from tests.helpers.causal_lms import CONFIGS, PLAIN
from tests.helpers.hub import SMOLLM2
from tests.helpers.small_plans import MODEL, write

ROOT = Path(__file__).parents[2]
# The trace finds what the card leaves out: layers without rotary positions; slopes by head, which a cut would renumber.
APART = {"smollm3": {"dim_head"}, "bloom": {"head"}}
WITHOUT_TORCH = """
import sys, time
from sprunec.cli import main
try:
    main()
finally:
    assert not {"torch", "numpy", "transformers"} & set(sys.modules)
"""


def units(document: dict[str, Any], but: set[str]) -> list[tuple[int, str, int, int]]:
    found = [(site["layer"], site["unit"], site["size"], site["parameters_each"]) for site in document["sites"]]
    return [site for site in found if site[1] not in but]


@pytest.mark.parametrize("name", [*CONFIGS, "cpm-ant"])
def test_what_can_be_cut_is_what_a_trace_finds(name: str) -> None:
    if name == "cpm-ant":
        config: Any = ModelConfig.from_dict(MODEL)
    else:
        document = AutoConfig.for_model(name, **CONFIGS[name] | PLAIN.get(name, {})).to_dict()
        config = read_config(native(json.loads(json.dumps(document)) | {"model_type": name}))
    said, but = shape_of(config), APART.get(name, set())
    assert units(said, but) == units(describe(config), but)
    assert sum(said["outside"].values()) + sum(
        site["parameters_each"] for site in said["sites"] if site["unit"] in ("attention", "feed_forward")
    ) == pytest.approx(said["parameters"]["total"], rel=0.01)  # what both sublayers share is in neither
    caches = [layer["cache_bytes_per_token"] for layer in said["layers"]]
    assert said["cache_bytes_per_token"] in (None, sum(filter(None, caches)))


@pytest.mark.parametrize("weights", [False, True])
def test_a_look_at_a_model_imports_no_torch(weights: bool, tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    write(tmp_path, SMOLLM2[1] | sizes | {"num_key_value_heads": 2, "vocab_size": 50}, "config.json")
    if weights:
        shapes = read_config(native(json.loads((tmp_path / "config.json").read_text()))).tensors()
        save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, tmp_path / "model.safetensors")
    command = [sys.executable, "-c", WITHOUT_TORCH, "inspect", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "■■ ■■" in done.stdout


def test_large_directories_of_a_run_are_not_read_for_a_look(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = finished / "model/sprunec"
    assert look_at(model)["origin"]["files"] == "as emitted"
    monkeypatch.setattr("sprunec.compiler.shape.READ", 1000)
    assert look_at(model)["origin"]["files"] == "not read"
