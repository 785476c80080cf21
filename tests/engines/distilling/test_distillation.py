"""What the losses of distillation are: held against their definitions, word by word and column by column."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from sprunec.data.batches import IGNORED, in_use
from sprunec.engines.distilling.distillation import Distiller, hidden_difference
from sprunec.engines.distilling.divergences import divergence
from sprunec.engines.training import Distillation
from sprunec.families.cpm_ant.blocks import example_inputs
from sprunec.families.states import Pair
from sprunec.rewrite.gating import insert_gates
from sprunec.rewrite.taps import observable
from sprunec.rewrite.trace import trace_blocks
from tests.conftest import tiny_config, tiny_model
from tests.engines.distilling.test_cached_teacher import cache
from tests.engines.test_loop import batch, farthest
from tests.helpers.students import INSIDE, NORM, by_columns, distiller, gradients, loss_of, seen


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_cross_entropy_is_over_words_per_target_times_the_temperature_squared(temperature: float) -> None:
    student, teacher, data = tiny_model(1), tiny_model(2), batch(0)
    found = loss_of(student, distiller(student, teacher, logits=0.5, temperature=temperature), data)
    with torch.no_grad():
        ours, theirs = (model(**data.inputs)[0].double() / temperature for model in (student, teacher))
    entropies = [
        -sum(
            math.exp(theirs[row, column, word] - theirs[row, column].logsumexp(0))
            * float(ours[row, column, word] - ours[row, column].logsumexp(0))
            for word in range(ours.size(2))
        )
        for row, column in (data.targets != IGNORED).nonzero().tolist()
    ]
    assert len(entropies) == data.target_count
    wanted = 0.5 * temperature**2 * sum(entropies) / len(entropies)
    assert float(found) == pytest.approx(wanted, rel=1e-5)
    over_the_sequence = -(theirs.softmax(-1) * ours.log_softmax(-1)).sum(1).mean()  # BMCook's
    assert float(found) != pytest.approx(0.5 * float(over_the_sequence), rel=0.1)


def test_only_positions_with_a_target_count() -> None:
    student, teacher, data = tiny_model(1), tiny_model(2), batch(0)
    before = loss_of(student, distiller(student, teacher, logits=1.0), data)
    with torch.no_grad():
        ours, theirs = (model(**data.inputs)[0][data.targets != IGNORED] for model in (student, teacher))
    assert float(divergence("forward", ours, theirs, 1.0)) / data.target_count == pytest.approx(float(before))
    wanted = F.cross_entropy(ours / 2.0, (theirs / 2.0).softmax(-1), reduction="sum")
    assert float(divergence("forward", ours, theirs, 2.0)) == pytest.approx(4.0 * float(wanted), rel=1e-5)


@pytest.mark.parametrize("weights", [{"logits": 1.0, "temperature": 2.0}, {"hidden": 1.0}])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(weights: dict[str, float]) -> None:
    student, data = tiny_model(1), batch(0)
    objective = distiller(student, copy.deepcopy(student), *([NORM, INSIDE] if "hidden" in weights else []), **weights)
    loss_of(student, objective, data)
    assert max(float(g.abs().max()) for g in gradients(student).values()) < 1e-7
    other = distiller(student, tiny_model(2), *([NORM, INSIDE] if "hidden" in weights else []), **weights)
    loss_of(student, other, data)
    assert max(float(g.abs().max()) for g in gradients(student).values()) > 1e-4


@pytest.mark.parametrize("kind", ["reverse", "skewed"])
@pytest.mark.parametrize("on", ["targets", "all"])
def test_a_kind_of_divergence_is_taken_where_it_is_asked_for(kind: str, on: str) -> None:
    student, teacher, data = tiny_model(1), tiny_model(2), batch(0)
    found = loss_of(student, distiller(student, teacher, logits=0.5, divergence=kind, on=on), data)
    wanted_places = data.targets != IGNORED if on == "targets" else in_use(data.inputs)
    with torch.no_grad():
        ours, theirs = (model(**data.inputs)[0][wanted_places] for model in (student, teacher))
    wanted = 0.5 * float(divergence(kind, ours, theirs, 1.0)) / len(ours)
    assert float(found) == pytest.approx(wanted, rel=1e-5)
    other = distiller(student, teacher, logits=0.5, divergence=kind, on="all" if on == "targets" else "targets")
    assert float(loss_of(student, other, data)) != pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("on", [None, "all"])
@pytest.mark.parametrize("parts", [1, 2])
def test_what_a_teacher_has_said_teaches_as_it_does_itself(on: str | None, parts: int, tmp_path: Path) -> None:
    """All of its tokens; of 20 of 97 the loss is another, but where a batch is parted it's the same."""
    student, teacher, data = tiny_model(1), tiny_model(2), batch(0)
    asked = {"logits": 0.5, "divergence": "reverse", "temperature": 2.0, "on": on}
    wanted = loss_of(student, distiller(student, teacher, **asked), data)
    taught = gradients(student)
    whole, some = (cache(tmp_path / str(top_k), [data], top_k, on or "targets", 2.0) for top_k in (97, 20))
    found = loss_of(student, distiller(student, whole, **asked), data, parts)
    assert float(found) == pytest.approx(float(wanted), rel=2e-3)
    largest = max(float(gradient.abs().max()) for gradient in taught.values())
    assert farthest(gradients(student), taught) < 2e-3 * largest
    coarse = loss_of(student, distiller(student, some, **asked), data, parts)
    assert float(coarse) == pytest.approx(float(loss_of(student, distiller(student, some, **asked), data)), rel=1e-5)
    assert float(coarse) < float(wanted) * (1 - 1e-3)  # classes together differ less than each by itself


# --- hidden states ---


def test_hidden_states_are_compared_on_targets_alone_where_that_is_asked_for() -> None:
    student, teacher, data = tiny_model(1), tiny_model(2), batch(0)
    found = loss_of(student, distiller(student, teacher, NORM, hidden=1.0, on="targets"), data)
    states = [seen(model, "encoder.output_layernorm", "post", data) for model in (student, teacher)]
    asked = data.targets != IGNORED
    wanted = float(hidden_difference(*states, asked)) / data.target_count
    assert float(found) == pytest.approx(wanted, rel=1e-5)
    everywhere = loss_of(student, distiller(student, teacher, NORM, hidden=1.0), data)
    assert float(everywhere) != pytest.approx(wanted, rel=1e-3)


def test_hidden_states_are_compared_as_unit_vectors_in_used_columns() -> None:
    student, teacher, data = tiny_model(1), tiny_model(2), batch(0)
    found = loss_of(student, distiller(student, teacher, NORM, INSIDE, hidden=2.0), data)
    lengths = data.inputs["length"].tolist()
    wanted = 0.0
    for name, side in (("encoder.output_layernorm", "post"), ("encoder.layers.1.ffn.layernorm_before_ffn", "pre")):
        wanted += by_columns(seen(student, name, side, data), seen(teacher, name, side, data), lengths)
    assert len(set(lengths)) > 1
    assert float(found) == pytest.approx(2.0 * wanted, rel=1e-5)


def test_hidden_states_of_a_cut_student_are_compared_too() -> None:
    absent = {"mask_modules": [[True, False], [False, True], [False, False]]}
    student, teacher, data = tiny_model(1, **absent), tiny_model(2), batch(0)
    pair = "[post]encoder.layers.0.ffn.ffn:[post]encoder.layers.2.self_att.self_attention"
    found = loss_of(student, distiller(student, teacher, pair, hidden=1.0), data)
    ours = seen(student, "encoder.layers.0.ffn.ffn", "post", data)
    theirs = seen(teacher, "encoder.layers.2.self_att.self_attention", "post", data)
    assert float(found) == pytest.approx(by_columns(ours, theirs, data.inputs["length"].tolist()), rel=1e-5)


def test_hidden_states_of_a_gated_student_are_compared_too() -> None:
    """Against a student of real modules whose weights were scaled by the gates."""
    heads = torch.tensor([1.0, 0.0, 0.3, 1.0])
    student, scaled, teacher, data = tiny_model(1), tiny_model(1), tiny_model(2), batch(0)
    with torch.no_grad():
        scaled.encoder.layers[1].self_att.self_attention.attention_out.weight.mul_(heads.repeat_interleave(6))
    blocks = trace_blocks(student, example_inputs(tiny_config()))
    insert_gates(student, blocks, ["head"]).set(1, "head", heads)
    pairs = [Pair.read(INSIDE), Pair.read("[post]encoder.layers.1:[post]encoder.layers.2")]
    places = observable(student, [pair.student for pair in pairs], blocks)
    taught = observable(teacher, [pair.teacher for pair in pairs])
    weights = Distillation(logits=0.0, temperature=1.0, hidden=1.0, pairs=(), project=False)
    found = loss_of(student, Distiller(teacher, weights, pairs, places, taught, [None, None]), data)
    wanted = 0.0
    for pair in pairs:
        ours, theirs = (
            seen(model, point.module, point.side, data)
            for model, point in ((scaled, pair.student), (teacher, pair.teacher))
        )
        wanted += by_columns(ours, theirs, data.inputs["length"].tolist())
    assert float(found) == pytest.approx(wanted, rel=1e-4)


def test_one_student_module_in_two_pairs_counts_twice() -> None:
    student, teacher, data = tiny_model(1), tiny_model(2), batch(0)
    other = NORM.replace(":[post]encoder.output_layernorm", ":[post]encoder.layers.1")
    alone = [loss_of(student, distiller(student, teacher, pair, hidden=1.0), data) for pair in (NORM, other)]
    both = loss_of(student, distiller(student, teacher, NORM, other, hidden=1.0), data)
    assert alone[0] != alone[1]
    assert float(both) == pytest.approx(float(alone[0] + alone[1]), rel=1e-5)


def test_a_state_of_zeros_gives_finite_gradients() -> None:
    state = torch.zeros(1, 3, 4, requires_grad=True)
    hidden_difference(state, torch.ones(1, 3, 4), torch.ones(1, 3, dtype=torch.bool)).backward()
    assert bool(torch.isfinite(state.grad).all())


def test_what_was_seen_is_let_go_and_watching_ends() -> None:
    student, teacher, data = tiny_model(1), tiny_model(2), batch(0)
    objective = distiller(student, teacher, NORM, hidden=1.0)
    loss_of(student, objective, data)
    assert objective._students.take() == objective._teachers.take() == {}
    objective.close()
    student(**data.inputs)
    assert objective._students.take() == {}
