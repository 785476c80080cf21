"""A directory opened by `transformers`' own loader with weights that stay in their files, beside one read whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sprunec.checkpoint import file_tensors
from sprunec.checkpoint.file_tensors import FileTensor
from sprunec.checkpoint.layouts import INDEX, WEIGHTS
from sprunec.checkpoint.reader import open_tensors
from sprunec.checkpoint.writer import write_state
from sprunec.families.huggingface.stock_reader import opened, said
from tests.families.huggingface.test_ragged_files import OTHERS, cut_to, ragged
from tests.helpers.causal_lms import CONFIGS, causal_lm, token_ids
from tests.helpers.cut_lms import saved

SHARD_BYTES = 30_000


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


def directory(name: str, path: Path, **changes: Any) -> Path:
    """A tiny model in bfloat16, in several files."""
    model = causal_lm(name, **changes).to(torch.bfloat16)
    model.save_pretrained(path)
    write_state({key: value.clone() for key, value in open_tensors(path).items()}, path, SHARD_BYTES)
    (path / WEIGHTS).unlink()
    assert len(set(json.loads((path / INDEX).read_text())["weight_map"].values())) > 1
    return path


def both(path: Path, own: bool = False) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """What is said either way, of texts that are unlike in length; and the model whose weights stay in their files."""
    texts = [*token_ids(1, 11), *token_ids(1, 17), *token_ids(1, 1)]
    models = [opened(path, own=own, whole=whole) for whole in (True, False)]
    whole, parts = (said(model, texts, 4) for model in models)
    return whole, parts, models[1]


@pytest.mark.parametrize("tied", [False, True], ids=["head of its own", "tied"])
@pytest.mark.parametrize("name", CONFIGS)
def test_weights_in_their_files_say_the_same_to_the_bit(name: str, tied: bool, tmp_path: Path) -> None:
    whole, parts, model = both(directory(name, tmp_path, tie_word_embeddings=tied))
    assert all(isinstance(parameter, FileTensor) for parameter in model.parameters())
    assert [len(rows) for rows in whole["logits"]] == [11, 17, 1]
    assert all(map(torch.equal, whole["logits"], parts["logits"]))
    assert whole["gap"] == parts["gap"] < 1e-4 * max(float(rows.abs().max()) for rows in whole["logits"])


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma3_text"])
def test_layers_of_a_class_of_their_own_do_too(name: str, tmp_path: Path) -> None:
    depth = {"n_layer": 5} if name == "gpt2" else {"num_hidden_layers": 5}
    _, config, _ = saved(name, tmp_path / "dense", torch.bfloat16, **depth, **OTHERS.get(name, {}))
    cut_to(tmp_path, config, ragged(config))
    whole, parts, model = both(tmp_path / "out", own=True)
    assert type(model).__name__ == "PrunedForCausalLM"
    assert all(isinstance(parameter, FileTensor) for parameter in model.parameters())
    assert all(map(torch.equal, whole["logits"], parts["logits"])) and whole["gap"] == parts["gap"]


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "in parts"])
def test_what_a_class_would_draw_at_random_or_pass_over_is_refused(whole: bool, tmp_path: Path) -> None:
    path = directory("llama", tmp_path)
    state, gone = {key: value.clone() for key, value in open_tensors(path).items()}, "model.layers.1.mlp.up_proj.weight"
    for file in path.glob("model*"):
        file.unlink()
    write_state({key: value for key, value in state.items() if key != gone}, path)
    with pytest.raises(ValueError, match=f"missing keys: {gone}"):
        opened(path, own=False, whole=whole)
    write_state(state | {"model.layers.2.mlp.up_proj.weight": state[gone]}, path)
    with pytest.raises(ValueError, match=r"unexpected keys: model\.layers\.2\.mlp\.up_proj\.weight"):
        opened(path, own=False, whole=whole)


def test_rows_that_are_looked_up_and_parts_of_a_matrix_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    state = {"table.weight": torch.randn(50, 8).bfloat16(), "head.weight": torch.randn(50, 8).bfloat16()}
    write_state(state | {"head.bias": torch.randn(50).bfloat16()}, tmp_path)
    kept, reads, read = (
        {key: value.float() for key, value in open_tensors(tmp_path).items()},
        list[Any](),
        FileTensor.read,
    )
    model = nn.ModuleDict({"table": nn.Embedding(50, 8), "head": nn.Linear(8, 50)})
    model.load_state_dict(file_tensors.file_tensors(tmp_path), assign=True)
    monkeypatch.setattr(file_tensors, "CHUNK_BYTES", 20 * 8 * 4)
    monkeypatch.setattr(FileTensor, "read", lambda self, rows=...: reads.append((self._name, rows)) or read(self, rows))
    with torch.no_grad():
        found = model["head"](model["table"](torch.tensor([[7, 3, 7]])))
        wanted = nn.functional.linear(kept["table.weight"][[7, 3, 7]][None], kept["head.weight"], kept["head.bias"])
    assert (found - wanted).abs().max() < 1e-6
    assert [(name, rows.tolist() if isinstance(rows, torch.Tensor) else rows) for name, rows in reads] == [
        ("table.weight", [3, 7]),
        ("head.bias", ...),
        *(("head.weight", slice(first, first + 20)) for first in (0, 20, 40)),
    ]


def test_operations_of_any_kind_take_the_numbers(tmp_path: Path) -> None:
    write_state({"w": torch.arange(6.0).view(2, 3)}, tmp_path)
    found, wanted = file_tensors.file_tensors(tmp_path)["w"], torch.arange(6.0).view(2, 3)
    assert found.shape == (2, 3) and found.dtype == torch.float32 and found.numel() == 6 and len(found) == 2
    for of in (lambda w: w + 1, lambda w: torch.ones(1, 2) @ w, lambda w: w.T, lambda w: w[1], lambda w: w.double()):
        assert torch.equal(of(found), of(wanted)) and of(found).dtype == of(wanted).dtype
    assert torch.equal(torch.ops.aten.addmm(torch.zeros(3), torch.ones(1, 2), found), torch.ones(1, 2) @ wanted)
