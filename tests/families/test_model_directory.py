"""Tensors in and out of files, and files that are refused."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sprunec.checkpoint.reader import open_tensors, read_state
from sprunec.checkpoint.writer import write_state
from sprunec.errors import InputError
from sprunec.families.base_config import everything
from sprunec.families.model_directory import fill, read_config, read_kept, save_model
from sprunec.models.loading import load, load_model
from sprunec.models.meta_models import empty_model
from tests.conftest import TINY, random_batch, tiny_config, tiny_model

State = dict[str, torch.Tensor]
SHARDED = "model.safetensors.index.json"


def state() -> State:
    return tiny_model().state_dict()


def equal(left: State, right: State) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def complaint(action: Callable[[], Any], file: Path) -> str:
    with pytest.raises(InputError) as caught:
        action()
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.file == str(file)
    assert caught.value.exit_code == 3
    return diagnostic.message


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_safetensors_keep_every_bit_and_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in state().items()}
    write_state(tensors, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    read = read_state(tmp_path)
    assert equal(read, tensors)
    assert equal(read_state(tmp_path / "model.safetensors"), tensors)
    assert {tensor.dtype for tensor in read.values()} == {dtype}


def test_above_the_limit_shards_are_written_with_an_index(tmp_path: Path) -> None:
    tensors, limit = state(), 16_000
    write_state(tensors, tmp_path, shard_bytes=limit)
    index = json.loads((tmp_path / SHARDED).read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert index["weight_map"].keys() == tensors.keys()
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    for file in files:
        inside = [tensors[name].nbytes for name, shard in index["weight_map"].items() if shard == file]
        assert sum(inside) <= limit or len(inside) == 1
    assert equal(read_state(tmp_path), tensors)
    assert open_tensors(tmp_path).shapes() == {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def test_views_are_written_as_what_they_show(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    write_state({"a": whole[:, 1:3], "b": whole.T}, tmp_path)
    read = read_state(tmp_path)
    assert torch.equal(read["a"], whole[:, 1:3])
    assert torch.equal(read["b"], whole.T)


def test_a_pt_state_dict_is_read(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "model.pt")
    assert equal(read_state(tmp_path / "model.pt"), state())
    assert open_tensors(tmp_path / "model.pt").shapes() == {
        name: tuple(tensor.shape) for name, tensor in state().items()
    }


@pytest.mark.parametrize("form", ["torch", "plain pickle", "inside a state dict"])
def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bomb.pt"
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    else:
        torch.save(Bomb() if form == "torch" else {"a": torch.ones(1), "b": Bomb()}, path)
    said = complaint(lambda: read_state(path), path)
    plain = "this is a Python pickle, not a PyTorch checkpoint"
    assert said == plain if form == "plain pickle" else "cannot be read as a checkpoint" in said
    assert "weights_only" not in said
    assert "\x1b" not in said
    assert not Path("exploded").exists()


@pytest.mark.parametrize("content", [[torch.ones(2)], {"model": {"a": torch.ones(2)}}, {"step": 3}, torch.ones(2)])
def test_a_pt_that_is_no_state_dict_is_refused(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "model.pt"
    torch.save(content, path)
    said = complaint(lambda: read_state(path), path)
    inside = "; 'model' in it may be one" if isinstance(content, dict) and "model" in content else ""
    assert said == f"is no state dict: it must map names to tensors{inside}"


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not tensors", b"\xff" * 64])
def test_damaged_files_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    words = {b"": "empty", b"not tensors": "plain text", b"\xff" * 64: "binary data of no kind that is known here"}
    wanted = "a PyTorch checkpoint" if name == "x.pt" else "a safetensors file"
    told = complaint(lambda: read_state(path), path)
    if (name, content) == ("x.safetensors", b"\xff" * 64):
        assert "this is no whole safetensors file: its header would be" in told
    else:
        assert told == f"this is {words[content]}, not {wanted}"


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    for path, save in ((tmp_path / "x.pt", torch.save), (tmp_path / "x.safetensors", save_file)):
        save(state(), path)
        path.write_bytes(path.read_bytes()[:-1000])
        assert "cannot be read as a checkpoint" in complaint(lambda path=path: read_state(path), path)


NO_INDEX = "is no index of shards"


def test_missing_files_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pt", tmp_path / "none.safetensors", tmp_path / "none"):
        assert complaint(lambda path=path: read_state(path), path) == "there is no such file"
    assert complaint(lambda: read_state(tmp_path), tmp_path) == "has no weights: it is empty"


@pytest.mark.parametrize("content", ["[]", "{", '{"weight_map": 3}', "{}"])
def test_a_broken_index_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / SHARDED).write_text(content)
    told = complaint(lambda: read_state(tmp_path), tmp_path / SHARDED)
    assert told == ("this is not an index of shards: from here on it is no JSON" if content == "{" else NO_INDEX)


def test_an_index_may_not_point_out_of_its_directory(tmp_path: Path) -> None:
    (tmp_path / SHARDED).write_text(json.dumps({"weight_map": {"a": "../a.safetensors"}}))
    assert "outside its own directory" in complaint(lambda: read_state(tmp_path), tmp_path / SHARDED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_embedding.weight": None}, "no tensor input_embedding.weight"),
        ({"extra": torch.ones(1)}, "extra is not in the model"),
        (
            {"segment_embedding.weight": torch.ones(6, 23)},
            "segment_embedding.weight is [6, 23] and the config says [6, 24]",
        ),
    ],
)
def test_a_state_that_does_not_fit_says_which_tensor(change: dict[str, Any], message: str) -> None:
    tensors = {name: tensor for name, tensor in (state() | change).items() if tensor is not None}
    with pytest.raises(InputError) as caught:
        fill(empty_model(tiny_config()), tensors, "ckpt.pt")
    assert caught.value.diagnostics[0].message == message
    assert caught.value.diagnostics[0].file == "ckpt.pt"


def test_the_tensor_named_is_the_first_of_the_model() -> None:
    few = {"a": torch.ones(1), "z": torch.ones(1), "m": torch.ones(1), "b": torch.ones(1), "q": torch.ones(1)}
    first = r"no tensor encoder\.layers\.0\.self_att\.layernorm_before_attention\.weight \(and 31 more\)"
    with pytest.raises(InputError, match=first + r"; a \(and 4 more\) is not in the model"):
        fill(empty_model(tiny_config()), few, "ckpt.pt")


def test_filling_takes_the_tensors_in_their_own_dtype() -> None:
    model, tensors = empty_model(tiny_config()), {name: tensor.half() for name, tensor in state().items()}
    assert all(parameter.is_meta for parameter in model.parameters())
    fill(model, tensors, "x")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}


def test_a_saved_model_loads_and_computes_the_same(tmp_path: Path) -> None:
    config, model = tiny_config(), tiny_model()
    save_model(tmp_path / "deep" / "model", config, everything(config), model.state_dict())
    loaded, batch = load(tmp_path / "deep" / "model"), random_batch()
    assert not loaded.training
    assert load_model(tmp_path / "deep" / "model").training
    with torch.no_grad():
        assert torch.equal(loaded(**batch)[0], model(**batch)[0])
    assert read_config(tmp_path / "deep" / "model") == config
    assert read_kept(tmp_path / "deep" / "model") == everything(config)


def test_a_strangers_model_py_is_never_run(tmp_path: Path) -> None:
    config = tiny_config()
    save_model(tmp_path, config, everything(config), state())
    (tmp_path / "model.py").write_text("raise SystemExit('ran')")
    assert load(str(tmp_path)).prompt_length == TINY["prompt_length"]


def test_a_directory_without_a_config_is_an_input_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        assert complaint(lambda path=path: load(path), path) == "has no config.json"


def test_a_directory_without_weights_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    assert complaint(lambda: load(tmp_path), tmp_path) == "has no weights; there is config.json"


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        json.dumps(TINY | {"dim_ff": "wide"}),
        json.dumps(TINY | {"dim_ff": -4}),
        json.dumps(TINY | {"layers": [1, 2, 3]}),
        json.dumps(TINY | {"layers": 3}),
        json.dumps(TINY | {"num_layers": 2, "mask_modules": [[False, False]]}),
        json.dumps(TINY | {"mask_modules": [[True]] * 3}),
        json.dumps(TINY | {"divisors": {"score": 3}}),
    ],
)
def test_a_config_that_is_none_is_an_input_error(tmp_path: Path, content: str) -> None:
    write_state(state(), tmp_path)
    (tmp_path / "config.json").write_text(content)
    told = complaint(lambda: load(tmp_path), tmp_path / "config.json")
    assert told.startswith("this is not a model config" if content == "{" else "is no model config: ")
    assert "supported" not in told and "unpack" not in told
