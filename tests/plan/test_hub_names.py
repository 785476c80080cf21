"""A model named as on the hub is looked for in its cache; a directory of that name comes first."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sprunec.checkpoint.hub import find_snapshot, hub_cache, is_hub_name, is_whole, snapshot_origin
from sprunec.checkpoint.layouts import checkpoint_names
from sprunec.compiler.inspect import inspect_model
from sprunec.compiler.lower import lower
from sprunec.errors import InputError
from sprunec.plan.bmcook_flags import Flags
from sprunec.plan.plan import check_plan, read_plan
from tests.helpers.hub import COMMIT, NAME, cache_model
from tests.helpers.small_plans import EMIT, MODEL, plan, save_weights, write

HALF = {"pass": "score-mask", "criterion": "magnitude", "unit": "head", "target": {"num_heads": 4}}
ROOT = Path(__file__).parents[2]


@pytest.fixture
def dense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cached"))
    directory = tmp_path / "dense"
    directory.mkdir()
    save_file(torch.load(save_weights(tmp_path / "dense.pt"), weights_only=True), directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(MODEL))
    return directory


def told(folder: Path, incomplete: bool = True, strict: bool = False, **model: Any) -> list[tuple[str, str, str]]:
    path = write(folder, plan(HALF, EMIT, model=model))
    found = check_plan(path, incomplete=incomplete, strict=strict)[1]
    return [(each.severity, each.pointer, each.message.replace(str(folder), "~")) for each in found]


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("HuggingFaceTB/SmolLM2-135M", True), ("a/b", True), ("_a/b.c_d", True),
        ("gpt2", False), ("a/b/c", False), ("a/b/", False), ("./a", False), ("../a/b", False), ("/a/b", False),
        ("a--b/c", False), ("a/b..c", False), ("a/-b", False), ("a/b.", False), ("a/b\n", False), ("ä/b", False),
        ("a/" + "b" * 97, False), ("~/a", False),
    ],
)  # fmt: skip
def test_names_are_those_that_the_hub_allows(name: str, fits: bool) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    assert is_hub_name(name) == fits
    if fits:
        validate_repo_id(name)
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII) and name[0] != ".":
        with pytest.raises(HFValidationError):
            validate_repo_id(name)


@pytest.mark.parametrize(
    "about",
    [
        {"HF_HOME": "~/h"}, {"HF_HUB_CACHE": "$HOME/c", "HF_HOME": "/x"}, {"HUGGINGFACE_HUB_CACHE": "/old"},
        {"XDG_CACHE_HOME": "/xdg"}, {},
    ],
)  # fmt: skip
def test_the_cache_is_where_the_library_has_it(about: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(key, raising=False)
    for key, value in about.items():
        monkeypatch.setenv(key, value)
    code = "from huggingface_hub.constants import HF_HUB_CACHE; print(HF_HUB_CACHE)"
    theirs = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert str(hub_cache()) == theirs.strip()


def test_the_cache_is_read_as_the_library_reads_it(dense: Path) -> None:
    from huggingface_hub import snapshot_download

    snapshot = cache_model(hub_cache(), dense, revision="refs/pr/1")
    assert find_snapshot(NAME) is None
    for revision in ("refs/pr/1", COMMIT):
        theirs = snapshot_download(NAME, revision=revision, local_files_only=True, cache_dir=hub_cache())
        assert find_snapshot(NAME, revision) == Path(theirs) == snapshot
    assert snapshot_origin(snapshot) == {"name": NAME, "commit": COMMIT}
    assert snapshot_origin(dense) is None
    assert is_whole(snapshot)
    (snapshot / "model.safetensors").resolve().unlink()
    assert not is_whole(snapshot)


def test_a_cached_model_is_the_directory(dense: Path) -> None:
    snapshot = cache_model(hub_cache(), dense)
    assert told(dense.parent, path=NAME) == []
    by_name = read_plan(write(dense.parent, plan(HALF, EMIT, model={"path": NAME})))
    assert by_name.model.checkpoint == snapshot
    by_path = read_plan(write(dense.parent, plan(HALF, EMIT, model={"path": "dense"})))
    assert [node.digest for node in lower(by_name).nodes] == [node.digest for node in lower(by_path).nodes]


def test_a_directory_of_that_name_comes_first(dense: Path) -> None:
    cache_model(hub_cache(), dense)
    here = dense.parent / NAME
    here.parent.mkdir()
    dense.rename(here)
    assert read_plan(write(here.parents[1], plan(HALF, EMIT, model={"path": NAME}))).model.checkpoint == here
    message = "revision is of a model of the hub, and this one is on the disk"
    assert told(here.parents[1], path=NAME, revision="main") == [("warning", "/model/revision", message)]


def test_what_is_not_cached_is_a_warning_until_it_is_needed(dense: Path) -> None:
    missing = "some-org/tiny.model is neither a directory here nor a model in ~/cached/hub"
    assert told(dense.parent, path=NAME) == [("warning", "/model/path", missing)]
    assert told(dense.parent, incomplete=False, path=NAME) == [("error", "/model/path", missing)]
    cache_model(hub_cache(), dense)
    missing = missing.replace("model is", "model of revision v2 is")
    assert told(dense.parent, path=NAME, revision="v2") == [("warning", "/model/path", missing)]


def test_the_tokenizer_is_the_cached_model_s(dense: Path) -> None:
    (dense / "tokenizer.json").write_text("{}")
    snapshot = cache_model(hub_cache(), dense)
    data = read_plan(write(dense.parent, plan(HALF, EMIT, model={"path": NAME}))).data
    assert data is not None and data.tokenizer == snapshot / "tokenizer.json"


def test_flags_put_other_weights_beside_a_cached_config(dense: Path) -> None:
    path = write(dense.parent, plan(HALF, EMIT, model={"path": NAME}))
    flags = Flags(load=str(dense.parent / "dense.pt"))
    missing = f"there is no model config {dense.parent / NAME}"
    assert [each.message for each in check_plan(path, flags=flags)[1]] == [missing]
    cache_model(hub_cache(), dense)
    assert read_plan(path, flags=flags).model.checkpoint == dense.parent / "dense.pt"


def test_a_config_without_weights_is_enough_to_look(dense: Path) -> None:
    snapshot = cache_model(hub_cache(), dense)
    (snapshot / "model.safetensors").unlink()
    ((severity, pointer, message),) = told(dense.parent, incomplete=False, path=NAME)
    assert (severity, pointer) == ("warning", "/model/path")
    assert message == f"there is no checkpoint ~/{snapshot.relative_to(dense.parent)}/model.safetensors"
    graph = lower(read_plan(dense.parent / "plan.json"))
    assert graph.nodes[-1].digest is None
    assert told(dense.parent, strict=True, path=NAME)[0][0] == "error"


@pytest.mark.parametrize(
    ("model", "pointer", "message"),
    [
        ({"path": "a/b/c"}, "/model/path", "there is no directory ~/a/b/c"),
        ({"path": NAME, "revision": "../.."}, "/model/revision", '"../.." is not of the expected form'),
        ({"path": NAME, "revision": ""}, "/model/revision", '"" is not of the expected form'),
        ({"path": NAME, "revision": 3}, "/model/revision", "3 is not text"),
    ],
)
def test_what_is_no_name_and_no_revision_is_told(dense: Path, model: Any, pointer: str, message: str) -> None:
    assert told(dense.parent, **model) == [("error", pointer, message)]


def test_inspect_takes_a_cached_model(dense: Path) -> None:
    with pytest.raises(InputError, match=r"no such file, and no model of this name in .*cached/hub"):
        inspect_model(Path(NAME))
    cache_model(hub_cache(), dense)
    assert inspect_model(Path(NAME))["layers"] == inspect_model(dense)["layers"]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.safetensors", "pytorch_model.bin", "tf_model.h5"], ["model.safetensors"]),
        (["pytorch_model.bin", "training_args.bin"], ["pytorch_model.bin"]),
        (
            ["consolidated.safetensors", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
             "model.safetensors.index.json"],
            ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        ),
        (["flax_model.msgpack", "config.json"], []),
    ],
)  # fmt: skip
def test_one_checkpoint_is_fetched(names: list[str], chosen: list[str]) -> None:
    assert checkpoint_names(names) == chosen
