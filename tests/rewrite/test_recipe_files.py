"""A recipe from file to file gives what it gives in memory, and needs memory for a chunk, not for a model."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sprunec.checkpoint import writer as writing
from sprunec.checkpoint.reader import open_tensors
from sprunec.checkpoint.writer import (
    adopt_weights,
    link_or_write,
    link_weights,
    overlay_weights,
    save_tensors,
    write_outputs,
    write_state,
)
from sprunec.families.base_config import everything
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.rewrite.recipe import Recipe
from sprunec.rewrite.recipe_files import cut_outputs, expand_outputs
from sprunec.rewrite.slices import common_unit, select
from sprunec.units import Kept
from tests.conftest import kept_layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.float64])
@pytest.mark.parametrize("kept", [(), (0,), (7, 8, 30), tuple(range(8, 24)), (*range(8), *range(32, 40)), (39, 0, 5)])
def test_selecting_is_index_select_for_columns_runs_and_rows(dtype: torch.dtype, kept: tuple[int, ...]) -> None:
    whole = torch.arange(1600).reshape(40, 40).to(dtype)
    for tensor in (whole, whole.T, whole[:, None].expand(40, 3, 40)):
        for dim in range(tensor.dim()):
            if tensor.shape[dim] == 40:
                wanted = tensor.index_select(dim, torch.tensor(kept, dtype=torch.long))
                assert torch.equal(select(tensor, dim, kept), wanted)
    assert select(torch.empty(4, 40, device="meta"), 1, kept).shape == (4, len(kept))


@pytest.mark.parametrize(
    ("kept", "unit"),
    [
        (range(8, 24), 8),
        ((*range(8), *range(16, 24)), 8),
        ((*range(4), *range(8, 16)), 4),
        ((*range(4), *range(8, 12)), 4),
        (range(1, 9), 1),
        (range(40), 40),
        ((3,), 1),
        ((*range(8, 16), *range(8)), 8),
    ],
)
def test_a_unit_is_the_widest_aligned_piece(kept: range | tuple[int, ...], unit: int) -> None:
    assert common_unit(tuple(kept), 40) == unit


def drawn(draw: random.Random, size: int) -> tuple[int, ...]:
    return tuple(sorted(draw.sample(range(size), draw.randint(1, size))))


@pytest.mark.parametrize("seed", range(8))
def test_random_recipes_cut_and_expand_as_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(writing, "CHUNK_BYTES", 64)
    draw, noise = random.Random(seed), torch.Generator().manual_seed(seed)
    dtype = draw.choice([torch.float32, torch.float16, torch.bfloat16])
    state = {name: torch.randn(12, 16, generator=noise).to(dtype) for name in "abcdef"}
    state |= {"vector": torch.randn(9, generator=noise), "scalar": torch.tensor(2.0)}
    slices = {
        name: {dim: drawn(draw, (12, 16)[dim]) for dim in draw.sample((0, 1), draw.randint(1, 2))} for name in "abcd"
    }
    recipe = Recipe(slices | {"vector": {0: drawn(draw, 9)}}, ("e",))
    folders = [tmp_path / name for name in ("full", "small", "back")]
    for folder in folders:
        folder.mkdir()
    write_state(state, folders[0], shard_bytes=draw.choice([200, 2**20]))
    full = open_tensors(folders[0])
    write_outputs(cut_outputs(recipe, full), folders[1])
    cut, small = recipe.cut(state), open_tensors(folders[1])
    assert cut.keys() == small.keys()
    assert all(torch.equal(small[name], cut[name]) and small.dtype(name) == cut[name].dtype for name in cut)
    trained = {name: tensor.float() + 1e-4 for name, tensor in cut.items()}  # which half precision would round
    write_state(trained, folders[1])
    write_outputs(expand_outputs(recipe, full, open_tensors(folders[1])), folders[2])
    wanted, back = recipe.expand(state, trained), open_tensors(folders[2])
    assert wanted.keys() == back.keys()
    assert all(torch.equal(back[name], wanted[name]) for name in wanted)
    assert all(torch.equal(recipe.cut(wanted)[name], trained[name]) for name in trained)


@pytest.mark.parametrize("kind", ["safetensors", "shards", "pt"])
def test_tensors_of_several_origins_are_cut(kind: str, tmp_path: Path) -> None:
    """An index that names links to the user's files, files of a run's own, and newer ones in the place of some."""
    state = {name: torch.randn(6, 8, generator=torch.Generator().manual_seed(ord(name))) for name in "abcd"}
    user, model, first, second, origin, small = (tmp_path / name for name in ("u", "m", "first", "second", "o", "s"))
    for folder in (user, model, first, second, origin, small):
        folder.mkdir()
    if kind == "pt":
        torch.save(state, user / "model.pt")
    else:
        write_state(state, user, shard_bytes=200 if kind == "shards" else 2**20)
    adopt_weights(user / "model.pt" if kind == "pt" else user, model)
    for number, (before, after, name) in enumerate(((model, first, "a"), (first, second, "c"))):
        save_tensors({name: state[name] + 1}, newer := tmp_path / f"newer-{number}.safetensors")
        overlay_weights(before, [newer], after)
    wanted = {name: tensor + 1 if name in "ac" else tensor for name, tensor in state.items()}
    link_weights(second, origin)
    recipe = Recipe({"a": {0: (1, 4)}, "b": {1: (0, 7)}}, ("d",))
    for folder in (second, origin):
        tensors = open_tensors(folder)
        assert tensors.keys() == state.keys() and all(torch.equal(tensors[name], wanted[name]) for name in state)
    link_or_write(cut_outputs(recipe, open_tensors(second)), small)
    cut = open_tensors(small)
    assert {name: tuple(tensor.shape) for name, tensor in cut.items()} == {"a": (2, 8), "b": (6, 2), "c": (6, 8)}
    assert all(torch.equal(cut[name], tensor) for name, tensor in recipe.cut(wanted).items())
    assert not any(file.is_symlink() for file in small.iterdir())


LARGE = {"dim_model": 2048, "num_heads": 16, "dim_head": 128, "dim_ff": 8192, "num_layers": 4, "vocab_size": 4000}
PEAK = """
import sys, torch
from pathlib import Path
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
bare = peak()
from sprunec.passes import cut as rewrite
from sprunec.graph.options import Options
from sprunec.passes.job import Job
folder = Path(sys.argv[1])
rewrite.run(Job(Options(), {"model": folder, "masks": folder / "masks"}, {}, folder / "out", "cpu", print))
print(peak() - bare)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_a_rewrite_needs_memory_for_a_tensor_not_for_the_model(tmp_path: Path) -> None:
    config, end, header = ModelConfig.from_dict(LARGE), 0, {}
    for name, shape in config.tensors().items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    kept = Kept([kept_layer(tuple(range(0, 16, 2)), tuple(range(128)), tuple(range(1, 8192, 3)))] * 4)
    for name in ("masks", "out"):
        (tmp_path / name).mkdir()
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    (tmp_path / "kept.json").write_text(json.dumps(everything(config).to_json()))
    (tmp_path / "masks" / "kept.json").write_text(json.dumps(kept.to_json()))
    done = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True, check=True)
    largest = max(2 * torch.Size(shape).numel() for shape in config.tensors().values())
    assert end > 5e8
    assert int(done.stdout) < 2 * largest + 200e6 < end / 2
    assert open_tensors(tmp_path / "out").shapes() == config.cut(everything(config), kept).tensors()
