"""What a plan leaves open of training follows the model's family: pretrained models are not trained as new ones are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sprunec.compiler.lower import lower
from sprunec.plan.plan import check_plan, read_plan
from tests.helpers.small_plans import TRAIN, mask_pass, plan, write
from tests.runs.test_causal_lms import directory
from tests.test_cli import run

PASSES = (TRAIN, mask_pass("head", {"num_heads": 4}), {"pass": "finetune", "steps": 2})


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return directory(tmp_path_factory.mktemp("model"), "llama")


def options(folder: Path, *passes: dict[str, Any], **changes: Any) -> list[tuple[float, float]]:
    """The learning rate and the decay of each pass that trains, as its node has them."""
    graph = lower(read_plan(write(folder, plan(*passes, **changes))))
    trains = (node.options for node in graph.nodes if hasattr(node.options, "learning_rate"))
    return [(each.learning_rate, each.weight_decay) for each in trains]


def test_every_pass_that_trains_takes_the_familys_rate(dense: Path, tmp_path: Path) -> None:
    assert options(tmp_path, *PASSES) == [(0.01, 0.01)] * 3
    assert options(tmp_path, *PASSES, model={"path": str(dense)}) == [(2e-5, 0.0)] * 3


def test_what_is_written_goes_before_it(dense: Path, tmp_path: Path) -> None:
    passes = (*PASSES[:2], PASSES[2] | {"learning_rate": 3e-4})
    found = options(tmp_path, *passes, model={"path": str(dense)}, training={"learning_rate": 1e-4, "weight_decay": 1})
    assert found == [(1e-4, 1.0), (1e-4, 1.0), (3e-4, 1.0)]


def test_a_dry_run_shows_the_rate(dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("run", write(tmp_path, plan(*PASSES, model={"path": str(dense)})), "--dry-run", "--json") == 0
    assert capsys.readouterr().out.count("learning rate 2e-05") == 3


@pytest.mark.parametrize(
    ("training", "pointers"),
    [
        ({"learning_rate": 1e-3}, []),
        ({"learning_rate": 0.01}, ["/training/learning_rate"]),
        ({"learning_rate": 0.01, "optimizer": "sgd"}, []),
        ({"learning_rate": 0.01, "schedule": "noam", "warmup_steps": 400}, ["/passes/2/learning_rate"]),
    ],
    ids=repr,
)
def test_a_rate_far_above_it_is_warned_of(
    training: dict[str, Any], pointers: list[str], dense: Path, tmp_path: Path
) -> None:
    """Of noam the peak counts: 0.01 / sqrt(400) is 0.0005."""
    rates: dict[str, Any] = {"learning_rate": 0.05} if "schedule" in training else {}
    content = plan(*PASSES[:2], PASSES[2] | rates, model={"path": str(dense)}, training=training)
    found = [each for each in check_plan(write(tmp_path, content))[1] if each.code == "high-rate"]
    assert [(each.severity, each.pointer) for each in found] == [("warning", pointer) for pointer in pointers]
    assert not found or "such models are trained with about 2e-05" in found[0].message


def test_linears_of_its_blocks_are_made_sparse(dense: Path, tmp_path: Path) -> None:
    sparse = {"pass": "sparsify", "pattern": "m4n2_1d"}
    own, theirs = (
        next(node.options for node in lower(read_plan(write(tmp_path, content))).nodes if node.pass_ == "sparsify")
        for content in (plan(TRAIN, sparse), plan(sparse, model={"path": str(dense)}))
    )
    assert own.tensors == ("project_", "attention_out", "w_in", "w_out")
    assert theirs.tensors == ("model.layers.",)
