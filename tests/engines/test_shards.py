"""Folders of parts: what is read from them, and what is refused; the loss scale; who may train together."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata
from torch.distributed.checkpoint.state_dict_saver import save

import sprunec
from sprunec.engines.checkpoints import Saves, _digest
from sprunec.engines.device import Place
from sprunec.engines.nonfinite import INTERVAL, LossScale
from sprunec.engines.processes.distributed import lost
from sprunec.engines.processes.launch import exit_code
from sprunec.engines.processes.world import World
from sprunec.engines.shards import read_shards, shard_sizes
from sprunec.errors import InputError, PassError
from sprunec.execution.ranks import check_shares
from tests.helpers.small_plans import plan, write

TENSORS = {"model/a": torch.arange(6.0).view(2, 3), "optimizer/0/step": torch.tensor(3.0)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that one process has written."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(dict(TENSORS), checkpoint_id=str(tmp_path / "save"), no_dist=True)
    return tmp_path / "save"


def test_what_is_written_is_read(folder: Path) -> None:
    sizes = {name: tuple(about.size) for name, about in shard_sizes(folder).items()}
    assert sizes == {"model/a": (2, 3), "optimizer/0/step": ()}
    found = {name: torch.empty(size) for name, size in sizes.items()}
    read_shards(folder, found)
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


class Runs:
    """Calls something when it is unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("was-here"),)


@pytest.mark.parametrize("kind", ["runs", "bytes", "elsewhere", "foreign", "torn"])
def test_an_index_that_is_none_is_refused_and_nothing_runs(
    kind: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    index = folder / ".metadata"
    found = pickle.loads(index.read_bytes())
    if kind == "runs":
        found.planner_data = Runs()
    if kind == "bytes":  # torch would read such an entry without weights_only
        found.state_dict_metadata["model/a"] = BytesStorageMetadata()
    if kind == "elsewhere":
        next(iter(found.storage_data.values())).relative_path = "../other"
    content = pickle.dumps({"a": 1} if kind == "foreign" else found)
    index.write_bytes(content[: len(content) // 2] if kind == "torn" else content)
    with pytest.raises(PassError, match=r"\.metadata is no index of a save: .*; remove "):
        shard_sizes(folder)
    with pytest.raises(PassError):
        read_shards(folder, {"model/a": torch.empty(2, 3)})
    assert not (tmp_path / "was-here").exists()


def test_a_damaged_folder_is_not_taken_for_good(folder: Path, tmp_path: Path) -> None:
    told: list[str] = []
    torch.save({"event": {"step": 4}}, folder / "rest.pt")
    partial = tmp_path / "partial"
    partial.mkdir()
    whole = folder.rename(partial / f"step-000000004-{_digest(folder)}")
    saves = Saves(partial, 5, lambda: False, tell=told.append)
    assert saves.latest() == {"event": {"step": 4}, "shards": whole}
    part = next(whole.glob("*.distcp"))
    part.write_bytes(part.read_bytes()[:-1])
    assert saves.latest() is None
    assert told == [f"{whole} is damaged, and is not used"]


@pytest.mark.parametrize("kind", ["folder in it", "link to nowhere", "empty"])
def test_what_is_no_save_is_left_aside(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "step-000000004-0123"
    if kind == "link to nowhere":
        path.symlink_to(tmp_path / "nowhere")
    else:
        path.mkdir()
    if kind == "folder in it":
        (path / "more").mkdir()
    assert Saves(tmp_path, 1, lambda: False).latest() is None


@pytest.mark.parametrize("left", ["file", "folder"])
def test_what_a_killed_run_left_half_written_is_in_nobodys_way(left: str, tmp_path: Path) -> None:
    aside = tmp_path / "save.writing"
    if left == "file":
        aside.write_text("half")
    else:
        aside.mkdir()
        (aside / "__0_0.distcp").write_text("half")
    saves = Saves(tmp_path, 1, lambda: False)
    saves.after_step(1, 9, lambda: {"step": 1})
    assert saves.latest() == {"step": 1}
    assert [path.suffix for path in tmp_path.iterdir()] == [".pt"]


def test_the_loss_scale_halves_at_once_and_doubles_late() -> None:
    scale = LossScale(64.0, enabled=True)
    scale.update(finite=False)
    assert scale.value == 32.0
    for _ in range(INTERVAL - 1):
        scale.update(finite=True)
    again = LossScale(1.0, enabled=True)
    again.load_state_dict(scale.state_dict())
    assert again.value == 32.0
    again.update(finite=True)
    assert again.value == 64.0
    off = LossScale(64.0, enabled=False)
    off.update(finite=False)
    assert (off.value, off.state_dict()) == (1.0, {})


@pytest.mark.parametrize(
    ("size", "parts", "fits"), [(2, 1, True), (2, 2, True), (4, 1, True), (3, 1, False), (4, 2, 0)]
)
def test_batches_are_divided_equally_or_not_at_all(size: int, parts: int, fits: bool, tmp_path: Path) -> None:
    content = plan({"pass": "train", "steps": 1, "accumulate": parts})
    graph = sprunec.lower(sprunec.read_plan(write(tmp_path, content)))
    if fits:
        check_shares(graph, size)
        return
    with pytest.raises(InputError, match=f"a multiple of {size * parts}, or start another number"):
        check_shares(graph, size)


@pytest.mark.parametrize("device", ["cuda:1", "mps"])
def test_one_device_is_not_shared(device: str) -> None:
    world = World()
    world.size, world.local_rank = 2, 1
    with pytest.raises(InputError, match="each process takes its own"):
        Place.of(device, "fp32", world)


def test_a_lost_process_is_told_from_other_errors() -> None:
    raw = "[/a/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:1: Connection reset by peer. This is typical"
    words = lost(RuntimeError(raw))
    assert words is not None and words.startswith("lost touch with another process (Read error [127.0.0.1]:1: Conn")
    assert "pair.cc" not in words and "typical" not in words
    assert lost(RuntimeError("out of memory")) is None


@pytest.mark.parametrize(
    ("codes", "code"), [({0: 4}, 4), ({0: 130, 1: 1}, 130), ({0: -9, 1: 1}, 1), ({1: 1}, 1), ({0: 3}, 3)]
)
def test_exit_code_is_rank_0s(codes: dict[int, int], code: int) -> None:
    assert exit_code(codes) == code
