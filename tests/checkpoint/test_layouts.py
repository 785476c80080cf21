"""Checkpoint directories in every layout that Hugging Face's libraries leave, and what is said about broken ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sprunec.checkpoint.layouts import checkpoint_files, weight_files
from sprunec.checkpoint.reader import open_tensors, read_state
from sprunec.checkpoint.writer import adopt_weights
from sprunec.errors import Diagnostic, InputError
from tests.conftest import tiny_model

STATE = tiny_model().state_dict()
HALVES = ({n: t for n, t in STATE.items() if "ffn" in n}, {n: t for n, t in STATE.items() if "ffn" not in n})
State = Mapping[str, Tensor]


def safe(path: Path, state: State) -> None:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)


def shards(directory: Path, save: Callable[[Any, Path], None], index: str, *names: str) -> None:
    for name, part in zip(names, HALVES, strict=True):
        save(part, directory / name)
    where = {tensor: name for name, part in zip(names, HALVES, strict=True) for tensor in part}
    (directory / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))


def saved(state: Any, path: Path) -> None:
    torch.save(dict(state), path)


# layout: what writes it, and the file that stands for it
LAYOUTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "safetensors": (lambda d: safe(d / "model.safetensors", STATE), "model.safetensors"),
    "safetensors shards": (
        lambda d: shards(d, lambda s, p: safe(p, s), "model.safetensors.index.json", *SAFE_SHARDS),
        "model.safetensors.index.json",
    ),
    "bin": (lambda d: saved(STATE, d / "pytorch_model.bin"), "pytorch_model.bin"),
    "bin shards": (
        lambda d: shards(d, saved, "pytorch_model.bin.index.json", *BIN_SHARDS),
        "pytorch_model.bin.index.json",
    ),
    "pt": (lambda d: saved(STATE, d / "model.pt"), "model.pt"),
    "a variant": (lambda d: safe(d / "model.fp16.safetensors", STATE), "model.fp16.safetensors"),
    "a variant's shards": (
        lambda d: shards(d, lambda s, p: safe(p, s), "model.safetensors.index.fp16.json", *VARIANT_SHARDS),
        "model.safetensors.index.fp16.json",
    ),
    "a name of its own": (
        lambda d: saved(STATE, d / "cpm_live_checkpoint_1B_pruned.pt"),
        "cpm_live_checkpoint_1B_pruned.pt",
    ),
    "one shard of one": (
        lambda d: safe(d / "model-00001-of-00001.safetensors", STATE),
        "model-00001-of-00001.safetensors",
    ),
}
SAFE_SHARDS = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
BIN_SHARDS = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
VARIANT_SHARDS = [f"model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
BESIDE = (
    "config.json",
    "tokenizer.json",
    "README.md",
    "training_args.bin",
    "optimizer.pt",
    "scheduler.pt",
    "tf_model.h5",
)


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    write, first = LAYOUTS[request.param]
    directory = tmp_path / "model"
    directory.mkdir()
    write(directory)
    for name in BESIDE:
        (directory / name).write_text("{}")
    return directory, first


def same(found: State) -> bool:
    return found.keys() == STATE.keys() and all(torch.equal(found[name], STATE[name]) for name in STATE)


def complaint(path: Path) -> Diagnostic:
    with pytest.raises(InputError) as caught:
        open_tensors(path)
    (found,) = caught.value.diagnostics
    return found


def test_a_directory_is_read_in_every_layout(layout: tuple[Path, str]) -> None:
    directory, first = layout
    assert same(read_state(directory))
    assert same(read_state(directory / first))


def test_the_files_are_those_of_the_checkpoint_and_no_others(layout: tuple[Path, str]) -> None:
    directory, first = layout
    files = weight_files(directory)
    assert files[0].name == first
    assert len(files) == (3 if "index" in first else 1)
    assert checkpoint_files(directory) == tuple(files) == checkpoint_files(directory / first)


def test_an_artifact_links_to_every_layout(layout: tuple[Path, str], tmp_path: Path) -> None:
    for number, path in enumerate((layout[0], layout[0] / layout[1])):
        artifact = tmp_path / f"artifact{number}"
        artifact.mkdir()
        adopt_weights(path, artifact)
        assert all(file.is_symlink() for file in artifact.iterdir())
        assert len(list(artifact.iterdir())) == len(weight_files(layout[0])) == len(weight_files(artifact))
        assert same(read_state(artifact))


@pytest.mark.parametrize("other", ["bin", "bin shards", "pt"])
@pytest.mark.parametrize("preferred", ["safetensors", "safetensors shards"])
def test_safetensors_come_before_what_torch_saves(preferred: str, other: str, tmp_path: Path) -> None:
    LAYOUTS[preferred][0](tmp_path)
    LAYOUTS[other][0](tmp_path)
    assert weight_files(tmp_path)[0].name == LAYOUTS[preferred][1]


def test_a_standard_name_comes_before_variants(tmp_path: Path) -> None:
    for name in ("a variant", "a variant's shards", "safetensors"):
        LAYOUTS[name][0](tmp_path)
    assert [file.name for file in weight_files(tmp_path)] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("one", "two"),
    [("safetensors", "safetensors shards"), ("bin", "bin shards"), ("bin", "pt"), ("a name of its own", "a second")],
)
def test_two_candidates_are_both_named(one: str, two: str, tmp_path: Path) -> None:
    LAYOUTS[one][0](tmp_path)
    if two == "a second":
        saved(STATE, tmp_path / "another.pt")
        names = ["another.pt", LAYOUTS[one][1]]
    else:
        LAYOUTS[two][0](tmp_path)
        names = [LAYOUTS[one][1], LAYOUTS[two][1]]
    found = complaint(tmp_path)
    assert (found.code, found.file) == ("several-checkpoints", str(tmp_path))
    assert found.message == f"has several checkpoints: {', '.join(names)}"


@pytest.mark.parametrize("name", ["safetensors shards", "bin shards", "a variant's shards"])
def test_shards_without_their_index_are_told(name: str, tmp_path: Path) -> None:
    LAYOUTS[name][0](tmp_path)
    (tmp_path / LAYOUTS[name][1]).unlink()
    found = complaint(tmp_path)
    assert found.code == "no-index"
    assert "-00001-of-00002" in found.message and "-00002-of-00002" in found.message
    assert found.hint.endswith(
        "pytorch_model.bin.index.json" if name == "bin shards" else "model.safetensors.index.json"
    )


@pytest.mark.parametrize("name", ["safetensors shards", "bin shards"])
def test_a_missing_shard_is_named(name: str, tmp_path: Path) -> None:
    LAYOUTS[name][0](tmp_path)
    index = tmp_path / LAYOUTS[name][1]
    gone = weight_files(tmp_path)[2]
    gone.unlink()
    for path in (tmp_path, index):
        found = complaint(path)
        assert (found.file, found.code) == (str(index), "missing-file")
        assert found.message == f"names {gone.name}, which is not beside it (1 of 2 shards)"


@pytest.mark.parametrize("name", ["safetensors shards", "bin shards"])
@pytest.mark.parametrize("wrong", ["moved", "invented", "left out"])
def test_an_index_that_disagrees_with_its_shards_is_told(name: str, wrong: str, tmp_path: Path) -> None:
    LAYOUTS[name][0](tmp_path)
    index = tmp_path / LAYOUTS[name][1]
    content = json.loads(index.read_text())
    where, tensor = content["weight_map"], "input_embedding.weight"
    first, second = sorted(set(where.values()))
    if wrong == "moved":
        where[tensor] = first
        words = f"says that {tensor} is in {first}, which has no such tensor"
    elif wrong == "invented":
        where["lm_head.weight"] = second
        words = f"says that lm_head.weight is in {second}, which has no such tensor"
    else:
        del where[tensor]
        words = f"{second} has {tensor}, and the index does not name it"
    index.write_text(json.dumps(content))
    found = complaint(tmp_path)
    assert (found.file, found.message) == (str(index), words)


@pytest.mark.parametrize(
    ("names", "words", "hint"),
    [
        ((), "has no weights: it is empty", "model.safetensors"),
        (("config.json", "tf_model.h5"), "has no weights; there is config.json, tf_model.h5", "pytorch_model.bin"),
        (("adapter_config.json", "adapter_model.safetensors"), "has no weights; there is adapter_", "merge_and_unload"),
        (("optimizer.pt", "training_args.bin"), "has no weights; there is optimizer.pt, training_args.bin", "model."),
        (tuple(f"{i}.txt" for i in range(12)), "5.txt and 4 more", "model.safetensors"),
    ],
)
def test_a_directory_without_weights_says_what_it_has(
    names: tuple[str, ...], words: str, hint: str, tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).write_text("{}")
    found = complaint(tmp_path)
    assert found.code == "no-weights"
    assert words in found.message and hint in found.hint
    assert checkpoint_files(tmp_path) == (tmp_path,)
