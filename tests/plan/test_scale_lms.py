"""What training models of transformers is said to cost, against what it costs."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sprunec.data.compared import random_batch
from sprunec.engines.device import Place
from sprunec.engines.torch_engine import TorchEngine
from sprunec.families.cards import read_config
from sprunec.families.huggingface.transformers_config import TransformersConfig
from sprunec.models.meta_models import empty_model, traced
from sprunec.plan.plan import read_plan
from sprunec.plan.scale import Setting, block_activations, cost, losses, plan_costs
from sprunec.rewrite.gating import insert_gates
from tests.helpers.small_plans import plan, write
from tests.plan.test_scale import ROOT, ROWS, kept_for_backward

COLUMNS = 128
GATED: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 512, "max_position_embeddings": 256,
}  # fmt: skip
PLAIN = {key: value for key, value in GATED.items() if key not in ("num_key_value_heads", "head_dim")}
OLD = {"n_positions": 256, "n_embd": 128, "n_head": 8, "n_inner": 512, "n_layer": 3, "vocab_size": 512}
# By class: its sizes, and what is kept at least and at most, as a share of what is computed. Norms of queries and keys
# are not counted, nor those behind a sublayer: both weigh much in a model as narrow as these.
FAMILIES: dict[str, tuple[dict[str, Any], float, float]] = {
    "llama": (GATED, 0.8, 1.25),
    "qwen3": (GATED, 0.8, 1.4),
    "gemma3_text": (GATED | {"query_pre_attn_scalar": 16}, 0.8, 1.7),
    "gpt2": (OLD, 0.8, 1.25),
    "gpt_neox": (PLAIN, 0.6, 1.0),
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_activations_are_about_what_is_computed(name: str, recompute: bool, precision: str) -> None:
    """With gates; no scores of all pairs of positions, which torch's own attention does not keep."""
    sizes, least, most = FAMILIES[name]
    config = TransformersConfig.from_source({"model_type": name} | sizes)
    model = empty_model(config)
    insert_gates(model, traced(model, config), ("head", "dim_ff"))
    draw = torch.Generator().manual_seed(0)
    state = {name: 0.02 * torch.randn(shape, generator=draw) for name, shape in config.tensors().items()}
    model.load_state_dict(state, assign=True)
    engine, data = TorchEngine(Place.of("cpu", precision), recompute=recompute), random_batch(config, ROWS, COLUMNS)
    kept = kept_for_backward(model, engine, data)
    setting = Setting(sequences=ROWS, positions=COLUMNS, precision=precision, recompute=recompute)
    found, again = cost(config, setting), block_activations(config, 0, setting, scores=False) if recompute else 0.0
    share = kept / (found.activations + found.working - again - losses(config, setting))
    # of what is counted outside of blocks, gradients of the last hidden states are not there yet
    assert least * (0.6 if recompute else 1.0) < share < most


LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def test_grouped_queries_gates_and_large_vocabularies_are_counted() -> None:
    """Llama 3.1 8B, by the sizes that its paper gives."""
    config = TransformersConfig.from_source(LLAMA_8B)
    block = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096
    outside = 2 * 128256 * 4096 + 4096
    assert config.parameters() == 32 * block + outside == 8_030_261_248
    found = cost(config, Setting(8, True, recompute=True, precision="bf16", sequences=4, positions=512))
    assert found.state == 16 * config.parameters() / 8
    assert found.working == 8 * outside + 8 * block
    assert found.traffic == pytest.approx(7 / 8 * (8 * outside + 8 * 32 * block))
    fewer = cost(TransformersConfig.from_source(LLAMA_8B | {"vocab_size": 32000}), Setting(sequences=4))
    assert fewer.activations == cost(config, Setting(sequences=4)).activations  # logits are there a chunk at a time


def test_a_dry_run_says_what_the_page_says(tmp_path: Path) -> None:
    """Of files that have a header and nothing else."""
    config, names, end = TransformersConfig.from_source(LLAMA_8B), dict[str, Any](), 0
    for name, shape in config.tensors().items():
        start, end = end, end + 2 * math.prod(shape)
        names[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(names).encode()
    (tmp_path / "dense").mkdir()
    (tmp_path / "dense/config.json").write_text(json.dumps(LLAMA_8B))
    with (tmp_path / "dense/model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
    engine = {"precision": "bf16", "activation_checkpointing": True}
    content = plan({"pass": "finetune", "steps": 1}, model={"path": "dense"}, engine=engine)
    content["data"] |= {"max_length": 512, "batch_size": 4 * 8}
    found = plan_costs(read_plan(write(tmp_path, content)), 8)
    page = (ROOT / "docs/scale.md").read_text()
    for row, name in zip(found, ("DDP", "FSDP2"), strict=True):
        tables = [line for line in rows_of(page, "Llama 3.1 8B") if line[1] == name]
        assert [line[5] for line in tables] == [f"{row[what] / 1e9:.1f}" for what in ("memory", "traffic")]


def rows_of(page: str, model: str) -> list[list[str]]:
    """The cells of a model's rows in both tables; only the first of them has its name."""
    found, named = list[list[str]](), ""
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        named = cells[0] or named
        found += [cells] if named.startswith(model) else []
    return found


@pytest.mark.slow
@pytest.mark.parametrize("family", ["cpm-ant", "llama"])
def test_a_rank_takes_what_is_computed_and_loads_its_own_shards_alone(family: str) -> None:
    command = [sys.executable, "benchmarks/sharding.py", "--family", family]
    command += ["--width", "512", "--layers", "12", "--steps", "2", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=True)
    found = json.loads(done.stdout)
    config, rows = read_config(found["config"]), found["modes"]
    for mode, setting in (("one process", Setting()), ("DDP", Setting(2)), ("FSDP2", Setting(2, True))):
        wanted = cost(config, setting)
        assert rows[mode]["state"] == pytest.approx(wanted.state, rel=0.01)
        assert rows[mode]["traffic"] == pytest.approx(wanted.traffic, rel=0.01)
        assert 0.75 < rows[mode]["peak"] / (wanted.state + wanted.working) < 1.25
    whole, shards = (rows[mode]["loading"] for mode in ("one process", "FSDP2"))
    assert whole == pytest.approx(4 * config.parameters(), rel=0.1)
    assert shards < 0.6 * whole
    assert rows["FSDP2"]["saving"] < 0.3 * whole  # a tensor after the other
