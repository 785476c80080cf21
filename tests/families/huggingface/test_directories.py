"""Models of transformers from directories in every layout that there is: what is loaded is what is in the files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sprunec.compiler.inspect import inspect_model
from sprunec.compiler.lower import with_own_head
from sprunec.errors import InputError
from sprunec.families.huggingface.model_types import LAYOUTS
from sprunec.families.model_directory import open_model_tensors
from sprunec.passes.job import Job
from sprunec.passes.load import LoadOptions, run
from sprunec.plan.plan import check_plan, read_plan
from tests.helpers.causal_lms import CONFIGS, PLAIN, causal_lm
from tests.helpers.small_plans import plan, write

EMIT = {"pass": "emit", "formats": ["huggingface"]}
State = dict[str, Tensor]
HEADS = {layout.head for layout in LAYOUTS.values()}


def state_of(model: Any, folder: Path) -> State:
    """The tensors by their names on disk, the head's among them."""
    from sprunec.checkpoint.reader import open_tensors

    model.save_pretrained(folder)
    return {name: tensor.clone() for name, tensor in open_tensors(folder).items()}


def directory(folder: Path, name: str, save: Callable[[State, Path], None], **changes: Any) -> State:
    """Write a family's model as `save` does; give what is in it."""
    model = causal_lm(name, **PLAIN.get(name, {}) | changes)
    state = state_of(model, folder / "as saved")
    (folder / "dense").mkdir()
    (folder / "dense/config.json").write_text((folder / "as saved/config.json").read_text())
    save(state, folder / "dense")
    return state


def loaded(folder: Path) -> Mapping[str, Tensor]:
    """What a plan's input model is, as the load pass leaves it."""
    path = write(folder, plan(EMIT, model={"path": "dense"}))
    read = with_own_head(read_plan(path))
    out = folder / "out"
    out.mkdir()
    options = LoadOptions(config=read.model.config.to_dict(), checkpoint="of files")
    files = {"checkpoint": (read.model.checkpoint,)}
    run(Job(options, {}, files, out, "cpu", lambda event: None))
    return open_model_tensors(out)


def same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    alike = (found[name].dtype == wanted[name].dtype and torch.equal(found[name], wanted[name]) for name in wanted)
    return found.keys() == wanted.keys() and all(alike)


def shards(state: State, folder: Path, save: Callable[[State, Path], None], stem: str, ending: str) -> None:
    names, where = [*state], {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"{stem}-{number:05}-of-00002.{ending}"
        save({name: state[name] for name in part}, folder / file)
        where |= dict.fromkeys(part, file)
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


SAVES: dict[str, Callable[[State, Path], None]] = {
    "safetensors": lambda state, folder: save_file(state, folder / "model.safetensors"),
    "bin": lambda state, folder: torch.save(state, folder / "pytorch_model.bin"),
    "safetensors shards": lambda state, folder: shards(state, folder, save_file, "model", "safetensors"),
    "bin shards": lambda state, folder: shards(state, folder, torch.save, "pytorch_model", "bin"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", SAVES)
def test_a_layout_s_tensors_are_loaded_as_they_are(layout: str, dtype: torch.dtype, tmp_path: Path) -> None:
    def save(state: State, folder: Path) -> None:
        SAVES[layout]({name: tensor.to(dtype) for name, tensor in state.items()}, folder)

    state = directory(tmp_path, "qwen3", save)
    assert same(loaded(tmp_path), {name: tensor.to(dtype) for name, tensor in state.items()})


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_outermost_module_s_name_may_be_missing(name: str, tied: bool, tmp_path: Path) -> None:
    """As in files that the model without a head has written, with or without the head beside it."""
    outermost = LAYOUTS[name].blocks.partition(".")[0] + "."

    def save(state: State, folder: Path) -> None:
        save_file({key.removeprefix(outermost): value for key, value in state.items()}, folder / "model.safetensors")

    state = directory(tmp_path, name, save, tie_word_embeddings=tied)
    assert (LAYOUTS[name].head in state) != tied
    assert same(loaded(tmp_path), state)


@pytest.mark.parametrize("bare", [False, True], ids=["whole names", "bare names"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gpt_neox"])
def test_a_tied_head_may_have_a_copy_in_the_file(name: str, bare: bool, tmp_path: Path) -> None:
    table, outermost = next(iter(LAYOUTS[name].tables)), LAYOUTS[name].blocks.partition(".")[0] + "."

    def save(state: State, folder: Path) -> None:
        whole = state | {LAYOUTS[name].head: state[table].clone()}
        named = {key.removeprefix(outermost) if bare else key: value for key, value in whole.items()}
        save_file(named, folder / "model.safetensors")

    state = directory(tmp_path, name, save, tie_word_embeddings=True)
    assert same(loaded(tmp_path), state)
    assert inspect_model(tmp_path / "dense")["parameters"]["total"] == sum(each.numel() for each in state.values())


@pytest.mark.parametrize("bare", [False, True], ids=["whole names", "bare names"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gpt_neox"])
def test_a_head_that_differs_is_kept_though_the_config_ties_it(name: str, bare: bool, tmp_path: Path) -> None:
    table, outermost = next(iter(LAYOUTS[name].tables)), LAYOUTS[name].blocks.partition(".")[0] + "."

    def save(state: State, folder: Path) -> None:
        whole = state | {LAYOUTS[name].head: state[table] * 2}
        named = {key.removeprefix(outermost) if bare else key: value for key, value in whole.items()}
        save_file(named, folder / "model.safetensors")

    state = directory(tmp_path, name, save, tie_word_embeddings=True)
    assert same(loaded(tmp_path), state | {LAYOUTS[name].head: state[table] * 2})


def test_a_head_that_is_missing_is_told(tmp_path: Path) -> None:
    def save(state: State, folder: Path) -> None:
        save_file({key: value for key, value in state.items() if key not in HEADS}, folder / "model.safetensors")

    directory(tmp_path, "llama", save, tie_word_embeddings=False)
    found = check_plan(write(tmp_path, plan(EMIT, model={"path": "dense"})))[1]
    assert [each.message for each in found if each.severity == "error"] == [
        f"{tmp_path / 'dense'}: no tensor lm_head.weight"
    ]


def test_a_quantised_model_is_told_as_that(tmp_path: Path) -> None:
    weight = "model.layers.0.mlp.up_proj"

    def save(state: State, folder: Path) -> None:
        del state[f"{weight}.weight"]
        save_file(state | {f"{weight}.qweight": torch.ones(6, 56).int()}, folder / "model.safetensors")

    directory(tmp_path, "llama", save)
    with pytest.raises(InputError, match=rf"this checkpoint is quantised: it has {weight}\.qweight \(GPTQ, AWQ\)"):
        inspect_model(tmp_path / "dense")


BUFFERS = {  # what older releases have written, too: masks and rotary frequencies
    "gpt2": {"h.0.attn.bias": torch.tril(torch.ones(1, 1, 64, 64)), "h.0.attn.masked_bias": torch.tensor(-1e4)},
    "gptj": {"h.1.attn.bias": torch.ones(1, 1, 64, 64).byte(), "h.1.attn.masked_bias": torch.tensor(-1e9)},
    "gpt_neox": {
        "layers.0.attention.bias": torch.ones(1, 1, 64, 64).bool(),
        "layers.0.attention.masked_bias": torch.tensor(-1e9),
        "layers.0.attention.rotary_emb.inv_freq": torch.ones(4),
    },
    "llama": {"layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)},
}


@pytest.mark.parametrize("layout", ["safetensors", "bin"])
@pytest.mark.parametrize("bare", [False, True], ids=["whole names", "bare names"])
@pytest.mark.parametrize("name", BUFFERS)
def test_buffers_that_older_releases_have_written_are_left_out(
    name: str, bare: bool, layout: str, tmp_path: Path
) -> None:
    outermost = LAYOUTS[name].blocks.partition(".")[0] + "."

    def save(state: State, folder: Path) -> None:
        whole = state | {outermost + key: value for key, value in BUFFERS[name].items()}
        SAVES[layout]({key.removeprefix(outermost) if bare else key: v for key, v in whole.items()}, folder)

    state = directory(tmp_path, name, save)
    assert same(loaded(tmp_path), state)


def test_a_bias_that_the_model_has_no_place_for_is_an_error_all_the_same(tmp_path: Path) -> None:
    def save(state: State, folder: Path) -> None:
        save_file(state | {"transformer.h.0.attn.bias": torch.ones(48)}, folder / "model.safetensors")

    directory(tmp_path, "gpt2", save)
    with pytest.raises(InputError, match=r"no place for and that may change what it computes: transformer\.h\.0\.attn"):
        loaded(tmp_path)
