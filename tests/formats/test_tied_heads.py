"""`tie_heads`: one mask for all layers, so that the bias table itself shrinks and CPM-Live's own classes fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import sprunec
from sprunec.errors import PassError
from sprunec.families.base_config import everything
from sprunec.families.cpm_ant.blocks import example_inputs
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.masks import gates as hard_concrete
from sprunec.masks.budgets import fill_all, make_budgets
from sprunec.masks.lagrangian import Lagrangian
from sprunec.masks.learn import GateLearner, start_from, tie
from sprunec.rewrite.gating import insert_gates
from sprunec.rewrite.trace import trace_blocks
from sprunec.units import Kept, Key
from tests.conftest import kept_layer, random_batch, tiny_config, tiny_model
from tests.helpers.live_loader import load_live
from tests.helpers.small_plans import TRAIN, execute, mask_pass, plan

CPU = torch.device("cpu")
TABLE = "position_bias.relative_attention_bias"
SCORES = {
    (0, "head"): torch.tensor([9.0, 1.0, 2.0, 3.0]),
    (1, "head"): torch.tensor([0.0, 1.0, 5.0, 4.0]),
    (2, "head"): torch.tensor([0.0, 2.0, 3.0, 4.0]),
}


def learner(log_alphas: dict[Key, Tensor], tie_heads: bool = True) -> tuple[Any, GateLearner]:
    model, config = tiny_model(), tiny_config()
    gates = insert_gates(model, trace_blocks(model, example_inputs(config)), ("head",))
    budgets = make_budgets(config, ("head",), {"num_heads": 2}, "per-layer", tie_heads)
    options = {"steps": 10, "rate": 0.1, "seed": 3, "device": CPU, "tie_heads": tie_heads}
    return model, GateLearner(gates, log_alphas, Lagrangian(budgets, 10, 0.5), **options)


def test_all_layers_keep_the_heads_with_the_best_sums() -> None:
    (budget,) = make_budgets(tiny_config(), ("head",), {"num_heads": 2}, "per-layer", tie_heads=True)
    masks = fill_all((budget,), SCORES)  # the sums are 9, 4, 10, 11
    assert all(mask.tolist() == [False, False, True, True] for mask in masks.values())
    assert (budget.full, budget.target, budget.unit) == (12.0, 6.0, 3.0)


def test_equal_scores_keep_the_same_heads_everywhere() -> None:
    (budget,) = make_budgets(tiny_config(), ("head",), {"num_heads": 2}, "per-layer", tie_heads=True)
    masks = fill_all((budget,), {key: torch.ones(4) for key in SCORES})
    assert all(mask.tolist() == [True, True, False, False] for mask in masks.values())


def test_other_budgets_of_the_pass_stay_as_they_are() -> None:
    target = {"num_heads": 2, "dim_ff": 10}
    budgets = make_budgets(tiny_config(), ("head", "dim_ff"), target, "per-layer", tie_heads=True)
    assert [budget.name for budget in budgets] == [*(f"dim_ff layer {i}" for i in range(3)), "num_heads"]


def test_layers_with_different_heads_cannot_be_tied() -> None:
    config = tiny_config()
    kept = Kept(kept_layer((0, i + 1), tuple(range(6)), tuple(range(40))) for i in range(3))
    with pytest.raises(PassError, match="different ones left"):
        make_budgets(config.cut(everything(config), kept), ("head",), {"num_heads": 1}, "per-layer", tie_heads=True)


def test_gates_start_in_the_order_of_the_sums_over_layers() -> None:
    tied = tie(SCORES | {(0, "dim_ff"): torch.tensor([1.0])})
    assert all(tied[key].tolist() == [9.0, 4.0, 10.0, 11.0] for key in SCORES)
    assert tied[(0, "dim_ff")].tolist() == [1.0]


def test_every_layer_is_gated_by_one_draw() -> None:
    _, gates = learner(start_from(tie(SCORES)))
    gates.before(0, 0)
    drawn = [gates._leaves[key] for key in SCORES]
    assert all(torch.equal(drawn[0], other) for other in drawn)
    assert int(((drawn[0] > 0) & (drawn[0] < 1)).sum()) > 0
    assert len(gates.state()["log_alphas"]) == 1


def test_the_shared_gate_gets_the_gradients_of_all_layers() -> None:
    """Against a loss that is written out: what each layer's gate gets, times the draw's own derivative."""
    model, gates = learner(start_from(tie(SCORES)))
    gates.before(0, 0)
    logits = model.train()(**random_batch())[0]
    logits.square().mean().backward()
    each = [gates._leaves[key].grad.clone() for key in SCORES]
    shared = gates.log_alphas[(0, "head")]
    gates.lagrangian.penalty = lambda kept, step: (sum(k.sum() for k in kept.values()) * 0.0, [0.0])  # type: ignore
    gates.backward(1.0)
    noise = torch.rand(4, generator=torch.Generator().manual_seed(3 * 1_000_003))
    alone = shared.detach().clone().requires_grad_()
    (hard_concrete.sample(alone, noise) * torch.stack(each).sum(0)).sum().backward()
    assert shared.grad.abs().max() > 1e-6
    assert (shared.grad - alone.grad).abs().max() < 1e-6
    assert min(gradient.abs().max() for gradient in each) > 1e-6


def test_a_stopped_learner_goes_on_where_it_was() -> None:
    def steps(gates: GateLearner, numbers: range) -> None:
        for step in numbers:
            gates.before(step, step)
            gates.backward(1.0)
            gates.after(step)

    _, whole = learner(start_from(tie(SCORES)))
    steps(whole, range(4))
    _, first = learner(start_from(tie(SCORES)))
    steps(first, range(2))
    _, second = learner(start_from(tie(SCORES)))
    second.load(first.state())
    steps(second, range(2, 4))
    assert torch.equal(whole.log_alphas[(2, "head")], second.log_alphas[(2, "head")])
    assert second.log_alphas[(0, "head")] is second.log_alphas[(2, "head")]


@pytest.fixture(scope="module")
def tied_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("tied")
    content = plan(
        TRAIN,
        mask_pass("head", {"num_heads": 3}, tie_heads=True),
        mask_pass(["dim_ff", "dim_head"], {"dim_ff": 20, "dim_head": 5}, budget="per-layer"),
        {
            "pass": "score-mask",
            "criterion": "taylor",
            "unit": "layer",
            "target": {"num_attention": 2, "num_feed_forward": 2},
        },
        {"pass": "finetune", "steps": 2},
        {"pass": "emit", "formats": ["sprunec", "cpm-live"]},
    )
    return folder / "out", execute(content, folder)


def test_a_tied_run_fits_cpm_live(tied_run: tuple[Path, dict[str, Any]]) -> None:
    out, report = tied_run
    heads = [kept for kept in report["kept"]["attention"].values() if kept is not None]
    assert len(heads) == 2
    assert heads[0] == heads[1]
    assert len(heads[0]) == 3
    config = json.loads((out / "model/cpm-live/config.json").read_text())
    assert (config["num_heads"], config["dim_head"], config["dim_ff"], config["half"]) == (3, 5, 20, False)
    assert sorted(config["mask_modules"]) != [[False, False]] * 3
    whole = load_file(out / "model/sprunec/model.safetensors")[TABLE]
    table = torch.load(out / "model/cpm-live/model.pt", weights_only=True)[TABLE]
    assert whole.shape == (25, 8)  # our own form keeps the table, and the index of the heads
    assert torch.equal(table, whole[:, heads[0]])


def test_both_forms_of_a_tied_run_say_the_same(tied_run: tuple[Path, dict[str, Any]]) -> None:
    out, report = tied_run
    found = report["formats"]["cpm-live"]
    assert found["max_abs_difference"] <= found["tolerance"] <= 1e-4
    assert found["tokens"] > 100
    batch = random_batch()
    batch["input"][:, :5] = torch.tensor([4, 5, 7, 8, 9])
    batch = {name: value[:, :9] if value.dim() == 2 else value.clamp(max=9) for name, value in batch.items()}
    with torch.no_grad():
        ours, theirs = sprunec.load(out / "model/sprunec")(**batch)[0], load_live(out / "model/cpm-live")(**batch)
    assert (ours - theirs).abs().max() < 1e-5


def _broken_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sprunec.families.cpm_ant.folding.fold_factors", lambda config: iter(()))


def _broken_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelConfig, "head_sets", property(lambda config: [(0, 1, 2)]))


@pytest.mark.parametrize("spoil", [_broken_factors, _broken_columns])
def test_a_form_that_says_something_else_is_not_handed_out(
    spoil: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch)
    heads = {"pass": "score-mask", "criterion": "random", "unit": "head", "target": {"num_heads": 3}, "tie_heads": True}
    content = plan(TRAIN, heads, {"pass": "emit", "formats": ["sprunec", "cpm-live"]})
    report = execute(content, tmp_path)
    assert report["status"] == "comparison-failed"
    found = report["formats"]["cpm-live"]
    assert found["max_abs_difference"] > found["tolerance"]
    assert "the format cpm-live differs from the model it was made of" in found["error"]
    assert [path.name for path in (tmp_path / "out/model").iterdir()] == ["sprunec"]
