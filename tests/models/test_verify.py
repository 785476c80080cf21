"""Traced graphs are held against their modules in every run, on weights and inputs drawn at random."""

from __future__ import annotations

import copy
import operator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import fx

from sprunec.errors import TraceError
from sprunec.families.huggingface.recording import record_calls
from sprunec.models import meta_models
from sprunec.models.verify import verify_kinds
from sprunec.rewrite.trace import TracedBlock, trace_called
from tests.helpers.causal_lms import CONFIGS, causal_lm
from tests.runs.test_causal_lms import SCORED, directory, run


def traced(name: str) -> tuple[TracedBlock, ...]:
    model = causal_lm(name)
    return trace_called(model, record_calls(model))


def with_another_sum(block: TracedBlock, method: str) -> TracedBlock:
    """The block with a graph that adds something else than its module."""
    program = block.programs[method]
    graph: fx.Graph = copy.deepcopy(program.graph)
    *_, add = (node for node in graph.nodes if node.target in (operator.add, torch.add, "add"))
    with graph.inserting_after(add):
        wrong = graph.call_function(operator.mul, (add, 1.01))
    add.replace_all_uses_with(wrong)
    wrong.args = (add, 1.01)
    return replace(block, programs={**block.programs, method: replace(program, graph=graph)})


@pytest.mark.parametrize("name", CONFIGS)
def test_graphs_of_all_families_hold(name: str) -> None:
    verify_kinds(traced(name))


@pytest.mark.parametrize("method", ["forward", "forward_cached"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
def test_a_graph_that_computes_something_else_is_refused(name: str, method: str) -> None:
    first, *others = traced(name)
    with pytest.raises(TraceError, match="its traced graph computes something else than its module"):
        verify_kinds([with_another_sum(first, method), *others])


def test_a_run_refuses_such_a_graph_before_it_cuts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meta_models._traced_whole.cache_clear()
    meta_models.traced_shape.cache_clear()
    real = trace_called
    monkeypatch.setattr(
        meta_models, "trace_called", lambda *given: [with_another_sum(b, "forward") for b in real(*given)]
    )
    directory(tmp_path, "qwen3")
    with pytest.raises(TraceError, match="computes something else"):
        run(tmp_path, SCORED | {"unit": "dim_ff", "target": {"dim_ff": 40}})
    assert not (tmp_path / "out/model").exists()
    meta_models._traced_whole.cache_clear()
