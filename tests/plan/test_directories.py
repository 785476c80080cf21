"""A plan's model named as a directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sprunec.bmcook.plans.convert import convert_plan
from sprunec.compiler.inspect import inspect_model
from sprunec.plan.bmcook_flags import Flags
from sprunec.plan.plan import check_plan, read_plan
from tests.helpers.bmcook_files import bmcook
from tests.helpers.bmcook_files import write as write_file
from tests.helpers.small_plans import EMIT, MODEL, TRAIN, artifact, execute, plan, save_weights, write

HALF = {"pass": "score-mask", "criterion": "magnitude", "unit": "head", "target": {"num_heads": 4}}
SHARDS = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A directory with a config and .bin shards."""
    hub = tmp_path / "hub"
    hub.mkdir()
    (hub / "config.json").write_text(json.dumps(MODEL))
    state = torch.load(save_weights(tmp_path / "whole.pt"), weights_only=True)
    where = {name: SHARDS["ffn" in name] for name in state}
    for shard in SHARDS:
        torch.save({name: tensor for name, tensor in state.items() if where[name] == shard}, hub / shard)
    (hub / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    return hub


def told(directory: Path, model: dict[str, Any], *passes: dict[str, Any], **flags: Any) -> list[tuple[str, str, str]]:
    path = write(directory, plan(*(passes or (HALF, EMIT)), model=model))
    found = check_plan(path, flags=Flags(**flags))[1]
    return [(each.severity, each.pointer, each.message.replace(str(directory), "~")) for each in found]


WAYS: dict[str, dict[str, Any]] = {
    "config": {"config": "hub"},
    "path": {"path": "hub"},
    "both": {"config": "hub", "checkpoint": "hub"},
    "checkpoint": {"config": MODEL, "checkpoint": "hub"},
    "index": {"config": "hub/config.json", "checkpoint": "hub/pytorch_model.bin.index.json"},
    "file": {"config": "hub/config.json", "checkpoint": "whole.pt"},
}


def test_every_way_to_name_a_directory_gives_the_same_model(hub: Path) -> None:
    small = {}
    for way, model in WAYS.items():
        assert told(hub.parent, model) == [], way
        execute(plan(HALF, EMIT, model=model), hub.parent, out=way)
        small[way] = (hub.parent / way / "model/sprunec/model.safetensors").read_bytes()
        loaded = artifact(hub.parent / way, "load")
        assert all(file.is_symlink() for file in loaded.glob("*.bin"))
        assert len(list(loaded.glob("*.bin"))) == (0 if way == "file" else 2)
    assert set(small.values()) == {small["file"]}


def test_with_another_checkpoint_only_the_config_is_the_directorys(hub: Path) -> None:
    other = save_weights(hub.parent / "other.pt", seed=1)
    read = read_plan(write(hub.parent, plan(HALF, EMIT, model={"config": "hub", "checkpoint": "other.pt"})))
    assert read.model.checkpoint == other
    assert read.model.config.to_dict()["dim_ff"] == MODEL["dim_ff"]


def test_a_directory_with_a_config_alone_is_a_new_model(hub: Path) -> None:
    for file in hub.glob("*.bin*"):
        file.unlink()
    message = "the directory ~/hub has no weights: the model is a new one"
    assert told(hub.parent, {"config": "hub"}, TRAIN) == [("warning", "/model/config", message)]
    assert [each[1] for each in told(hub.parent, {"config": "hub"})] == ["/passes/0/pass", "/model/config"]
    assert read_plan(write(hub.parent, plan(TRAIN, model={"config": "hub"}))).model.checkpoint is None
    found = told(hub.parent, {"path": "hub"}, TRAIN)
    assert found == [("error", "/model/path", "~/hub: has no weights; there is config.json")]


@pytest.mark.parametrize("way", ["path", "config"])
def test_what_is_wrong_in_a_directory_is_told_where_it_is_named(way: str, hub: Path) -> None:
    (hub / SHARDS[1]).unlink()
    message = f"~/hub/pytorch_model.bin.index.json: names {SHARDS[1]}, which is not beside it (1 of 2 shards)"
    assert told(hub.parent, {way: "hub"}) == [("error", f"/model/{way}", message)]
    (hub / "config.json").write_text(json.dumps(MODEL | {"dim_ff": 0}))
    assert ("error", "/dim_ff", "0 is below 1") in told(hub.parent, {way: "hub"})
    (hub / "config.json").unlink()
    assert told(hub.parent, {way: "hub"}) == [("error", f"/model/{way}", "the directory ~/hub has no config.json")]


def test_weights_of_another_config_are_told(hub: Path) -> None:
    (hub / "config.json").write_text(json.dumps(MODEL | {"dim_ff": 40}))
    (found,) = told(hub.parent, {"path": "hub"})
    assert found[:2] == ("error", "/model/path")
    assert "ffn.ffn.w_in.w_0.weight is [48, 32] and the config says [40, 32]" in found[2]


def test_a_path_that_is_no_directory_is_told(hub: Path) -> None:
    assert told(hub.parent, {"path": "none"}) == [("error", "/model/path", "there is no directory ~/none")]
    assert told(hub.parent, {"path": "whole.pt"}) == [
        ("error", "/model/path", "~/whole.pt is no directory, and no GGUF file")
    ]


@pytest.mark.parametrize("key", ["config", "checkpoint"])
def test_a_model_is_named_in_one_way(key: str, hub: Path) -> None:
    found = told(hub.parent, {"path": "hub", key: "hub"})
    what = "a config" if key == "config" else "the weights"
    assert found == [("error", f"/model/{key}", f'"hub" does not belong here: the directory at path has {what}')]


def test_a_model_needs_a_name(hub: Path) -> None:
    assert [each[2] for each in told(hub.parent, {}) if each[1] == "/model"] == ['"config" is missing']


def test_a_teacher_may_be_a_directory(hub: Path) -> None:
    tune = TRAIN | {"distillation": {"logits": 1.0, "teacher": "hub"}}
    report = execute(plan(tune, EMIT, model={"path": "hub"}), hub.parent)
    assert report["status"] == "done"
    (hub / SHARDS[0]).unlink()
    found = told(hub.parent, {"config": MODEL}, tune)
    assert [each[:2] for each in found] == [("error", "/passes/0/distillation/teacher")]


def test_flags_take_directories(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(hub.parent)
    save_weights(hub.parent / "other.pt", seed=1)
    path = write(hub.parent, plan(HALF, EMIT, model={"path": "hub"}))

    def checkpoint(**flags: Any) -> Path | None:
        return read_plan(path, flags=Flags(**flags)).model.checkpoint

    assert checkpoint() == hub
    assert checkpoint(load="other.pt") == hub.parent / "other.pt"
    assert checkpoint(model_config="hub") == hub
    assert checkpoint(model_config="hub/config.json", load="hub") == hub


@pytest.mark.parametrize("load", [None, "hub", "whole.pt"])
def test_bmcooks_flags_take_directories(load: str | None, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(hub.parent)
    write_file(hub.parent, "l0_pruning.json", {"coarse-grained": {"train_mask": False, "coarse_mask": "m.pt"}})
    torch.save({"self_att_layer_z": torch.ones(3), "ffn_layer_z": torch.tensor([1.0, 0, 1])}, hub.parent / "m.pt")
    file = write_file(hub.parent, "bmcook.json", bmcook("coarse-grained"))
    flags = Flags(model_config="hub", load=load, train_iters=0)
    read = read_plan(file, flags=flags)
    assert read.model.checkpoint == Path(load or "hub")
    assert read.model.config.dim_ff == MODEL["dim_ff"]
    document = convert_plan(file, flags=flags)[0]
    assert document["model"] == {"config": "hub"} | ({"checkpoint": load} if load else {})


def test_inspect_reads_directories_of_torch_files(hub: Path) -> None:
    whole = inspect_model(hub.parent / "whole.pt")
    assert inspect_model(hub)["parameters"] == whole["parameters"]
    assert inspect_model(hub / "pytorch_model.bin.index.json")["parameters"] == whole["parameters"]
    (hub / "config.json").unlink()
    assert inspect_model(hub)["layers"] == whole["layers"]
