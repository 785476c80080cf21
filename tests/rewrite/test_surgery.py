"""Cutting for real: the small model computes what the masked one computed, whatever the blocks look like."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprunec.errors import TraceError
from sprunec.families.base_config import everything
from sprunec.families.cpm_ant.blocks import build, example_inputs
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.rewrite import gating, surgery
from sprunec.rewrite.recipe import make_recipe
from sprunec.rewrite.trace import trace, trace_blocks
from sprunec.units import Cut, Kept
from tests.conftest import kept_layer, random_batch, tiny_config, tiny_model
from tests.helpers.strange import Strange

IDS = torch.arange(14).reshape(2, 7)
SOME = kept_layer((1, 3), (0, 2, 5), (3, 4, 9))
RAGGED = Cut((SOME, kept_layer(None, None, (1, 2)), kept_layer((0, 1, 2), (1, 2, 3), None)))
TOLERANCE = 5e-6


class Block(nn.Module):
    """Attention and an MLP in the many ways that people write them."""

    def __init__(self, style: str) -> None:
        super().__init__()
        self.style = style
        self.norm_one, self.norm_two = nn.LayerNorm(24), nn.LayerNorm(24)
        self.qkv, self.out = nn.Linear(24, 72), nn.Linear(24, 24)
        self.up, self.down = nn.Linear(24, 40), nn.Linear(40, 24)

    def attend(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        fused = self.qkv(x)
        query, key, value = fused.split([24, 24, 24], dim=-1) if "list" in self.style else fused.chunk(3, dim=-1)
        query, key, value = (part.view(batch, length, 4, -1).transpose(1, 2) for part in (query, key, value))
        if self.style == "scale by size":
            scores = query @ key.transpose(-2, -1) / math.sqrt(key.size(-1))
            mixed = F.softmax(scores, dim=-1) @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        mixed = mixed.transpose(1, 2)
        return self.out(mixed.reshape(x.shape) if self.style == "view like x" else mixed.flatten(2))

    def widen(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))

    def forward(self, x: Tensor) -> Tensor:
        if self.style == "post-norm":
            x = self.norm_one(x + self.attend(x))
            return self.norm_two(x + self.widen(x))
        if self.style == "parallel":
            return x + self.attend(self.norm_one(x)) + self.widen(self.norm_two(x))
        x = x + self.attend(self.norm_one(x))
        return x + self.widen(self.norm_two(x))


class Foreign(nn.Module):
    def __init__(self, style: str) -> None:
        super().__init__()
        self.words, self.blocks = nn.Embedding(50, 24), nn.ModuleList(Block(style) for _ in range(3))
        for parameter in self.blocks.parameters():
            nn.init.normal_(parameter, std=0.3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        for block in self.blocks:
            x = block(x)
        return x


def masked_and_cut(model: nn.Module, kept: Kept, ids: Tensor = IDS) -> tuple[nn.Module, nn.Module]:
    masked, small = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
    gating.mask(masked, trace(masked, ids), kept)
    surgery.rewrite(small, trace(small, ids), kept)
    return masked, small


@torch.no_grad()
def difference(model: nn.Module, kept: Kept) -> float:
    """Between masked and cut, once it is sure that the cut matters."""
    masked, small = masked_and_cut(model, kept)
    wanted = masked(IDS)
    for block in trace(model.eval(), IDS):
        assert block.sublayers() == ("attention", "feed_forward")
        assert block.sites.keys() == {"head", "dim_head", "dim_ff"}
    assert (model.eval()(IDS) - wanted).abs().max() > 0.01
    return float((small(IDS) - wanted).abs().max())


@torch.no_grad()
def cpm_difference(model: nn.Module, config: ModelConfig, kept: Kept) -> float:
    masked, small, batch = copy.deepcopy(model), copy.deepcopy(model), random_batch()
    gating.mask(masked, trace_blocks(masked, example_inputs(config)), kept)
    surgery.rewrite(small, trace_blocks(small, example_inputs(config)), kept)
    wanted = masked(**batch)[0]
    assert (model(**batch)[0] - wanted).abs().max() > 0.01
    return float((small(**batch)[0] - wanted).abs().max())


@pytest.mark.parametrize("fused", ["chunk", "view", "split"])
@pytest.mark.parametrize("kept", [Cut([SOME] * 3), RAGGED])
def test_cut_equals_masked_in_a_strange_transformer(fused: str, kept: Kept) -> None:
    assert difference(Strange(fused), kept) < TOLERANCE


@pytest.mark.parametrize("style", ["pre-norm", "post-norm", "parallel", "split by list"])
@pytest.mark.parametrize("kept", [Cut([SOME] * 3), RAGGED])
def test_cut_equals_masked_however_blocks_are_wired(style: str, kept: Kept) -> None:
    assert difference(Foreign(style), kept) < TOLERANCE


def test_a_scale_read_from_a_cut_dim_stays_what_it_was() -> None:
    assert difference(Foreign("scale by size"), Cut((kept_layer(None, None, (3, 4)), SOME, SOME))) < TOLERANCE


def test_a_view_to_another_tensors_shape_is_cut_right_or_not_at_all() -> None:
    blocks = trace(Foreign("view like x").eval(), IDS)
    assert "head" not in blocks[0].sites or difference(Foreign("view like x"), Cut([SOME] * 3)) < TOLERANCE


def test_the_default_attention_scale_stays_when_dim_head_is_cut() -> None:
    masked, small = masked_and_cut(
        Foreign("pre-norm"), Cut([kept_layer((0, 1, 2, 3), (0, 2, 5), tuple(range(40)))] * 3)
    )
    (call,) = [node for node in small.blocks[0].graph.nodes if "scaled_dot" in node.name]
    assert call.kwargs["scale"] == pytest.approx(1 / math.sqrt(6))
    with torch.no_grad():
        assert (small(IDS) - masked(IDS)).abs().max() < TOLERANCE


def test_the_scale_is_left_alone_when_only_heads_are_cut() -> None:
    _, small = masked_and_cut(Foreign("pre-norm"), Cut([kept_layer((1,), tuple(range(6)), tuple(range(40)))] * 3))
    (call,) = [node for node in small.blocks[0].graph.nodes if "scaled_dot" in node.name]
    assert "scale" not in call.kwargs


def test_cpm_ant_cut_equals_masked_and_equals_the_config_built() -> None:
    config, model, batch = tiny_config(), tiny_model(), random_batch()
    assert cpm_difference(model, config, RAGGED) < TOLERANCE
    built = build(config.cut(everything(config), RAGGED)).eval()
    recipe = make_recipe(trace_blocks(model, example_inputs(config)), RAGGED)
    built.load_state_dict(recipe.cut(model.state_dict()))
    small = surgery.rewrite(model, trace_blocks(model, example_inputs(config)), RAGGED)
    with torch.no_grad():
        assert torch.equal(built(**batch)[0], small(**batch)[0])
    assert small.state_dict().keys() == built.state_dict().keys()


def test_a_cut_cpm_ant_is_cut_again_from_its_config() -> None:
    config = tiny_config()
    small = config.cut(everything(config), RAGGED)
    model = tiny_model(layers=small.to_dict()["layers"], divisors=small.to_dict()["divisors"])
    again = Cut((kept_layer((1,), (0, 2), (2,)), kept_layer(None, None, (1,)), kept_layer((0, 2), (1,), None)))
    assert cpm_difference(model, small, again) < TOLERANCE


@pytest.mark.parametrize("fused", ["chunk", "view", "split"])
def test_cutting_twice_equals_cutting_once(fused: str) -> None:
    at_once, in_two = Strange(fused).eval(), Strange(fused).eval()
    in_two.load_state_dict(at_once.state_dict())
    surgery.rewrite(at_once, trace(at_once, IDS), Cut([kept_layer((3,), (2, 5), (4, 9))] * 3))
    surgery.rewrite(in_two, trace(in_two, IDS), Cut([SOME] * 3))
    surgery.rewrite(in_two, trace(in_two, IDS), Cut([kept_layer((1,), (1, 2), (1, 2))] * 3))
    with torch.no_grad():
        assert (at_once(IDS) - in_two(IDS)).abs().max() < TOLERANCE
    assert in_two.units[0].qkv.weight.shape == (3 * 1 * 2, 24)


def test_cached_decoding_of_the_cut_model_equals_its_forward() -> None:
    config, model = tiny_config(), tiny_model()
    kept = Cut((RAGGED[1], RAGGED[0], RAGGED[2]))
    small = surgery.rewrite(model, trace_blocks(model, example_inputs(config)), kept)
    small.cache_shapes = [None, (2, 3), (3, 3)]
    words = torch.randint(1, 97, (2, 6))
    made = small.generate(words, max_new_tokens=4, context=False)
    for length in range(6, 10):
        batch = random_batch(text=length, context=False)
        batch["length"][:] = 5 + length
        batch["input"][:, 5:] = made[:, :length]
        with torch.no_grad():
            assert torch.equal(small(**batch)[0][:, -1].argmax(-1), made[:, length])


def test_a_bypassed_attention_hands_no_past_on() -> None:
    config, model = tiny_config(), tiny_model()
    small = surgery.rewrite(model, trace_blocks(model, example_inputs(config)), RAGGED)
    hidden, bias, past = torch.randn(1, 2, 24), torch.zeros(1, 4, 2, 5), torch.randn(1, 2, 3, 3)
    with torch.no_grad():
        _, key, value = small.encoder.layers[0].forward_cached(hidden, bias, past, past)
        result, no_key, no_value = small.encoder.layers[1].forward_cached(hidden, bias, None, None)
        assert torch.equal(result, small.encoder.layers[1](hidden, bias))
    assert key.shape == value.shape == (1, 2, 5, 3)
    assert torch.equal(key[:, :, :3], past)
    assert no_key is None
    assert no_value is None


def test_a_block_with_nothing_left_passes_its_stream_on() -> None:
    model = Strange().eval()
    small = surgery.rewrite(model, trace(model, IDS), Cut([{}] * 3))
    x, mask = torch.randn(2, 7, 24), torch.zeros(1, 4, 7, 7)
    assert small.units[1](x, mask) is x
    assert not list(small.units.parameters())


def test_tensors_that_stay_whole_stay_the_same_parameters() -> None:
    model = Strange().eval()
    norm, down = model.units[0].norm_one.weight, model.units[0].down.bias
    model.units[0].down.bias.requires_grad_(False)
    surgery.rewrite(model, trace(model, IDS), Cut([SOME] * 3))
    assert model.units[0].norm_one.weight is norm
    assert model.units[0].down.bias is down
    assert isinstance(model.units[0].up.weight, nn.Parameter)
    assert model.units[0].up.weight.requires_grad


def test_the_selection_of_shared_bias_is_no_weight() -> None:
    model = Strange().eval()
    before = set(model.state_dict())
    surgery.rewrite(model, trace(model, IDS), Cut([SOME] * 3))
    assert set(model.state_dict()) == before
    assert dict(model.units[0].named_buffers())["kept_mask_1"].tolist() == [1, 3]


def test_gradients_of_the_cut_model_are_slices_of_the_masked_ones() -> None:
    masked, small = masked_and_cut(Strange(), RAGGED)
    recipe = make_recipe(trace(Strange().eval(), IDS), RAGGED)
    for model in (masked, small):
        model(IDS).square().mean().backward()
    wanted = recipe.cut({name: p.grad for name, p in masked.named_parameters()})
    got = {name: p.grad for name, p in small.named_parameters()}
    assert wanted.keys() == got.keys()
    assert max(float((wanted[name] - got[name]).abs().max()) for name in got) < 1e-5


def test_asking_to_cut_what_has_no_site_is_an_error() -> None:
    model = Strange().eval()
    model.units[1].up.weight = model.units[0].up.weight
    with pytest.raises(TraceError, match="dim_ff"):
        make_recipe(trace(model, IDS), Cut([SOME] * 3))
