"""Compiled blocks learn what blocks learn, with all that may be in them; where nothing compiles it is said first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sprunec import read_plan
from sprunec.engines.loop import fit
from sprunec.errors import InputError
from sprunec.families.module_lists import blocks
from tests.conftest import tiny_model
from tests.engines.test_adapters import HOW, adapted
from tests.engines.test_adapters import batch as longer_each_step
from tests.engines.test_loop import CPU, TRAINING, batch
from tests.helpers.processes import DISTILLATION, events, saves, start, wait_until
from tests.helpers.small_plans import execute, mask_pass, plan, read_report, write
from tests.helpers.stock_training import learn
from tests.runs.test_adapted import weights

COMPILED = replace(CPU, compiled=True)
CLOSE = 2e-5  # of losses and weights, after some steps of Adam: sums in another order
INSIDE = "[post]encoder.layers.1.ffn.ffn.w_in.w_1"
slow = pytest.mark.slow


@contextmanager
def compiles(at_least: int) -> Iterator[None]:
    """So many graphs are compiled meanwhile."""
    counted = torch._dynamo.utils.counters["stats"]
    before = counted["unique_graphs"]
    yield
    assert counted["unique_graphs"] - before >= at_least


def farthest(found: dict[Any, Tensor], wanted: dict[Any, Tensor]) -> float:
    assert found.keys() == wanted.keys()
    return max(float((found[name] - wanted[name]).detach().abs().max()) for name in wanted)


@pytest.mark.parametrize(
    "name", ["llama", *(pytest.param(name, marks=slow) for name in ("qwen3", "gemma3_text", "gpt2", "gpt_neox"))]
)
def test_gates_and_weights_learn_what_they_learn_in_blocks_as_they_are(name: str, tmp_path: Path) -> None:
    wanted = learn(CPU, name, tmp_path)
    with compiles(2):
        losses, gates, state = learn(COMPILED, name, tmp_path)
    assert losses == pytest.approx(wanted[0], abs=CLOSE)
    assert farthest(gates, wanted[1]) < CLOSE
    assert farthest(state, {name: tensor.clone() for name, tensor in wanted[2].items()}) < 10 * CLOSE


@slow
def test_adapters_learn_the_same_on_texts_of_every_length(tmp_path: Path) -> None:
    states = []
    for engine in (CPU, COMPILED):
        _, model, adapters = adapted("llama", tmp_path)
        fit(model, longer_each_step, HOW, engine, first_step=0, report=lambda event: None)
        states.append(dict(adapters.merged(model.state_dict())))
    assert farthest(*states) < CLOSE


@pytest.mark.parametrize("recompute", [False, True])
def test_all_that_is_hooked_on_a_block_stays_outside(recompute: bool) -> None:
    gradients, calls = [], list[int]()
    for compiled in (False, True):
        model = tiny_model()
        for number, (_, block) in enumerate(blocks(model)):
            block.register_forward_hook(lambda *_, number=number: calls.append(number))
        driver = replace(CPU, compiled=compiled, recompute=recompute).drive(model, TRAINING)
        driver.backward(driver.losses(batch(0), [lambda logits, places: logits.square().mean()])[0])
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert calls[: len(calls) // 2] == calls[len(calls) // 2 :]
    assert farthest(*gradients) < CLOSE


def chain(**engine: Any) -> dict[str, Any]:
    """Gates, then what is left of the model, whose layers differ, drawn to states inside of one of its blocks."""
    taught = DISTILLATION | {"pairs": [f"{INSIDE}:{INSIDE}"]}
    return plan(
        {"pass": "train", "steps": 4},
        mask_pass("dim_ff", {"dim_ff": 20}, steps=6, budget="global", mask_learning_rate=0.3),
        {"pass": "finetune", "steps": 60, "distillation": taught},
        training={"checkpoint_every": 5},
        engine=engine,
    )


@pytest.fixture(scope="module")
def compiled_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compiled")
    execute(chain(compile=True), folder)
    return folder


def test_a_run_comes_to_the_same_losses_and_masks(compiled_run: Path, tmp_path: Path) -> None:
    execute(chain(), tmp_path)
    found, wanted = events(compiled_run), events(tmp_path)
    assert len(found) == len(wanted) == 70
    assert [e["loss"] for e in found] == pytest.approx([e["loss"] for e in wanted], abs=10 * CLOSE)
    taught = [e["distillation"] for e in wanted if "distillation" in e]
    assert len(taught) == 60 and min(taught) > 0.1
    assert [e["distillation"] for e in found if "distillation" in e] == pytest.approx(taught, abs=10 * CLOSE)
    assert read_report(compiled_run / "out")["kept"] == read_report(tmp_path / "out")["kept"]


def test_a_run_that_was_killed_ends_with_the_same_bytes(compiled_run: Path, tmp_path: Path) -> None:
    running = start(tmp_path, chain(compile=True), processes=1)
    wait_until(lambda: len(events(tmp_path, "finetune")) > 10 and saves(tmp_path), running)
    running.kill()
    running.communicate()
    execute(chain(compile=True), tmp_path)
    last = [entry for entry in read_report(compiled_run / "out")["passes"] if entry["pass"] == "finetune"][-1]
    found, wanted = (weights(folder / "out", last["digest"]) for folder in (tmp_path, compiled_run))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_without_a_compiler_a_run_is_refused_before_it_begins(tmp_path: Path) -> None:
    with (
        torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(InputError, match=r"torch.compile needs a C\+\+ compiler, and found none"),
    ):
        execute(chain(compile=True), tmp_path)
    assert not [*tmp_path.glob("out/store/*")]


def test_a_block_that_does_not_compile_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a kernel is missing")

    model = tiny_model()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=fails))
    driver = COMPILED.drive(model, TRAINING)
    with pytest.raises(InputError, match="does not take a block of this model: .*a kernel is missing") as raised:
        driver.losses(batch(0), [lambda logits, places: logits.square().mean()])
    assert raised.value.diagnostics[0].hint == "leave it out: blocks then run as they are"


def test_bmtrain_and_compiled_blocks_are_refused_by_validate(tmp_path: Path) -> None:
    content = chain(name="bmtrain", compile=True)
    with pytest.raises(InputError, match="torch.compile does not see it"):
        read_plan(write(tmp_path, content))
