"""Traced graphs are held against their modules in every run, on weights and inputs drawn at random."""

from __future__ import annotations

import copy
import json
import operator
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import fx

from sprunec.errors import TraceError
from sprunec.families.huggingface.recording import record_calls
from sprunec.models import meta_models, verify
from sprunec.models.verify import verify_kinds
from sprunec.rewrite.trace import TracedBlock, trace_called
from tests.helpers.causal_lms import CONFIGS, causal_lm, families
from tests.runs.test_causal_lms import SCORED, directory, run


def traced(name: str) -> tuple[TracedBlock, ...]:
    model = causal_lm(name)
    return trace_called(model, record_calls(model))


def with_another(block: TracedBlock, method: str, *ops: object) -> TracedBlock:
    """The block with a graph that takes 1.01 times what the last of such ops gives."""
    program = block.programs[method]
    graph: fx.Graph = copy.deepcopy(program.graph)
    *_, op = (node for node in graph.nodes if node.target in ops)
    with graph.inserting_after(op):
        wrong = graph.call_function(operator.mul, (op, 1.01))
    op.replace_all_uses_with(wrong)
    wrong.args = (op, 1.01)
    return replace(block, programs={**block.programs, method: replace(program, graph=graph)})


SUM = (operator.add, torch.add, "add")
ACTIVATION = (torch.nn.functional.silu,)


@pytest.mark.parametrize("name", CONFIGS)
def test_graphs_of_all_families_hold(name: str) -> None:
    verify_kinds(traced(name))


@pytest.mark.parametrize("method", ["forward", "forward_cached"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
def test_a_graph_that_computes_something_else_is_refused(name: str, method: str) -> None:
    first, *others = traced(name)
    with pytest.raises(TraceError, match="its traced graph computes something else than its module"):
        verify_kinds([with_another(first, method, *SUM), *others])


@pytest.mark.parametrize("name", families())
def test_no_large_matrix_is_drawn_as_a_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "TABLE", 1000)
    blocks, drawn, randn = traced(name), list[int](), torch.randn
    monkeypatch.setattr(torch, "randn", lambda *a, **k: [made := randn(*a, **k), drawn.append(made.numel())][0])
    verify_kinds(blocks)
    largest = max(parameter.numel() for parameter in blocks[0].module.parameters() if parameter.dim() == 2)
    assert max(drawn) == 2000 < largest
    first, *others = blocks
    with pytest.raises(TraceError, match="its traced graph computes something else than its module"):
        verify_kinds([with_another(first, "forward", *SUM), *others])


def test_rows_taken_from_a_table_are_unlike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "TABLE", 5000)
    with torch.device("meta"):
        module = torch.nn.ModuleList(torch.nn.Linear(64, 300) for _ in range(2))
    drawn = verify.RandomWeights(module)
    one, other = (drawn.read(f"{number}.weight") for number in range(2))
    assert one.shape == (300, 64)
    rows = torch.cat([one.whole(), other.whole()])
    assert len(rows.unique(dim=0)) == 600
    assert torch.equal(one.whole(), drawn.read("0.weight").whole())
    assert 0.09 < float(rows.std()) < 0.11


@pytest.fixture
def with_wrong_graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    real = trace_called
    wrong = [meta_models.traced_whole.cache_clear, meta_models.traced_shape.cache_clear]
    for clear in wrong:
        clear()
    monkeypatch.setattr(
        meta_models, "trace_called", lambda *given: [with_another(b, "forward", *ACTIVATION) for b in real(*given)]
    )
    yield
    for clear in wrong:
        clear()


WHERE = r"model\.layers\.0\.mlp \(Qwen3MLP\) at .*modeling_qwen3.py:\d+ `.*act_fn.*`: its traced graph computes"


def test_a_run_refuses_such_a_graph_before_it_cuts(tmp_path: Path, with_wrong_graphs: None) -> None:
    directory(tmp_path, "qwen3")
    with pytest.raises(TraceError, match=WHERE):
        run(tmp_path, SCORED | {"unit": "dim_ff", "target": {"dim_ff": 40}})
    assert not (tmp_path / "out/model").exists()


def test_graphs_are_held_against_their_modules_on_the_models_own_weights_and_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory(tmp_path, "smollm3")
    seen: list[tuple[int, torch.Tensor, float]] = []
    real = verify.verify

    def noted(block: TracedBlock, method: str, inputs: Sequence[torch.Tensor], graph: object = None) -> float:
        weights = torch.cat([each.detach().flatten() for each in block.module.parameters()])
        seen.append((block.index, inputs[0], float(weights.double().sum())))
        return real(block, method, inputs, graph)

    monkeypatch.setattr(verify, "verify", noted)
    (found,) = (each for each in run(tmp_path).data["passes"] if each["pass"] == "verify-trace")
    metrics = found["metrics"]
    assert metrics["blocks"].keys() == {"0", "1"}  # of which one has rotary positions, and the other none
    assert max(metrics["blocks"].values()) == metrics["max_relative_difference"] <= metrics["tolerance"] < 1e-4
    assert metrics["tokens"] == 64
    model = causal_lm("smollm3", vocab_size=300)
    for index, hidden, total in seen[-2:]:
        own = torch.cat([each.detach().flatten() for each in model.model.layers[index].parameters()])
        assert hidden.shape[:2] == (2, 32) and total == float(own.double().sum())


def test_a_difference_that_only_its_own_weights_show_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_wrong_graphs: None
) -> None:
    monkeypatch.setattr(meta_models, "verify_kinds", lambda blocks: None)
    directory(tmp_path, "qwen3")
    with pytest.raises(TraceError, match=WHERE):
        run(tmp_path, SCORED | {"unit": "dim_ff", "target": {"dim_ff": 40}})
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["status"] == "failed" and [each["pass"] for each in report["passes"]] == ["data", "load"]
