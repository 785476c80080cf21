"""Small real models for every room's tests."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from sprunec.families.cpm_ant.blocks import build, initialize
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.families.cpm_ant.model import CPMAnt
from sprunec.formats import huggingface
from sprunec.passes.measuring import evaluate, measure_speed
from tests.helpers import forked_readers
from tests.helpers.hub import SMOLLM2, cache_config
from tests.helpers.small_plans import TINY, execute, guide

# BMTrain has wheels up to Python 3.11, and is no part of what all tests need.
collect_ignore = [] if find_spec("bmtrain") else ["engines/test_bmtrain.py", "engines/test_bmtrain_blocks.py"]

AS_IT_IS = {"column": "", "between": "", "packing": "", "template": ""}  # what most data leaves out of a data pass


def tiny_config(**changes: Any) -> ModelConfig:
    return ModelConfig.from_dict(TINY | changes)


def kept_layer(
    heads: Sequence[int] | None, dim_head: Sequence[int] | None, dim_ff: Sequence[int] | None
) -> dict[str, tuple[int, ...]]:
    """What is kept of one layer; None: its sublayer is absent."""
    given = {"head": heads, "dim_head": dim_head, "dim_ff": dim_ff}
    return {unit: tuple(indices) for unit, indices in given.items() if indices is not None}


def tiny_model(seed: int = 0, **changes: Any) -> CPMAnt:
    """A small CPM-Ant with embeddings and head of std 1, so that logits are of the size that trained ones have."""
    model = build(tiny_config(**changes))
    initialize(model, seed)
    with torch.no_grad():
        for table in (model.prompt_embedding, model.segment_embedding, model.input_embedding, model.lm_head):
            if table is not None:
                table.weight.mul_(50.0)
    return model.eval()


def random_batch(
    batch: int = 2, text: int = 11, *, context: bool | None = None, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Inputs of `CPMAnt.forward` for TINY, the last row padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    prompt = TINY["prompt_length"]
    words = torch.randint(1, TINY["vocab_size"], (batch, text), generator=generator)
    flags = torch.randint(0, 2, (batch, text), generator=generator).bool() if context is None else context
    columns = prompt + text
    length = torch.full((batch,), columns)
    length[-1] -= 3 if batch > 1 else 0
    segment = torch.full((batch, columns), 2)
    segment[:, :prompt] = 0
    visible = torch.ones(batch, columns, dtype=torch.bool)
    visible[:, prompt:] = flags
    return {
        "input": torch.cat([(torch.arange(prompt) + 2 * prompt).expand(batch, -1), words], 1),
        "length": length,
        "context": visible,
        "segment": segment,
        "span": torch.zeros(batch, columns, dtype=torch.long),
    }


# The models are small: a second thread gains nothing, and waits for a core that something else may be using.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the commands that tests start


@pytest.fixture(autouse=True, scope="session")
def _quick_runs() -> Iterator[None]:
    """Open what runs write in forked processes; measure speeds of small models, and let them write, no longer."""
    with pytest.MonkeyPatch.context() as patched:
        forked_readers.prepare()
        patched.setattr(huggingface, "subprocess", forked_readers)
        patched.setattr(measure_speed, "SECONDS", 0.0)
        patched.setattr(evaluate, "WRITTEN_LENGTH", 12)
        yield


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUT of the guide's scheme in small."""
    directory = tmp_path_factory.mktemp("guide")
    execute(guide(), directory)
    return directory / "out"


@pytest.fixture
def cached_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the hub's cache have the config of the model that a shipped plan names, and no weights."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    cache_config(tmp_path / "hub", *SMOLLM2)
