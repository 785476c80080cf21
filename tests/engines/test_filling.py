"""Empty models get their weights from files: each rank reads the rows that it keeps, and no others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sprunec.checkpoint.reader import open_tensors
from sprunec.checkpoint.writer import write_state
from sprunec.engines.torch_engine import TorchEngine
from sprunec.errors import InputError
from sprunec.families.base_config import everything
from sprunec.families.cpm_ant.config import ModelConfig as AntConfig
from sprunec.families.huggingface.transformers_config import TransformersConfig
from sprunec.families.model_directory import save_model
from sprunec.models.meta_models import empty_model
from tests.engines.test_loop import CPU
from tests.helpers.causal_lms import GROUPED, WIDE
from tests.helpers.small_plans import MODEL

ROOT = Path(__file__).parents[2]
CONFIGS: dict[str, Any] = {
    "cpm-ant": AntConfig.from_dict(MODEL),
    "llama": TransformersConfig.from_source({"model_type": "llama", **GROUPED, **WIDE}),
}


def saved(folder: Path, name: str, dtype: torch.dtype = torch.float32) -> Any:
    config, draw = CONFIGS[name], torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=draw).to(dtype) for name, shape in config.tensors().items()}
    save_model(folder, config, everything(config), state)
    return config


@pytest.mark.parametrize(("name", "ranks"), [pytest.param("cpm-ant", 2, marks=pytest.mark.slow), ("llama", 3)])
def test_each_rank_reads_its_own_rows_alone(name: str, ranks: int, tmp_path: Path) -> None:
    """Stored in half precision: every byte is read by one rank, and half of a float32's."""
    config = saved(tmp_path, name, torch.bfloat16)
    command = [sys.executable, "-m", "tests.helpers.rows_read", str(tmp_path), str(ranks)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=True)
    found = json.loads(done.stdout)
    assert found["equal"]
    assert found["read"] == [2 * numbers for numbers in found["numbers"]]
    assert sum(found["numbers"]) == config.parameters()
    assert max(found["numbers"]) < 1.1 * config.parameters() / ranks


@pytest.mark.parametrize(("dtype", "kept"), [(torch.float32, torch.float32), (None, torch.bfloat16)])
def test_a_model_is_kept_in_what_is_asked_for_or_as_it_is_stored(dtype: Any, kept: torch.dtype, tmp_path: Path) -> None:
    config, tensors = saved(tmp_path, "llama", torch.bfloat16), open_tensors(tmp_path)
    model = CPU.load(empty_model(config), tensors, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {kept}
    assert all(torch.equal(tensor, tensors[name].to(kept)) for name, tensor in model.state_dict().items())


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    config, tensors = saved(tmp_path / "one", "llama"), dict(open_tensors(tmp_path / "one"))
    (tmp_path / "other").mkdir()
    write_state(tensors | {"model.norm.weight": torch.ones(47)}, tmp_path / "other")
    with pytest.raises(
        InputError, match=r"other/model.safetensors: .*norm.weight is \[47\] and the config says \[48\]"
    ):
        TorchEngine(CPU.place).load(empty_model(config), open_tensors(tmp_path / "other"))
