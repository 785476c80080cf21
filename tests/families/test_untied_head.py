"""A head that is no embedding: found in a checkpoint by its bytes, and carried through all that a plan does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import sprunec
from sprunec.checkpoint.writer import write_state
from sprunec.compiler.inspect import inspect_model
from sprunec.errors import InputError
from sprunec.families.base_config import everything, removable
from sprunec.families.cpm_ant.blocks import build, initialize
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.families.cpm_ant.model import CPMAnt
from sprunec.families.head import has_own_head
from sprunec.families.model_directory import read_config
from sprunec.passes import load
from sprunec.passes.job import Job
from sprunec.plan.plan import check_plan
from sprunec.units import SUBLAYERS
from tests.conftest import TINY, random_batch, tiny_config, tiny_model
from tests.helpers.small_plans import EMIT, TRAIN, artifact, execute, mask_pass, plan, write

ROOT = Path(__file__).parents[2]
APART = {"tie_word_embeddings": False}
HEAD, WORDS = "lm_head.weight", "input_embedding.weight"
LOAD_OPTIONS = """
import sys, json, sprunec
graph = sprunec.lower(sprunec.read_plan(sys.argv[1]))
found = [node.options.config.get("tie_word_embeddings", True) for node in graph.nodes if node.pass_ == "load"]
print(json.dumps([found, sorted({"torch"} & set(sys.modules))]))
"""


def untied_model(**changes: Any) -> CPMAnt:
    return tiny_model(**APART, **changes)


def state_of(kind: str) -> dict[str, Tensor]:
    """A tiny model's weights, by our names, with a head of the named kind."""
    state = {name: tensor.clone() for name, tensor in tiny_model().state_dict().items()}
    words = state[WORDS]
    heads = {
        "none": {},
        "equal": {HEAD: words.clone()},
        "shared": {HEAD: words},
        "last entry": {HEAD: words.clone().index_put_((torch.tensor(96), torch.tensor(23)), torch.tensor(0.5))},
        "other": {HEAD: untied_model().state_dict()[HEAD]},
        "bf16": {HEAD: words.bfloat16()},
        "transposed": {HEAD: words.t().contiguous().t()},
        "shorter": {HEAD: words[:90].clone()},
        "no dims": {HEAD: torch.tensor(1.0)},
    }
    return state | heads[kind]


def test_config_says_so_only_where_it_is_apart() -> None:
    tied, apart = tiny_config(), tiny_config(**APART)
    assert "tie_word_embeddings" not in tied.to_dict() and apart.to_dict()["tie_word_embeddings"] is False
    assert ModelConfig.from_dict(apart.to_dict()) == apart and ModelConfig.from_dict(tied.to_dict()) == tied
    assert apart.parameters() - tied.parameters() == 97 * 24
    assert removable(apart, SUBLAYERS) == removable(tied, SUBLAYERS)
    shapes = {name: tuple(tensor.shape) for name, tensor in build(apart).state_dict().items()}
    assert shapes == apart.tensors()
    assert sum(map(prod, shapes.values())) == apart.parameters()
    assert apart.cut(everything(apart), everything(apart)) == apart


@torch.no_grad()
def test_head_is_scaled_as_the_embedding_is() -> None:
    tied, apart, batch = tiny_model(), untied_model(), random_batch()
    wanted, hidden = apart(**batch)
    assert (wanted - hidden @ apart.lm_head.weight.T / 24**0.5).abs().max() < 1e-5
    assert (wanted - tied(**batch)[0]).abs().max() > 0.1
    apart.lm_head.weight.copy_(apart.input_embedding.weight)
    assert torch.equal(apart(**batch)[0], tied(**batch)[0])


def test_new_head_is_drawn_last_and_as_an_embedding() -> None:
    tied, apart = build(tiny_config()), build(tiny_config(**APART))
    initialize(tied, 3)
    initialize(apart, 3)
    assert 0.015 < apart.lm_head.weight.std() < 0.025
    assert all(torch.equal(tensor, apart.state_dict()[name]) for name, tensor in tied.state_dict().items())


def named(state: Mapping[str, Tensor], form: str) -> dict[str, Tensor]:
    """By the names of our form, of our Hugging Face form, or of Hugging Face's own class."""
    if form == "stock":
        renamed = {f"cpmant.{name}": tensor for name, tensor in state.items() if name != HEAD}
        prompts = renamed.pop("cpmant.prompt_embedding.weight")
        renamed[f"cpmant.{WORDS}"] = torch.cat([state[WORDS], prompts])
        return renamed | ({HEAD: state[HEAD]} if HEAD in state else {})
    return {("model." if form == "own" else "") + name: tensor for name, tensor in state.items()}


def stored(state: Mapping[str, Tensor], place: str, folder: Path) -> Path:
    folder.mkdir()
    if place == "pt":
        torch.save(dict(state), folder / "model.pt")
        return folder / "model.pt"
    plain = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    write_state(plain, folder, shard_bytes=9000 if place == "shards" else 2**30)
    return folder if place == "shards" else folder / "model.safetensors"


@pytest.mark.parametrize("place", ["pt", "safetensors", "shards"])
@pytest.mark.parametrize("form", ["native", "own", "stock"])
@pytest.mark.parametrize(
    ("kind", "apart"), [("none", False), ("equal", False), ("last entry", True), ("other", True), ("bf16", True)]
)
def test_own_head_is_told_from_a_copy(kind: str, apart: bool, form: str, place: str, tmp_path: Path) -> None:
    path = stored(named(state_of(kind), form), place, tmp_path / "model")
    assert has_own_head(tiny_config(), path) is apart


@pytest.mark.parametrize(
    ("kind", "apart"), [("shared", False), ("transposed", True), ("shorter", True), ("no dims", True)]
)
def test_own_head_is_told_in_whatever_a_pt_holds(kind: str, apart: bool, tmp_path: Path) -> None:
    assert has_own_head(tiny_config(), stored(state_of(kind), "pt", tmp_path / "model")) is apart


def test_own_head_of_an_older_release_may_have_rows_for_prompts(tmp_path: Path) -> None:
    """Only the rows of words are held against each other."""
    state = named(state_of("none"), "stock")
    table = state[f"cpmant.{WORDS}"]
    rows = table + (torch.arange(len(table)) >= 97)[:, None]
    assert has_own_head(tiny_config(), stored(state | {HEAD: rows}, "pt", tmp_path / "copied")) is False
    assert has_own_head(tiny_config(), stored(state | {HEAD: rows + 1}, "pt", tmp_path / "apart")) is True


def test_unreadable_file_is_left_to_those_who_load_it(tmp_path: Path) -> None:
    (tmp_path / "torn.safetensors").write_bytes(b"\x40" + bytes(7) + b"{")
    torch.save(state_of("other"), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "empty").mkdir()
    for name in ("torn.safetensors", "old.pt", "empty", "nowhere.pt"):
        assert has_own_head(tiny_config(), tmp_path / name) is None


def test_file_that_torch_alone_can_read_is_refused_with_the_key_to_write(tmp_path: Path) -> None:
    """What is planned would need torch: its type is none that the header's reader knows."""
    torch.save(state_of("other") | {"counts": torch.ones(3).to(torch.uint16)}, tmp_path / "new.pt")
    assert has_own_head(tiny_config(), tmp_path / "new.pt") is None
    model = {"config": dict(TINY), "checkpoint": "new.pt"}
    with pytest.raises(InputError, match=r'lm_head\.weight differs from the embedding.*"tie_word_embeddings": false'):
        execute({"name": "new", "model": model, "passes": [EMIT]}, tmp_path, "first")
    execute({"name": "new", "model": model | {"config": TINY | APART}, "passes": [EMIT]}, tmp_path)
    assert torch.equal(sprunec.load(tmp_path / "out/model/sprunec").lm_head.weight, untied_model().lm_head.weight)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_plan_finds_its_head_and_its_teachers_without_torch(suffix: str, tmp_path: Path) -> None:
    for name, kind in (("tied", "none"), ("copied", "equal"), ("apart", "other")):
        path = stored(state_of(kind), suffix, tmp_path / name)
        path.rename(tmp_path / f"{name}.{suffix}")
    for model, teacher in (("tied", "apart"), ("apart", "copied"), ("copied", "apart"), ("apart", "apart")):
        distillation = {"logits": 0.5, "teacher": f"{teacher}.{suffix}"}
        content = plan(
            {"pass": "finetune", "steps": 1, "distillation": distillation},
            model={"config": dict(TINY), "checkpoint": f"{model}.{suffix}"},
        )
        command = [sys.executable, "-c", LOAD_OPTIONS, str(write(tmp_path, content))]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout) == [[name != "apart" for name in (model, teacher)], []]


def findings(folder: Path, kind: str, **changes: Any) -> list[tuple[str, str]]:
    stored(state_of(kind), "safetensors", folder / kind)
    model = {"config": TINY | changes, "checkpoint": f"{kind}/model.safetensors"}
    found = check_plan(write(folder, {"name": "x", "model": model, "passes": [EMIT]}))[1]
    return [(finding.code, finding.message.partition(": ")[2]) for finding in found]


def test_headers_tell_a_head_that_cannot_be_the_models(tmp_path: Path) -> None:
    assert findings(tmp_path, "other") == findings(tmp_path, "equal") == findings(tmp_path, "last entry", **APART) == []
    missing = ("checkpoint-mismatch", "no tensor lm_head.weight")
    assert findings(tmp_path, "none", **APART) == [missing]
    message = "lm_head.weight is [90, 24] and the config says [97, 24]"
    assert findings(tmp_path, "shorter") == [("checkpoint-mismatch", message)]


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("none", APART, "no tensor lm_head.weight"),
        ("shorter", {}, r"lm_head.weight is \[90, 24\] and the config says \[97, 24\]"),
        ("no dims", {}, r"lm_head.weight is \[\] and the config says \[97, 24\]"),
    ],
)
def test_head_that_does_not_fit_is_named(kind: str, changes: Any, words: str, tmp_path: Path) -> None:
    stored(state_of(kind), "pt", tmp_path / "model")
    model = {"config": TINY | changes, "checkpoint": "model/model.pt"}
    with pytest.raises(InputError, match=words):
        execute({"name": "x", "model": model, "passes": [EMIT]}, tmp_path)


def test_equal_head_stays_one_table_unless_the_config_parts_them(tmp_path: Path) -> None:
    path = stored(state_of("equal"), "pt", tmp_path / "model")
    for changes, out in (({}, "tied"), (APART, "apart")):
        content = {"name": "x", "model": {"config": TINY | changes, "checkpoint": str(path)}, "passes": [EMIT]}
        report = execute(content, tmp_path, out)
        assert not any("notes" in entry["metrics"] for entry in report["passes"])
        assert read_config(tmp_path / out / "model/sprunec") == tiny_config(**changes)
        assert (HEAD in load_file(tmp_path / out / "model/sprunec/model.safetensors")) == bool(changes)


def test_inspect_counts_a_head_of_its_own(tmp_path: Path) -> None:
    whole = tiny_config()
    for kind, extra in (("none", 0), ("equal", 0), ("other", 97 * 24)):
        path = stored(state_of(kind), "pt", tmp_path / kind)
        (path.parent / "config.json").write_text(json.dumps(TINY))
        for given in (path, path.parent):
            assert inspect_model(given)["parameters"]["total"] == whole.parameters() + extra
    (tmp_path / "config.json").write_text(json.dumps(TINY | APART))
    assert inspect_model(tmp_path / "config.json")["parameters"]["total"] == whole.parameters() + 97 * 24


def test_new_model_may_have_a_head_of_its_own(tmp_path: Path) -> None:
    options = load.LoadOptions(config=tiny_config(**APART).to_dict(), seed=0)
    load.run(Job(options, {}, {}, tmp_path, "cpu", print))
    assert read_config(tmp_path) == tiny_config(**APART)
    assert load_file(tmp_path / "model.safetensors")[HEAD].shape == (97, 24)


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor], name: str) -> bool:
    return not torch.equal(before[name], after[name])


def test_both_tables_are_trained_compared_and_written_from_plan_to_plan(tmp_path: Path) -> None:
    """Masks, tuning, 2:4 patterns and the checkpoint in the input's shape, which the next plan starts from."""
    sizes = TINY | {"vocab_size": 128}
    whole = untied_model(vocab_size=128).state_dict()
    torch.save(whole, tmp_path / "dense.pt")
    tune = {"pass": "finetune", "steps": 2, "distillation": {"logits": 0.5}}
    passes = [
        TRAIN,
        mask_pass(["head", "dim_ff"], {"num_heads": 2, "dim_ff": 20}),
        {"pass": "sparsify", "pattern": "m4n2_1d", "tensors": ["lm_head"]},
        tune,
        EMIT,
    ]
    model = {"config": sizes | APART, "checkpoint": "dense.pt"}
    report = execute(plan(*passes, model=model, outputs={"checkpoint": "tuned.pt"}), tmp_path, "first")
    assert report["comparison"]["max_abs_difference"] < 1e-10
    assert report["models"]["dense"]["parameters"] == tiny_config(vocab_size=128, **APART).parameters()
    directory = tmp_path / "first/model/sprunec"
    small = load_file(directory / "model.safetensors")
    assert changed(whole, small, HEAD) and changed(whole, small, WORDS) and changed(small, {WORDS: small[HEAD]}, WORDS)
    assert int((small[HEAD].view(128, -1, 4) != 0).sum(-1).max()) == 2
    tuned = torch.load(tmp_path / "first/tuned.pt", weights_only=True)
    assert torch.equal(tuned[HEAD], small[HEAD]) and tuned.keys() == whole.keys()
    assert sprunec.load(directory).lm_head is not None

    model = {"config": sizes, "checkpoint": "first/tuned.pt"}
    second = execute(plan(TRAIN, EMIT, model=model), tmp_path, "second")
    assert second["comparison"]["max_abs_difference"] < 1e-10
    after = load_file(artifact(tmp_path / "second", "train") / "model.safetensors")
    assert changed(tuned, after, HEAD) and changed(tuned, after, WORDS)


def test_cut_model_goes_on_as_the_next_plans_model(tmp_path: Path) -> None:
    """Its own config says that the head is apart, with divisors and layers."""
    torch.save(untied_model().state_dict(), tmp_path / "dense.pt")
    cut = {"pass": "score-mask", "criterion": "magnitude", "unit": "head", "target": {"num_heads": 2}}
    model = {"config": dict(TINY), "checkpoint": "dense.pt"}
    execute({"name": "first", "model": model, "passes": [cut, EMIT]}, tmp_path, "first")
    small = tmp_path / "first/model/sprunec"
    model = {"config": str(small / "config.json"), "checkpoint": str(small)}
    passes = [cut | {"target": {"num_heads": 1}}, EMIT]
    report = execute({"name": "second", "model": model, "passes": passes}, tmp_path, "second")
    assert report["comparison"]["max_abs_difference"] < 1e-10
    again = tmp_path / "second/model/sprunec"
    assert not read_config(again).tie_word_embeddings
    assert torch.equal(load_file(again / "model.safetensors")[HEAD], load_file(small / "model.safetensors")[HEAD])


def test_damaged_head_is_no_other_model(tmp_path: Path) -> None:
    """A head that the config does not name, or lacks, is refused by `sprunec.load`."""
    torch.save(untied_model().state_dict(), tmp_path / "dense.pt")
    content = {"name": "x", "model": {"config": dict(TINY), "checkpoint": "dense.pt"}, "passes": [EMIT]}
    execute(content, tmp_path)
    directory = tmp_path / "out/model/sprunec"
    (directory / "origin.json").unlink()
    config = replace(read_config(directory), tie_word_embeddings=True)
    (directory / "config.json").write_text(json.dumps(config.to_dict()))
    with pytest.raises(InputError, match="lm_head.weight is not in the model"):
        sprunec.load(directory)
    state = load_file(directory / "model.safetensors")
    del state[HEAD]
    save_file(state, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config.to_dict() | APART))
    with pytest.raises(InputError, match="no tensor lm_head.weight"):
        sprunec.load(directory)
