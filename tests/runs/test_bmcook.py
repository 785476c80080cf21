"""Every mask_method and every generation of keys runs for real on a small CPM-Ant, through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.bmcook.test_l0_units import FIRST, LAST, LATER
from tests.helpers.bmcook_files import COARSE, FINE, bmcook
from tests.helpers.guide import STEPS, command, emitted, fine, kept, prepare, report, run

LAYERS = COARSE["coarse_mask"]


@pytest.fixture(autouse=True)
def _in_a_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)


def sprune(options: dict[str, Any], arguments: list[str], code: int | None = None) -> Any:
    content = bmcook("sprune")
    content["pruning"]["sprune"] = options
    return run(content, arguments, code)


def trained(out: str = "out") -> bool:
    """The final weights are no longer those of the dense checkpoint."""
    before, after = (torch.load(path, weights_only=True) for path in ("dense.pt", f"{out}/ant-{STEPS}.pt"))
    assert before.keys() == after.keys()
    assert all(before[name].shape == after[name].shape for name in before)
    return not all(torch.equal(before[name], after[name]) for name in before)


def parameters(out: str = "out") -> tuple[int, int]:
    models = report(out)["models"]
    return models["dense"]["parameters"], models["small"]["parameters"]


def removed(out: str, whole: int) -> float:
    dense, small = parameters(out)
    return (dense - small) / whole


ATTENTION, FEED_FORWARD = 4 * 64 * 32 + 32, 3 * 48 * 32 + 32


def test_without_pruning_the_model_is_trained() -> None:
    for method in ("m4n2_1d/m4n2_2d/sprune", "fine-grained"):
        run(bmcook(method, is_pruning=False), command(out=method[:4]))
        assert [entry["pass"] for entry in report(method[:4])["passes"]].count("train") == 1
        assert trained(method[:4])
        assert emitted(method[:4]).keys() == torch.load("dense.pt", weights_only=True).keys()


def test_coarse_grained_learns_a_mask_and_then_tunes_under_it() -> None:
    coarse = COARSE | {"target_sparsity": 0.5}
    told = run(bmcook("coarse-grained"), command(out="one"), l0_pruning={"coarse-grained": coarse})
    assert "0.5 is the share removed" in told.stderr
    assert trained("one")
    assert 0.5 - 1 / 6 <= removed("one", 3 * (ATTENTION + FEED_FORWARD)) <= 0.5 + 1 / 6
    before = Path(LAYERS).read_bytes()
    fixed = {"coarse-grained": coarse | {"train_mask": False}}
    run(bmcook("coarse-grained"), command(load="one/ant-3.pt", start=3, out="two"), l0_pruning=fixed)
    assert kept("two") == kept("one")
    assert Path(LAYERS).read_bytes() == before


@pytest.mark.parametrize(("mode", "part", "count"), [("att", "attention", 3), ("ffn", "feed_forward", 20)])
def test_fine_grained_learns_heads_or_dims(mode: str, part: str, count: int) -> None:
    fine(FINE | {"prune_mode": mode}, command())
    sizes = [len(each) if isinstance(each, list) else each for each in kept("out")[part].values()]
    assert sizes == [count] * 3
    assert trained()
    own, other = ("heads_mask", "dimff_mask") if mode == "att" else ("dimff_mask", "heads_mask")
    assert Path(FINE[own]).exists()
    assert not Path(FINE[other]).exists()


def test_fine_grained_tunes_under_both_files() -> None:
    """The original read heads_mask alone: a separate dimff_mask was never applied."""
    Path("results/sprune").mkdir(parents=True)
    heads = torch.zeros(3, 8)
    heads[:, [1, 6]] = 1
    dims = torch.zeros(3, 48)
    dims[:, 5:21] = 1
    torch.save({"heads_z": heads}, FINE["heads_mask"])
    torch.save({"dimff_z": dims}, FINE["dimff_mask"])
    fine(FINE | {"train_mask": False}, command())
    assert kept("out") == {
        "attention": {str(index): [1, 6] for index in range(3)},
        "feed_forward": {str(index): 16 for index in range(3)},
    }
    assert trained()


def test_one_file_may_hold_heads_and_dims() -> None:
    """What the original's ffn stage wrote over its heads file."""
    Path("results/sprune").mkdir(parents=True)
    heads = torch.nn.Parameter(torch.eye(8)[:3], requires_grad=False)
    torch.save({"heads_z": heads, "dimff_z": torch.eye(48)[:3]}, FINE["heads_mask"])
    fine(FINE | {"train_mask": False}, command(steps=0))
    assert kept("out") == {
        "attention": {str(index): [index] for index in range(3)},
        "feed_forward": {str(index): 1 for index in range(3)},
    }


def test_actual_prune_only_slices() -> None:
    """No training, no data: what do_prune.py was, with every layer's own bias columns."""
    Path("results/sprune").mkdir(parents=True)
    torch.save({"heads_z": torch.eye(8)[[2, 5, 7]], "dimff_z": torch.eye(48)[[40, 1, 7]]}, FINE["heads_mask"])
    fine(FINE | {"train_mask": False}, [*command(steps=0), "--data-bin-path", "nowhere"])
    dense, small = torch.load("dense.pt", weights_only=True), emitted()
    for layer, (head, dim) in enumerate([(2, 40), (5, 1), (7, 7)]):
        block = f"encoder.layers.{layer}"
        name = f"{block}.self_att.self_attention.project_q.weight"
        assert torch.equal(small[name], dense[name][8 * head : 8 * head + 8])
        name = f"{block}.ffn.ffn.w_out.weight"
        assert torch.equal(small[name], dense[name][:, [dim]])
    config = json.loads(Path("out/model/sprunec/config.json").read_text())
    assert [layer["kept_heads"] for layer in config["layers"]] == [[2], [5], [7]]
    assert report("out")["comparison"]["max_abs_difference"] < 1e-5
    assert not list(Path("out").glob("*.pt"))


@pytest.mark.parametrize("spelling", ["target_mode", "training_mode"])
def test_structure_learns_to_a_sparsity_or_a_dimension(spelling: str) -> None:
    main = {"criterion": "l0", "training_mask": ["dim_ff"], "fixed_mask_path": "", "mask_mode": "train_mask"}
    second = {"main": main | {spelling: "sparsity"}, spelling: {"sparsity": 0.5, "dimension": 12}}
    run(bmcook("structure"), command(out="one"), sprune=second)
    assert sum(kept("one")["feed_forward"].values()) == 3 * 24
    second["main"] |= {spelling: "dimension"}
    run(bmcook("structure"), command(out="two"), sprune=second)
    assert list(kept("two")["feed_forward"].values()) == [12, 12, 12]
    Path("one/masks/dimff_mask.pt").rename("fixed.pt")
    second["main"] |= {"mask_mode": "fixed_mask", "fixed_mask_path": "fixed.pt"}
    run(bmcook("structure"), command(out="three"), sprune=second)
    assert kept("three")["feed_forward"] == kept("one")["feed_forward"]


def test_sprunes_first_keys_learn_blocks_and_heads_together() -> None:
    sprune(FIRST | {"target_sparsity": 0.6}, command(out="one"))
    assert removed("one", 3 * (ATTENTION + FEED_FORWARD)) == pytest.approx(0.6, abs=0.05)
    Path("one/masks/head_mask.pt").rename("fixed.pt")
    sprune(FIRST | {"mask_mode": "fixed", "fixed_mask_path": "fixed.pt"}, command(out="two"))
    assert {index: heads for index, heads in kept("two")["attention"].items() if heads} == {
        index: heads for index, heads in kept("one")["attention"].items() if heads
    }


@pytest.mark.parametrize("options", [LATER | {"mode": "training"}, LAST], ids=["later keys", "last keys"])
def test_sprunes_other_keys_write_a_mask_file_and_tune_under_it(options: dict[str, Any]) -> None:
    sprune(options, command(out="one"))
    masks = torch.load("results/mask.bin", weights_only=True)
    assert sorted(masks) == sorted(options["training_mask"])
    assert {mask.dtype for mask in masks.values()} == {torch.float16}
    tuning = options | ({"mode": "tuning"} if "mode" in options else {"is_training": False})
    sprune(tuning, command(load="one/ant-3.pt", start=3, out="two"))
    assert kept("two") == kept("one")


@pytest.mark.parametrize("method", ["m4n2_1d", "m4n2_2d"])
def test_two_of_four_weights_stay_through_training_and_a_second_run(method: str) -> None:
    content = bmcook(method)
    content["pruning"] |= {"pruned_module": ["ffn.ffn.w_out.weight", "project_q"], "pruning_mask_path": "mask.bin"}
    run(content, command(out="one"))
    assert trained("one")
    masks = torch.load("mask.bin", weights_only=True)
    assert list(masks) == [f"encoder.layers.{index}" for index in range(3)]
    weights = emitted("one")
    name = "encoder.layers.1.ffn.ffn.w_out.weight"
    mask = dict(masks["encoder.layers.1"])["ffn.ffn.w_out.weight"]
    assert mask.sum() == mask.numel() / 2
    assert torch.equal(weights[name] != 0, mask.bool())
    assert bool((weights["encoder.layers.1.self_att.self_attention.project_k.weight"] != 0).all())
    again = run(content, command(load="one/ant-3.pt", start=3, out="two"))
    assert "mask.bin, made just now, is applied" in again.stderr.replace("\n", " ")
    assert torch.equal(emitted("two")[name] != 0, mask.bool())


def test_distillation_is_done_and_not_read_over() -> None:
    pairs = ["[post]encoder.output_layernorm:[post]encoder.output_layernorm"]
    section = {"ce_scale": 0.5, "ce_temp": 2, "mse_hidn_scale": 0.1, "mse_hidn_module": pairs, "mse_hidn_proj": False}
    content = bmcook("fine-grained", distillation=section)
    run(content, command(out="with"), l0_pruning={"fine-grained": FINE})
    fine(FINE, command(out="without"))
    events = [json.loads(line) for line in Path("with/events.jsonl").read_text().splitlines()]
    assert all(event["distillation"] > 0 for event in events)
    with_it, without = emitted("with"), emitted("without")
    assert any(
        with_it[name].shape != without[name].shape or not torch.equal(with_it[name], without[name]) for name in with_it
    )
