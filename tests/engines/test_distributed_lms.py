"""Models of transformers train alike in one process and in two: gates, what is left of them, whole or in shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.processes import events, farthest_losses, launch, same_masks
from tests.helpers.small_plans import execute, read_report
from tests.runs.test_causal_lms import directory

STEPS = 6
CLOSE = 1e-5
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {  # by name: its class, and sizes
    "llama": ("llama", {"tie_word_embeddings": False}),
    "qwen3": ("qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
    "gemma3": ("gemma3_text", {}),
    "gpt2": ("gpt2", {}),
    "gpt_neox": ("gpt_neox", {"tie_word_embeddings": False}),
}
ENGINES = {"DDP": {"sharding": "none"}, "FSDP2": {"sharding": "full", "activation_checkpointing": True}}


def learned(folder: Path, **engine: Any) -> dict[str, Any]:
    """Gates on heads and dims under one budget, so that each layer gets another shape, and what is left in training."""
    gates = {"pass": "train-mask", "unit": ["head", "dim_ff"], "target": {"num_heads": 4, "dim_ff": 40}}
    return {
        "name": "small",
        "model": {"path": str(folder / "dense")},
        "data": {"source": "python-docs", "max_length": 32, "batch_size": 8},
        "training": {"learning_rate": 1e-3, "accumulate": 2},
        "engine": engine,
        "evaluate": {"tokens": 200},
        "passes": [
            gates | {"steps": STEPS, "criterion": "taylor", "budget": "global", "mask_learning_rate": 0.3},
            {"pass": "finetune", "steps": STEPS},
        ],
    }


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a family in `dense`, and in `alone` what one process makes of it."""
    made, (kind, changes) = tmp_path_factory.mktemp(request.param), FAMILIES[request.param]
    directory(made, kind, **changes)
    execute(learned(made), made / "alone")
    return made


@pytest.mark.parametrize("engine", [pytest.param("DDP", marks=pytest.mark.slow), "FSDP2"])
@pytest.mark.parametrize(
    "folder", ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in [*FAMILIES][1:])], indirect=True
)
def test_two_processes_train_as_one(folder: Path, engine: str, tmp_path: Path) -> None:
    done, alone, both = launch(tmp_path, learned(folder, **ENGINES[engine])), folder / "alone", tmp_path
    assert done.returncode == 4, done.stderr  # no gate settles in so few steps
    assert len(events(both)) == 2 * STEPS
    assert farthest_losses(both, alone) < CLOSE
    assert same_masks(both, alone)
    small = [read_report(folder / "out")["models"]["small"]["loss"] for folder in (both, alone)]
    assert small[0] == pytest.approx(small[1], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_half_precision_agrees_as_far_as_it_carries(name: str, tmp_path: Path) -> None:
    kind, changes = FAMILIES[name]
    directory(tmp_path, kind, **changes)
    for run, how in (("exact", {}), ("alone", {"precision": "bf16"})):
        execute(learned(tmp_path, **how), tmp_path / run)
    for engine, how in ENGINES.items():
        (tmp_path / engine).mkdir()
        assert launch(tmp_path / engine, learned(tmp_path, precision="bf16", **how)).returncode == 4
    losses = [[event["loss"] for event in events(tmp_path / run)] for run in ("exact", "alone", *ENGINES)]
    for several in zip(*losses, strict=True):
        assert max(several) - min(several) < 0.02 * several[0]
