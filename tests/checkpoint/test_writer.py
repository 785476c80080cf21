"""Safetensors written as a stream: whole files that others read, and unfinished ones that nobody reads."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from sprunec.checkpoint import torch_writer as writing_pt
from sprunec.checkpoint import writer as writing
from sprunec.checkpoint.layouts import weight_files
from sprunec.checkpoint.reader import open_tensors
from sprunec.checkpoint.torch_writer import ALIGNMENT, write_pt
from sprunec.checkpoint.writer import (
    Output,
    adopt_weights,
    as_outputs,
    link_or_write,
    link_weights,
    save_pt,
    save_tensors,
    write_outputs,
    write_state,
)
from sprunec.durable import naming
from sprunec.errors import InputError, PassError
from sprunec.families.base_config import everything
from sprunec.families.model_directory import save_outputs
from tests.conftest import tiny_config, tiny_model

State = dict[str, torch.Tensor]


def mixed() -> State:
    values = torch.linspace(-3, 7, 21)
    state = {"half": values.reshape(7, 3).half(), "double": values.double() / 3, "byte": torch.arange(3).byte()}
    return state | {"brain": values.bfloat16(), "none": torch.empty(0, 3), "one": torch.tensor(4.0)}


def equal(left: State, right: State) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in right)


@pytest.mark.parametrize("chunk", [1, 20, 2**20])
def test_any_chunk_gives_a_file_that_safetensors_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(writing, "CHUNK_BYTES", chunk)
    write_state(mixed(), tmp_path)
    assert equal(load_file(tmp_path / "model.safetensors"), mixed())
    assert equal(dict(open_tensors(tmp_path)), mixed())


def test_every_tensor_starts_at_a_multiple_of_its_width(tmp_path: Path) -> None:
    write_state(mixed(), tmp_path)
    places = open_tensors(tmp_path).places
    assert all(place.start % writing.DTYPES[place.dtype].itemsize == 0 for place in places.values())


class StopWritingError(Exception):
    pass


def stopping(after: int) -> Output:
    def parts() -> Iterator[torch.Tensor]:
        yield torch.ones(after, 4)
        raise StopWritingError

    return Output((10, 4), torch.float32, parts)


@pytest.mark.parametrize("after", [0, 1, 9])
def test_a_file_that_was_not_finished_is_refused_by_everyone(tmp_path: Path, after: int) -> None:
    with pytest.raises(StopWritingError):
        write_outputs(as_outputs({"a": torch.ones(5)}) | {"w": stopping(after)}, tmp_path)
    path = tmp_path / "model.safetensors"
    with pytest.raises(SafetensorError):
        load_file(path)
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        open_tensors(path)


def test_shards_without_their_index_are_no_model(tmp_path: Path) -> None:
    outputs = as_outputs({"a": torch.ones(10), "b": torch.ones(10)}) | {"w": stopping(3)}
    with pytest.raises(StopWritingError):
        write_outputs(outputs, tmp_path, shard_bytes=40)
    assert sorted(file.name for file in tmp_path.iterdir())[0] == "model-00001-of-00003.safetensors"
    with pytest.raises(InputError, match=r"has shards, .*, and no index of them; put their index beside them, model\."):
        open_tensors(tmp_path)


def test_no_room_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = SimpleNamespace(free=100_000_000)
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda path: free)
    big = Output((50_000_000,), torch.float32, lambda: pytest.fail("it was made"))
    with pytest.raises(
        PassError, match=r"the weights need 0\.20 GB and this disk has 0\.10 GB left; make room"
    ) as found:
        write_outputs({"w": big}, tmp_path)
    assert found.value.exit_code == 1
    assert not list(tmp_path.iterdir())
    write_outputs(as_outputs({"w": torch.ones(3)}), tmp_path)


def test_outputs_must_be_the_configs_model(tmp_path: Path) -> None:
    config, state = tiny_config(), tiny_model().state_dict()
    state.pop("input_embedding.weight")
    with pytest.raises(AssertionError, match="no tensor input_embedding.weight"):
        save_outputs(tmp_path, config, everything(config), as_outputs(state))


def test_a_users_checkpoint_is_linked_under_a_models_names(tmp_path: Path) -> None:
    user, shards = tmp_path / "mine.pt", tmp_path / "shards"
    torch.save({"w": torch.ones(2)}, user)
    shards.mkdir()
    write_state({"a": torch.ones(4), "b": torch.zeros(4)}, shards, shard_bytes=16)
    for name, path in (("one", user), ("many", shards)):
        (tmp_path / name).mkdir()
        adopt_weights(path, tmp_path / name)
        assert equal(dict(open_tensors(tmp_path / name)), dict(open_tensors(path)))
        assert all(file.is_symlink() for file in (tmp_path / name).iterdir())
    assert [file.name for file in (tmp_path / "one").iterdir()] == ["model.pt"]


def test_weights_get_a_second_name_and_links_to_the_user_stay_links(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    write_state({"w": torch.ones(2)}, tmp_path / "own")
    (tmp_path / "second").mkdir()
    link_weights(tmp_path / "own", tmp_path / "second")
    assert (tmp_path / "second" / "model.safetensors").samefile(tmp_path / "own" / "model.safetensors")
    assert not (tmp_path / "second" / "model.safetensors").is_symlink()
    for name in ("user", "third"):
        (tmp_path / name).mkdir()
    adopt_weights(tmp_path / "own" / "model.safetensors", tmp_path / "user")
    link_weights(tmp_path / "user", tmp_path / "third")
    assert (tmp_path / "third" / "model.safetensors").is_symlink()
    assert open_tensors(tmp_path / "third")["w"].tolist() == [1, 1]


@pytest.mark.parametrize("shard_bytes", [2**20, 16], ids=["one file", "shards"])
def test_files_of_just_these_tensors_get_second_names(shard_bytes: int, tmp_path: Path) -> None:
    state = {"a": torch.ones(4), "b": torch.zeros(4), "c": torch.ones(2).bfloat16()}
    own, user = tmp_path / "own", tmp_path / "user"
    for folder in (own, user, *(tmp_path / name for name in ("same", "renamed", "fewer", "made", "linked"))):
        folder.mkdir()
    write_state(state, own, shard_bytes)
    outputs = as_outputs(open_tensors(own))
    link_or_write(outputs, tmp_path / "same")
    files = [path for path in weight_files(own) if path.suffix == ".safetensors"]
    assert len(files) == (1 if shard_bytes > 16 else 3)
    assert all((tmp_path / "same" / file.name).samefile(file) for file in files)
    assert equal(dict(open_tensors(tmp_path / "same")), state)
    adopt_weights(own, user)
    for name, wanted, given in (
        (
            "renamed",
            {"x": state["a"], "b": state["b"], "c": state["c"]},
            {("x" if k == "a" else k): v for k, v in outputs.items()},
        ),
        ("fewer", {"a": state["a"]}, {"a": outputs["a"]}),
        ("made", state | {"b": torch.ones(4)}, outputs | as_outputs({"b": torch.ones(4)})),
        ("linked", state, as_outputs(open_tensors(user))),
    ):
        link_or_write(given, tmp_path / name)
        assert equal(dict(open_tensors(tmp_path / name)), wanted)
        alone = name == "fewer" and shard_bytes == 16  # a shard of its own
        links = {file.stat().st_nlink for file in (tmp_path / name).glob("*.safetensors")}
        assert (links == {1}) != alone and not any(file.is_symlink() for file in (tmp_path / name).iterdir())


@pytest.mark.parametrize("entries", [1, 2**20], ids=["at its end", "in the middle"])
@pytest.mark.parametrize("save", [save_pt, save_tensors, lambda state, path: write_pt(as_outputs(state), path)])
def test_a_full_disk_is_told_with_the_file(save: Any, entries: int) -> None:
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        save({"a": torch.ones(entries)}, Path("/dev/full"))


class FailsOnce(io.RawIOBase):
    def __init__(self, at: int) -> None:
        self.left = at

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self.left -= 1
        if self.left == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return len(content)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_an_archive_that_cannot_be_closed_either_is_told_of_by_what_was_first(at: int) -> None:
    """torch closes its archive after an error, which fails too, in words of its own."""
    state = {str(number): torch.ones(9000) for number in range(3)}
    with pytest.raises(OSError, match=r"Input/output error: 'a\.pt'"), naming(Path("a.pt")):
        torch.save(state, io.BufferedWriter(FailsOnce(at)))


@pytest.mark.parametrize("chunk", [1, 20, 2**20])
@pytest.mark.parametrize("large", [1, 2**30], ids=["as if large", "small"])
def test_a_pt_is_written_in_chunks_as_torch_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, large: int
) -> None:
    monkeypatch.setattr(writing, "CHUNK_BYTES", chunk)
    monkeypatch.setattr(writing_pt, "ZIP64_FROM", large)
    path, state = tmp_path / "a.pt", mixed() | {"transposed": torch.arange(6.0).reshape(2, 3).T}
    write_pt(as_outputs(state), path)
    for options in ({}, {"mmap": True}, {"weights_only": False}):
        assert equal(torch.load(path, **{"weights_only": True} | options), state)
    assert equal(dict(open_tensors(path)), state)
    places = open_tensors(path).places.values()
    assert all(place.start % ALIGNMENT == 0 for place in places)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    write_pt(as_outputs(open_tensors(path)), tmp_path / "b.pt")
    assert (tmp_path / "b.pt").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("after", [0, 1, 9])
def test_a_pt_that_was_not_finished_is_refused(tmp_path: Path, after: int) -> None:
    with pytest.raises(StopWritingError):
        write_pt(as_outputs({"a": torch.ones(5)}) | {"w": stopping(after)}, tmp_path / "a.pt")
    with pytest.raises(InputError):
        dict(open_tensors(tmp_path / "a.pt"))


def test_what_is_written_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    """150 MB through a process that may hold 60 MB more than it has already."""
    script = """
import resource, sys, threading
from pathlib import Path
import torch
from sprunec.checkpoint.reader import open_tensors
from sprunec.checkpoint.writer import Output, as_outputs, write_outputs
from sprunec.checkpoint.torch_writer import write_pt

def held():
    found = dict(line.split(":") for line in open("/proc/self/status"))
    return int(found["RssAnon"].split()[0]) + int(found["RssFile"].split()[0])

folder, shape = Path(sys.argv[1]), (2**18, 24)
parts = lambda: (torch.ones(2**15, 24) for _ in range(8))
write_outputs({str(n): Output(shape, torch.float32, parts) for n in range(6)}, folder)
tensors, most, ended = open_tensors(folder), 0, threading.Event()

def watch():
    global most
    while not ended.wait(0.002):
        most = max(most, held())

before = held()
watching = threading.Thread(target=watch)
watching.start()
write_pt(as_outputs(tensors), folder / "whole.pt")
(folder / "again").mkdir()
write_outputs(as_outputs(open_tensors(folder / "whole.pt")), folder / "again")
ended.set()
watching.join()
print((most - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 60, done.stdout
    sizes = [path.stat().st_size for path in (tmp_path / "model.safetensors", tmp_path / "again/model.safetensors")]
    assert sizes[0] == sizes[1] > 150_000_000
    for path in tmp_path.rglob("*.*"):
        path.unlink()
