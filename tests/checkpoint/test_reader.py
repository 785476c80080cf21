"""Checkpoints read tensor by tensor: only headers are read to know them, and what is asked for is what was saved."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sprunec.checkpoint import reader as tensors_module
from sprunec.checkpoint.layouts import weight_files
from sprunec.checkpoint.pt_header import Storage, Unknown, View, _stored, read_pt
from sprunec.checkpoint.reader import open_tensors, read_state
from sprunec.checkpoint.safetensors_file import read_safetensors
from sprunec.checkpoint.writer import as_outputs
from sprunec.errors import InputError
from sprunec.graph.inspect import inspect_model
from tests.conftest import tiny_config, tiny_model

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16]
DTYPES += [torch.int8, torch.uint8, torch.bool]
State = dict[str, torch.Tensor]


def odd_state() -> State:
    whole = torch.arange(60.0).reshape(5, 12)
    state = {str(dtype): torch.arange(7).to(dtype) for dtype in DTYPES}
    state |= {"view": whole[1:4, 2:9:3], "transposed": whole.T, "again": whole, "scalar": torch.tensor(3.5)}
    return state | {"empty": torch.empty(0, 4), "parameter": torch.nn.Parameter(torch.ones(2, 3))}


def equal(left: Any, right: State) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) and left[name].dtype == right[name].dtype for name in right
    )


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor may be read, by torch neither."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("data was read")

    monkeypatch.setattr("sprunec.checkpoint.reader.read_into", refuse)
    monkeypatch.setattr(torch, "load", refuse)


def test_a_pt_is_read_as_torch_reads_it_views_and_shared_storages_too(tmp_path: Path) -> None:
    path, state = tmp_path / "odd.pt", odd_state()
    torch.save(state, path)
    tensors = open_tensors(path)
    assert equal(tensors, state)
    assert tensors.shapes() == {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert tensors.dtype("torch.bfloat16") == torch.bfloat16
    assert equal(read_state(path), torch.load(path, weights_only=True))
    assert all(not isinstance(place, torch.Tensor) for place in tensors.places.values())


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_shapes_need_no_data(tmp_path: Path, no_data: None, suffix: str) -> None:
    path, state = tmp_path / f"model.{suffix}", tiny_model().state_dict()
    if suffix == "pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    assert open_tensors(path).shapes() == {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert inspect_model(path)["parameters"]["total"] == tiny_config().parameters()
    with pytest.raises(AssertionError, match="data was read"):
        open_tensors(path)["input_embedding.weight"]


def test_writing_to_a_tensor_leaves_its_file(tmp_path: Path) -> None:
    for path, save in ((tmp_path / "a.pt", torch.save), (tmp_path / "a.safetensors", save_file)):
        save({"w": torch.ones(3)}, path)
        tensors = open_tensors(path)
        tensors["w"].zero_()
        assert tensors["w"].tolist() == [1, 1, 1]


def test_what_is_read_whole_does_not_hang_on_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.ones(3)}, path)
    state = read_state(path)
    with path.open("r+b") as file:
        file.seek(-12, 2)
        file.write(bytes(12))
    assert state["w"].tolist() == [1, 1, 1]
    assert open_tensors(path)["w"].tolist() == [0, 0, 0]


def test_an_unaligned_file_is_read(tmp_path: Path) -> None:
    values = torch.arange(5, dtype=torch.float32)
    header = json.dumps({"w": {"dtype": "F32", "shape": [5], "data_offsets": [0, 20]}}).encode()
    header += b" " * (3 - len(header) % 4 + 4)
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + values.numpy().tobytes())
    assert read_safetensors(path)["w"].start % 4 == 3
    assert torch.equal(open_tensors(path)["w"], values)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [5], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [4], "data_offsets": [-4, 12]},
    ],
)
def test_a_header_that_cannot_be_is_refused(tmp_path: Path, entry: dict[str, Any]) -> None:
    header = json.dumps({"w": entry}).encode()
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        open_tensors(path)


def archive(path: Path, pickled: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x/data.pkl", pickled)
    return path


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02cos\nmkdir\nX\x08\x00\x00\x00explodedq\x00\x85R.",  # a call
        b"\x80\x02}r\xff\xff\xff\x7f.",  # a memo of two billion entries
        b"\x80\x02}(X\x01\x00\x00\x00aK\x01u.",  # a number
        b"\x80\x02]q\x00.",
        b"\x80\x02",
        b"",
    ],
)
def test_what_is_no_plain_state_dict_is_left_to_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pickled: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Unknown):
        read_pt(archive(tmp_path / "x.pt", pickled))
    with pytest.raises(InputError):
        open_tensors(tmp_path / "x.pt")
    assert not Path("exploded").exists()


@pytest.mark.parametrize(
    "view",
    [
        View(Storage("F32", 0, 10), 6, (5,), (1,)),
        View(Storage("F32", 0, 10), 0, (2, 6), (6, 1)),
        View(Storage("F32", 0, 10), 0, (2,), (10,)),
        View(Storage("F32", 0, 10), -1, (2,), (1,)),
        View(Storage("F32", 0, 10), 0, (2,), (1, 1)),
    ],
)
def test_a_view_may_not_leave_its_storage(view: View) -> None:
    with pytest.raises(Unknown):
        _stored(Path("x.pt"), view)


def test_a_directory_stands_for_its_weights(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / "model.pt")
    assert weight_files(tmp_path) == [tmp_path / "model.pt"]
    assert open_tensors(tmp_path)["w"].tolist() == [1]
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]


def test_tensors_are_chosen_and_renamed_without_reading(tmp_path: Path, no_data: None) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(1), "b": torch.ones(2)}, path)
    tensors = open_tensors(path)
    assert "a" in tensors and "c" not in tensors
    assert tensors.dtypes() == {"a": "float32", "b": "float32"}
    assert as_outputs(tensors)["b"].shape == (2,)
    assert tensors.only(["b", "c"]).shapes() == {"b": (2,)}
    assert tensors.renamed({"b": "new"}).shapes() == {"new": (2,)}


def test_rows_of_a_tensor_with_strides_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may lie between each other, so that each chunk would read all of it."""
    whole = torch.arange(60.0).reshape(5, 12)
    torch.save({"transposed": whole.T, "part": whole[1:4, 2:9:3]}, tmp_path / "a.pt")
    tensors, reads = open_tensors(tmp_path / "a.pt"), []
    read_into = tensors_module.read_into
    monkeypatch.setattr(tensors_module, "read_into", lambda *some: (reads.append(some[0]), read_into(*some)))
    for name, wanted in (("transposed", whole.T), ("part", whole[1:4, 2:9:3])):
        rows = [tensors.rows(name, [number]) for number in range(len(wanted))]
        assert torch.equal(torch.cat(rows), wanted)
    assert len(reads) == 2


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("read", [lambda t: t["w"], lambda t: t.copy("w"), lambda t: t.rows("w", range(900, 1000))])
def test_a_file_that_has_become_shorter_says_so(tmp_path: Path, suffix: str, read: Any) -> None:
    path = tmp_path / f"a.{suffix}"
    (torch.save if suffix == "pt" else save_file)({"w": torch.ones(1000, 50)}, path)
    tensors = open_tensors(path)
    os.truncate(path, 5000)
    with pytest.raises(OSError, match="it has become shorter while it was read") as caught:
        read(tensors)
    assert caught.value.filename == str(path)
