"""Cheap scores: what matters least ranks last."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sprunec.data.batches import Batch
from sprunec.engines.device import Place
from sprunec.engines.losses import language_model_loss
from sprunec.families.base_config import everything, unit_sizes
from sprunec.families.cpm_ant.blocks import build, example_inputs
from sprunec.masks import scores as scoring
from sprunec.masks.scores import Calibration, Weights
from sprunec.models.meta_models import empty_model
from sprunec.rewrite.gating import insert_gates
from sprunec.rewrite.recipe import make_recipe
from sprunec.rewrite.trace import trace_blocks
from sprunec.units import Cut, gate_units
from tests.conftest import kept_layer, random_batch, tiny_config, tiny_model
from tests.helpers.block_by_block import scored

CPU = Place(torch.device("cpu"), torch.float32)
UNITS = ("head", "dim_head", "dim_ff", "layer")
DEAD = {"head": (1, 2), "dim_head": (0, 4), "dim_ff": (2, 17)}


def model_with_dead(unit: str) -> nn.Module:
    """The weights of one unit are all 0."""
    model, (layer, place) = tiny_model(), DEAD[unit]
    block = model.encoder.layers[layer]
    heads = {"head": (place, slice(None)), "dim_head": (slice(None), place)}
    with torch.no_grad():
        if unit == "dim_ff":
            block.ffn.ffn.w_in.w_0.weight[place] = block.ffn.ffn.w_in.w_1.weight[place] = 0
            block.ffn.ffn.w_out.weight[:, place] = 0
        else:
            attention = block.self_att.self_attention
            for name in ("project_q", "project_k", "project_v"):
                getattr(attention, name).weight.view(4, 6, 24)[heads[unit]] = 0
            attention.attention_out.weight.view(24, 4, 6)[(slice(None), *heads[unit])] = 0
    return model


def taylor(model: nn.Module, *units: str, batches: int = 2) -> dict:
    gates = insert_gates(model, trace_blocks(model, example_inputs(tiny_config())), gate_units(units))
    inputs = [random_batch(context=False, seed=seed) for seed in range(batches)]
    data = [Batch(each, each["input"].roll(-1, 1)) for each in inputs]
    return scoring.taylor(Calibration(model, gates, (), data, CPU, 0))


def calibrated(criterion: str, model: nn.Module, *units: str) -> dict:
    inputs = [random_batch(context=False, seed=seed) for seed in range(2)]
    data = [Batch(each, each["input"].roll(-1, 1)) for each in inputs]
    return scored(tiny_config(), model.state_dict(), data, criterion, *units)


def magnitude(model: nn.Module, *units: str) -> dict:
    blocks = trace_blocks(model, example_inputs(tiny_config()))
    return scoring.magnitude(Weights(blocks, unit_sizes(tiny_config(), units), model.state_dict(), 0))


@pytest.mark.parametrize("unit", DEAD)
def test_magnitude_ranks_a_dead_unit_last(unit: str) -> None:
    layer, place = DEAD[unit]
    scores = magnitude(model_with_dead(unit), unit)
    assert float(scores[(layer, unit)][place]) == 0.0
    assert sum(int((values <= 0).sum()) for values in scores.values()) == 1


@pytest.mark.parametrize("unit", DEAD)
def test_taylor_ranks_a_dead_unit_last(unit: str) -> None:
    layer, place = DEAD[unit]
    scores = taylor(model_with_dead(unit), unit)
    assert float(scores[(layer, unit)][place]) == 0.0
    assert sum(int((values <= 0).sum()) for values in scores.values()) == 1


@pytest.mark.parametrize("criterion", ["activation", "reconstruction"])
@pytest.mark.parametrize("unit", DEAD)
def test_scores_by_activations_rank_a_dead_unit_last(criterion: str, unit: str) -> None:
    layer, place = DEAD[unit]
    scores = calibrated(criterion, model_with_dead(unit), unit)
    assert float(scores[(layer, unit)][place]) == pytest.approx(0.0, abs=1e-9)
    assert sum(int((values <= 1e-9).sum()) for values in scores.values()) == 1
    assert {key: value.numel() for key, value in scores.items()} == unit_sizes(tiny_config(), [unit])


def test_activation_of_a_dim_is_the_energy_of_what_it_adds_in_the_stream() -> None:
    model, inputs = tiny_model(), random_batch(context=False, seed=0)
    ffn, seen = model.encoder.layers[1].ffn, {}
    ffn.ffn.w_out.register_forward_pre_hook(lambda _, given: seen.update(x=given[0]))
    ffn.register_forward_hook(lambda _, given, out: seen.update(stream=out))
    with torch.no_grad():
        model(**inputs)
    used = torch.arange(inputs["input"].size(1)) < inputs["length"][:, None]
    x, stream = seen["x"][used], seen["stream"][used]
    added = (x[:, 7:8] * ffn.ffn.w_out.weight[:, 7].detach()).square().mean() / stream.square().mean()
    data = [Batch(inputs, inputs["input"])]
    scores = scored(tiny_config(), tiny_model().state_dict(), data, "activation", "dim_ff")
    assert float(scores[(1, "dim_ff")][7]) == pytest.approx(float(added), rel=1e-4)


@pytest.mark.parametrize("criterion", ["activation", "reconstruction"])
def test_a_sublayer_counts_by_its_share_of_the_stream(criterion: str) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.encoder.layers[2].ffn.ffn.w_out.weight.mul_(0.01)
    scores = {key: float(value) for key, value in calibrated(criterion, model, "layer", "block").items()}
    sublayers = {key: value for key, value in scores.items() if key[1] != "block"}
    assert min(sublayers, key=sublayers.get) == (2, "feed_forward") and scores[(2, "feed_forward")] < 1e-3
    assert all(0 < value < 1 for value in sublayers.values())
    assert scores[(1, "block")] == pytest.approx(sum(v for k, v in sublayers.items() if k[0] == 1))


def test_a_repeated_dim_matters_to_activation_and_not_to_reconstruction() -> None:
    def repeated() -> nn.Module:
        model = tiny_model()
        gated = model.encoder.layers[0].ffn.ffn.w_in
        with torch.no_grad():
            for linear in (gated.w_0, gated.w_1):
                linear.weight[3] = linear.weight[5]
        return model

    energy, error = (calibrated(name, repeated(), "dim_ff")[(0, "dim_ff")] for name in ("activation", "reconstruction"))
    assert float(energy[5]) > float(energy.median()) and float(error[[3, 5]].min()) < 0.01 * float(energy[5])


@pytest.mark.parametrize("criterion", ["activation", "reconstruction"])
@pytest.mark.parametrize("unit", ["head", "dim_ff", "layer", "block"])
def test_a_layer_that_adds_nothing_to_an_empty_stream_has_scores(criterion: str, unit: str) -> None:
    model = tiny_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    scores = calibrated(criterion, model, unit)
    assert scores and all(bool(torch.isfinite(value).all()) for value in scores.values())


def test_magnitude_of_a_head_is_the_root_mean_square_of_its_weights() -> None:
    model = tiny_model()
    attention = model.encoder.layers[0].self_att.self_attention
    rows = [getattr(attention, f"project_{x}").weight[6:12] for x in "qkv"]
    weights = torch.cat([*rows, attention.attention_out.weight[:, 6:12].T])
    assert float(magnitude(model, "head")[(0, "head")][1]) == pytest.approx(
        float(weights.square().mean().sqrt().detach())
    )


def test_magnitude_of_heads_that_are_left_is_what_it_was() -> None:
    model, config = tiny_model(), tiny_config()
    kept = Cut((kept_layer((1, 3), tuple(range(6)), (0,)), *everything(config)[1:]))
    before = magnitude(model, "head")
    small = config.cut(everything(config), kept)
    cut = build(small)
    cut.load_state_dict(make_recipe(trace_blocks(model, example_inputs(config)), kept).cut(model.state_dict()))
    blocks = trace_blocks(cut, example_inputs(small))
    after = scoring.magnitude(Weights(blocks, unit_sizes(small, ["head"]), cut.state_dict(), 0))
    assert torch.allclose(after[(0, "head")], before[(0, "head")][[1, 3]])


@pytest.mark.parametrize("units", [["head", "dim_ff"], ["layer", "dim_head"], ["block"]])
def test_magnitude_needs_shapes_and_the_weights_of_blocks_only(units: list[str]) -> None:
    """The same numbers from a checkpoint's tensors as from a model in memory, one asked for after the other."""
    state, asked = tiny_model().state_dict(), set()

    class Stored(dict[str, torch.Tensor]):
        def __getitem__(self, name: str) -> torch.Tensor:
            asked.add(name)
            return super().__getitem__(name)

    blocks = trace_blocks(empty_model(tiny_config()), example_inputs(tiny_config()))
    sizes = unit_sizes(tiny_config(), units)
    got, wanted = scoring.magnitude(Weights(blocks, sizes, Stored(state), 0)), magnitude(tiny_model(), *units)
    assert got.keys() == wanted.keys() and all(torch.equal(got[key], wanted[key]) for key in wanted)
    assert asked and all(name.startswith("encoder.layers.") for name in asked)


def test_magnitude_ranks_a_smaller_sublayer_lower() -> None:
    model = tiny_model()
    with torch.no_grad():
        for parameter in model.encoder.layers[2].ffn.parameters():
            parameter.mul_(0.1)
    scores = {key: float(value) for key, value in magnitude(model, "layer", "block").items()}
    assert min((key for key in scores if key[1] != "block"), key=scores.get) == (2, "feed_forward")
    assert min((key for key in scores if key[1] == "block"), key=scores.get) == (2, "block")


def test_taylor_is_the_change_of_the_loss_when_a_gate_closes_a_little() -> None:
    model, inputs = tiny_model(), random_batch(context=False)
    batch = Batch(inputs, inputs["input"].roll(-1, 1))
    gates = insert_gates(model, trace_blocks(model, example_inputs(tiny_config())), ["head"])
    scores = scoring.taylor(Calibration(model, gates, (), [batch], CPU, 0))
    losses = []
    with torch.no_grad():
        for value in (1.01, 0.99):
            gates.set(1, "head", torch.tensor([1.0, value, 1.0, 1.0]))
            losses.append(float(language_model_loss(model, batch)) / batch.target_count)
    assert float(scores[(1, "head")][1]) == pytest.approx(abs(losses[0] - losses[1]) / 0.02, rel=0.02)


def test_taylor_leaves_no_gradients_behind() -> None:
    model = tiny_model()
    scores = taylor(model, *UNITS)
    assert {key: value.numel() for key, value in scores.items()} == unit_sizes(tiny_config(), UNITS)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(math.isfinite(float(value.sum())) for value in scores.values())


def test_random_scores_follow_the_seed() -> None:
    sizes = unit_sizes(tiny_config(), UNITS)
    first, same, other = (scoring.random(Weights((), sizes, {}, seed)) for seed in (1, 1, 2))
    assert all(torch.equal(first[key], same[key]) for key in sizes)
    assert all(not torch.equal(first[key], other[key]) for key in sizes)
    assert {key: value.numel() for key, value in first.items()} == sizes


def test_ranks_let_each_kind_of_unit_give_the_same_share() -> None:
    """By errors as they are, all heads would stay: they are of another size than those of dims."""
    draw = torch.Generator().manual_seed(0)
    scores = {(layer, "head"): 100 + torch.rand(4, generator=draw) for layer in range(3)}
    scores |= {(layer, "dim_ff"): torch.rand(40, generator=draw) for layer in range(3)}
    ranks = scoring.comparable(scores, {"sparsity": 0.5})
    for unit in ("head", "dim_ff"):
        before = torch.cat([value for key, value in scores.items() if key[1] == unit])
        after = torch.cat([value for key, value in ranks.items() if key[1] == unit])
        assert torch.equal(after.argsort(), before.argsort())
        assert float((after > 0.5).double().mean()) == 0.5
    assert {key: value.shape for key, value in ranks.items()} == {key: value.shape for key, value in scores.items()}
    assert scoring.comparable(scores, {"num_heads": 2}) == scores


def test_equal_scores_rank_in_the_order_of_their_places() -> None:
    ranks = scoring.ranks({(0, "head"): torch.ones(2), (1, "head"): torch.ones(2)})
    assert torch.cat(list(ranks.values())).tolist() == [0.25, 0.5, 0.75, 1.0]
