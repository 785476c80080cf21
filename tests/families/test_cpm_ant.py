"""CPM-Ant against transformers' own, against itself with a cache, and under torch.fx."""

from __future__ import annotations

import math

import pytest
import torch
from torch import fx

from sprunec.families.cpm_ant.blocks import build, initialize
from sprunec.families.cpm_ant.model import CPMAnt
from tests.conftest import TINY, random_batch, tiny_config, tiny_model
from tests.helpers.decoding import decodes_as_one_forward

PROMPT = TINY["prompt_length"]


def hugging_face_twin(model: CPMAnt) -> torch.nn.Module:
    """transformers' CpmAntForCausalLM with the same function: the divisors folded into its weights."""
    transformers = pytest.importorskip("transformers")
    config = transformers.CpmAntConfig(
        vocab_size=TINY["vocab_size"],
        hidden_size=TINY["dim_model"],
        num_attention_heads=TINY["num_heads"],
        num_hidden_layers=TINY["num_layers"],
        **{key: TINY[key] for key in TINY if key not in ("vocab_size", "dim_model", "num_heads", "num_layers")},
    )
    twin = transformers.CpmAntForCausalLM(config).eval()
    folded = {}
    for name, weight in model.state_dict().items():
        scale = 1.0 if "layernorm" in name or "relative" in name else math.sqrt(weight.shape[1])
        folded[f"cpmant.{name}"] = weight / scale
    prompts = folded.pop("cpmant.prompt_embedding.weight")
    words = folded["cpmant.input_embedding.weight"]
    folded["cpmant.input_embedding.weight"] = torch.cat([words, prompts])
    folded["lm_head.weight"] = words
    twin.load_state_dict(folded, strict=True)
    return twin


def text_batch(text: int, pad: int = 0) -> torch.Tensor:
    words = torch.randint(1, TINY["vocab_size"], (2, text))
    words[1, :pad] = 0
    return words


def inference_arguments(words: torch.Tensor) -> dict[str, torch.Tensor]:
    """What CPM-Live's inference wants for text that is all context, padded on the left."""
    batch = words.size(0)
    prompt = torch.arange(2 * PROMPT, 3 * PROMPT).expand(batch, -1)
    ones = torch.ones(batch, PROMPT, dtype=torch.long)
    return {
        "input": torch.cat([prompt, words], 1),
        "length": (words != 0).sum(1),
        "context": torch.cat([ones, torch.ones_like(words)], 1).bool(),
        "position": None,
        "segment": torch.cat([0 * ones, torch.where(words != 0, 2, 0)], 1),
        "span": torch.zeros(batch, PROMPT + words.size(1), dtype=torch.long),
    }


@pytest.mark.parametrize("pad", [0, 4])
def test_logits_equal_transformers(pad: int) -> None:
    model, words = tiny_model(), text_batch(9, pad)
    with torch.no_grad():
        ours, _, _ = model.inference(**inference_arguments(words))
        theirs = hugging_face_twin(model)(input_ids=words, use_cache=False).logits
    difference = (ours[:, PROMPT:] - theirs).abs()
    assert difference[words != 0].max() < 5e-6
    assert theirs.abs().max() > 1.0


def test_cached_decoding_equals_transformers() -> None:
    model, words = tiny_model(), text_batch(7)
    theirs = hugging_face_twin(model).generate(
        input_ids=words, max_new_tokens=6, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    ours = model.generate(words, max_new_tokens=6)
    assert torch.equal(ours, theirs.sequences)
    arguments = inference_arguments(words)
    _, _, past = model.inference(**arguments)
    for step in range(5):
        new = theirs.sequences[:, 7 + step : 8 + step]
        arguments = inference_arguments(theirs.sequences[:, : 8 + step]) | {"input": new, "past_key_values": past}
        logits, _, past = model.inference(**arguments)
        assert (logits[:, -1] - theirs.logits[step + 1]).abs().max() < 5e-6


def absent(layer_attention: list[int], layer_feed_forward: list[int]) -> list[list[bool]]:
    return [[i in layer_attention, i in layer_feed_forward] for i in range(TINY["num_layers"])]


@pytest.mark.parametrize("mask_modules", [None, absent([0], []), absent([0, 1], [1]), absent([2], [0, 2])])
def test_cached_steps_equal_one_full_forward(mask_modules: list[list[bool]] | None) -> None:
    """The words given are context, the generated ones are not: what a cache computes."""
    model = tiny_model(mask_modules=mask_modules)
    decodes_as_one_forward(model)


def test_absent_sublayers_equal_zeroed_projections() -> None:
    dense, batch = tiny_model(), random_batch()
    small = tiny_model(mask_modules=absent([0, 2], [1]))
    small.load_state_dict(dense.state_dict(), strict=False)
    with torch.no_grad():
        for layer in (0, 2):
            dense.encoder.layers[layer].self_att.self_attention.attention_out.weight.zero_()
        dense.encoder.layers[1].ffn.ffn.w_out.weight.zero_()
        assert torch.equal(dense(**batch)[0], small(**batch)[0])
    assert not any("layers.1.ffn" in name for name in small.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_padding_rows_stay_finite(dtype: torch.dtype) -> None:
    """A padded column sees nothing; its attention is 0 and no gradient becomes NaN."""
    model, batch = tiny_model().to(dtype), random_batch()
    logits, hidden = model(**batch)
    logits.float().square().mean().backward()
    assert logits.dtype == hidden.dtype == dtype
    assert torch.isfinite(logits).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    with torch.no_grad():
        assert (model(**batch)[0] - logits).abs().max() < (1e-5 if dtype == torch.float32 else 0.1)
    used = int(batch["length"][1])
    alone = {key: value[1:, :used] if value.dim() > 1 else value[1:] for key, value in batch.items()}
    with torch.no_grad():
        difference = (model(**alone)[0] - logits[1:, :used]).abs().max()
    assert difference < (1e-5 if dtype == torch.float32 else 0.1)


def test_a_fully_masked_row_gets_no_attention() -> None:
    model, batch = tiny_model(), random_batch()
    block = model.encoder.layers[0]
    hidden = torch.randn(1, 4, TINY["dim_model"])
    bias = torch.zeros(1, TINY["num_heads"], 4, 4)
    bias[:, :, 2] = float("-inf")
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            mixed = block.self_att.self_attention(hidden, bias)
        assert torch.equal(mixed[:, 2], torch.zeros_like(mixed[:, 2]))
        assert mixed[:, 1].abs().max() > 0
    assert batch["length"][0] > batch["length"][1]


def test_position_bias_buckets_at_published_values() -> None:
    bias = build(tiny_config(position_bias_num_buckets=512, position_bias_max_distance=2048)).position_bias
    known = {0: 0, -1: 1, 1: 257, -127: 127, 127: 383, 128: 384, -129: 128, 131: 385, -133: 129, 256: 416}
    known |= {-512: 192, 512: 448, 1024: 480, -2005: 255, 3000: 511}
    assert bias.bucket(torch.tensor(list(known))).tolist() == list(known.values())


def test_the_whole_model_traces_with_any_batch_and_length() -> None:
    model = tiny_model(mask_modules=absent([1], []))
    traced = fx.symbolic_trace(model)
    for batch in (random_batch(2, 11), random_batch(3, 6)):
        with torch.no_grad():
            assert torch.equal(traced(**batch)[0], model(**batch)[0])
    cached = fx.Tracer()
    cached.traced_func_name = "inference"
    graph = cached.trace(model, concrete_args={"past_key_values": None, "position": None})
    assert sum(node.target is torch.nn.functional.scaled_dot_product_attention for node in graph.nodes) == 2


def test_sampling_is_seeded_and_stops() -> None:
    model, words = tiny_model(), torch.randint(1, TINY["vocab_size"], (2, 6))

    def sample(seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        options = {"temperature": 0.9, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.2}
        return model.generate(words, max_new_tokens=8, generator=generator, **options).tolist()

    assert sample(1) == sample(1) != sample(2)
    greedy = model.generate(words, max_new_tokens=8)
    stopped = model.generate(words, max_new_tokens=8, stop=int(greedy[0, 7]))
    assert stopped[0].tolist()[:8] == greedy[0].tolist()[:8]
    assert set(stopped[0].tolist()[8:]) <= {int(greedy[0, 7])}


def test_initialisation_is_cpm_lives_and_seeded() -> None:
    first, second = build(tiny_config()), build(tiny_config())
    initialize(first, 3), initialize(second, 3)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert 0.015 < first.input_embedding.weight.std() < 0.025
    assert 0.9 < first.encoder.layers[0].ffn.ffn.w_in.w_0.weight.std() < 1.1
