"""The guide's chain of stages, run through the command line as BMCook's users run it, and as one native plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from sprunec.cli import app
from tests.helpers.bmcook_files import COARSE, CONFIG, FINE, bmcook, write
from tests.helpers.guide import STEPS, command, digests, fine, kept, prepare, report, run

FIXED = FINE | {"train_mask": False}
FFN = FINE | {"prune_mode": "ffn"}
HEADS, DIMS = FINE["heads_mask"], FINE["dimff_mask"]


@pytest.fixture(autouse=True)
def _in_a_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)


def chain(stages: list[dict[str, Any]]) -> str:
    """Each stage from what the one before has saved, then the actual prune: the same command without steps."""
    load, start = "dense.pt", 0
    for index, options in enumerate(stages):
        out = f"stage{index}"
        fine(options, command(load=load, start=start, out=out))
        start += STEPS
        load = f"{out}/ant-{start}.pt"
    fine(stages[-1], command(load=load, start=start, steps=0, out="pruned"))
    return load


def one_plan(stages: list[dict[str, Any]]) -> None:
    """The same stages, converted into one plan, and run."""
    files = [str(write(Path(), f"l0_{index}.json", {"fine-grained": options})) for index, options in enumerate(stages)]
    bmcook_json = str(write(Path(), "bmcook.json", bmcook("fine-grained")))
    flags = command()
    result = CliRunner().invoke(app, ["convert", bmcook_json, *files, "-o", "plans/one.json", *flags])
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(app, ["run", "plans/one.json", "--quiet", "--out", "one"])
    assert result.exit_code in (0, 4), result.output


def same_tensors(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "stages",
    [
        pytest.param([FINE, FIXED, FFN, FIXED], id="heads first"),
        pytest.param([FFN, FIXED, FINE, FIXED], id="dims first"),
    ],
)
def test_stages_in_runs_of_their_own_end_with_the_tensors_of_one_plan(stages: list[dict[str, Any]]) -> None:
    load = chain(stages)
    for path in (HEADS, DIMS):
        Path(path).unlink()
    one_plan(stages)
    emitted = [load_file(f"{out}/model/sprunec/model.safetensors") for out in ("pruned", "one")]
    assert same_tensors(*emitted)
    configs = [json.loads(Path(f"{out}/model/sprunec/config.json").read_text()) for out in ("pruned", "one")]
    assert configs[0] == configs[1]
    full = [torch.load(path, weights_only=True) for path in (load, f"one/ant-{4 * STEPS}.pt")]
    assert same_tensors(*full)
    assert {len(heads) for heads in kept("pruned")["attention"].values()} == {3}
    assert set(kept("pruned")["feed_forward"].values()) == {20}


def test_a_pair_of_files_and_its_conversion_have_the_same_digests() -> None:
    fine(FINE, command(out="first"))
    Path(HEADS).unlink()
    result = CliRunner().invoke(app, ["convert", "bmcook.json", *command()])
    assert result.exit_code == 0, result.output
    Path("plan.json").write_text(result.stdout)
    again = CliRunner().invoke(app, ["run", "plan.json", "--quiet", "--json", "--out", "first"])
    assert json.loads(again.stdout)["status"] in ("done", "target-missed")
    assert all(entry["cached"] for entry in report("first")["passes"])
    assert Path(HEADS).exists()


def test_a_stage_from_the_dense_checkpoint_again_is_warned_of() -> None:
    fine(FINE, command(out="one"))
    wrong = fine(FIXED, command(out="two"))
    assert "masks learned together with other weights" in wrong.stderr.replace("\n", " ")
    assert "one/ant-3.pt" in wrong.stderr.replace("\n", "")
    right = fine(FIXED, command(load="one/ant-3.pt", start=STEPS, out="three"))
    assert "learned together" not in right.stderr.replace("\n", " ")


def test_the_other_mask_is_named_with_its_age_and_left_as_it_is() -> None:
    fine(FINE, command(out="one"))
    before = Path(HEADS).read_bytes()
    second = fine(FFN, command(load="one/ant-3.pt", start=STEPS, out="two"))
    assert f"{HEADS}, made just now, is in force" in second.stderr.replace("\n", " ")
    assert Path(HEADS).read_bytes() == before
    assert sorted(torch.load(DIMS, weights_only=True)) == ["dimff_z"]
    assert kept("one")["attention"] == kept("two")["attention"]


def test_every_stage_may_share_one_folder() -> None:
    """As with the script's --save results/: a stage doesn't take away what the next one starts from."""
    fine(FINE, command(out="results"))
    fine(FIXED, command(load="results/ant-3.pt", start=3, out="results"))
    fine(FIXED, command(load="results/ant-6.pt", start=6, steps=0, out="results"))
    assert sorted(path.name for path in Path("results").glob("*.pt")) == ["ant-3.pt", "ant-6.pt"]
    small = load_file("results/model/sprunec/model.safetensors")
    full = torch.load("results/ant-6.pt", weights_only=True)
    heads = kept("results")["attention"]["0"]
    rows = [8 * head + row for head in heads for row in range(8)]
    name = "encoder.layers.0.self_att.self_attention.project_q.weight"
    assert torch.equal(small[name], full[name][rows])


@pytest.mark.slow
def test_sublayers_then_heads_on_a_model_with_holes() -> None:
    """Twelve layers, some without a sublayer: every mask row is about the layer that it was learned on."""
    holes = [[index in (1, 4), index in (2, 4, 7)] for index in range(12)]
    config = CONFIG | {"num_layers": 12, "mask_modules": holes}
    prepare(Path("twelve"), config)
    for name in ("model.json", "dense.pt"):
        Path("twelve", name).rename(name)
    coarse = {"coarse-grained": COARSE | {"coarse_mask": "layers.pt"}}
    run(bmcook("coarse-grained"), command(out="coarse", steps=30), l0_pruning=coarse)
    layers = torch.load("layers.pt", weights_only=True)
    assert [layers[key].numel() for key in ("self_att_layer_z", "ffn_layer_z")] == [10, 9]
    left = kept("coarse")
    present = [index for index in range(12) if not holes[index][0]]
    assert [index for index, one in zip(present, layers["self_att_layer_z"], strict=True) if one] == [
        int(index) for index, heads in left["attention"].items() if heads
    ]
    whole = 10 * (4 * 64 * 32 + 32) + 9 * (3 * 48 * 32 + 32)
    stays = sum(4 * 64 * 32 + 32 for heads in left["attention"].values() if heads)
    stays += sum(3 * 48 * 32 + 32 for dims in left["feed_forward"].values() if dims)
    assert abs(stays - 0.6 * whole) <= 4 * 64 * 32 + 32

    options = FINE | {"coarse_mask": "layers.pt", "num_heads": 8}
    fine(options, command(load="coarse/ant-30.pt", start=30, out="heads"))
    heads = torch.load(HEADS, weights_only=True)["heads_z"]
    alive = [int(index) for index, one in left["attention"].items() if one]
    assert heads.shape == (len(alive), 8)
    for row, index in zip(heads, alive, strict=True):
        assert row.nonzero().flatten().tolist() == kept("heads")["attention"][str(index)]
    fine(options | {"train_mask": False}, command(load="heads/ant-33.pt", start=33, out="fixed"))
    assert kept("fixed")["attention"] == kept("heads")["attention"]


def test_a_coarse_mask_that_was_applied_already_is_said_and_ignored() -> None:
    """The seed's pair: a mask over more sublayers than this model has, with as many ones as it has."""
    holes = [[False, True], [True, True], [False, False], [False, False], [True, False]]
    prepare(Path("five"), CONFIG | {"num_layers": 5, "mask_modules": holes})
    for name in ("model.json", "dense.pt"):
        Path("five", name).rename(name)
    mask = {"self_att_layer_z": torch.tensor([1.0, 0, 1, 1, 0]), "ffn_layer_z": torch.tensor([0.0, 1, 1, 1])}
    torch.save(mask | {"cross_att_layer_z": torch.zeros(0)}, "old.pt")
    result = fine(FINE | {"coarse_mask": "old.pt"}, command(out="ignored"))
    assert "already" in result.stderr.replace("\n", " ")
    Path(HEADS).unlink()
    fine(FINE, command(out="without"))
    assert kept("ignored") == kept("without")


def test_a_coarse_mask_of_another_model_is_an_error_with_both_counts() -> None:
    mask = {"self_att_layer_z": torch.ones(5), "ffn_layer_z": torch.ones(4), "cross_att_layer_z": torch.zeros(0)}
    torch.save(mask, "other.pt")
    result = fine(FINE | {"coarse_mask": "other.pt"}, command(out="stopped"), code=1)
    assert "5" in str(result.exception)
    assert "3" in str(result.exception)


def test_same_command_again_does_nothing_again() -> None:
    fine(FINE, command())
    stamp, first = Path(HEADS).stat().st_mtime_ns, digests("out")
    again = fine(FINE, command())
    assert "every pass was done before" in again.stdout
    assert digests("out") == first
    assert Path(HEADS).stat().st_mtime_ns == stamp
