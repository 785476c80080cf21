"""A GGUF file's header as the config of a model of transformers; what it says wrong is told with the file's name."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sprunec.compiler.opened import open_model
from sprunec.errors import InputError
from sprunec.families.gguf.gguf_config import config_document, llama3_scaling, shortest
from tests.helpers.gguf_bytes import put, tensor, whole
from tests.test_cli import WITHOUT_TORCH, run

KEYS: dict[str, tuple[str, Any]] = {
    "general.architecture": ("str", "llama"),
    "llama.block_count": ("u32", 1),
    "llama.context_length": ("u32", 64),
    "llama.embedding_length": ("u32", 8),
    "llama.feed_forward_length": ("u32", 12),
    "llama.attention.head_count": ("u32", 4),
    "llama.attention.head_count_kv": ("u32", 2),
    "llama.attention.layer_norm_rms_epsilon": ("f32", 1e-5),
    "llama.rope.freq_base": ("f32", 500_000.0),
    "tokenizer.ggml.model": ("str", "gpt2"),
    "tokenizer.ggml.tokens": ("list", ("str", ["a", "b", "c"])),
    "tokenizer.ggml.eos_token_id": ("u32", 2),
}
SHAPES = {
    "token_embd.weight": (3, 8),
    "output_norm.weight": (8,),
    "blk.0.attn_norm.weight": (8,),
    "blk.0.attn_q.weight": (8, 8),
    "blk.0.attn_k.weight": (4, 8),
    "blk.0.attn_v.weight": (4, 8),
    "blk.0.attn_output.weight": (8, 8),
    "blk.0.ffn_norm.weight": (8,),
    "blk.0.ffn_gate.weight": (12, 8),
    "blk.0.ffn_up.weight": (12, 8),
    "blk.0.ffn_down.weight": (8, 12),
}
EACH = 512  # bytes between tensors


def model(
    path: Path, keys: dict[str, tuple[str, Any]] | None = None, more: dict[str, Sequence[float]] | None = None
) -> Path:
    """Write a Llama of one layer, with other values of some keys, and vectors of its own."""
    given = {key: value for key, value in (KEYS | (keys or {})).items() if value is not None}
    vectors, shapes = more or {}, SHAPES | {name: (len(values),) for name, values in (more or {}).items()}
    tensors = [tensor(name, shape, 0, number * EACH) for number, (name, shape) in enumerate(shapes.items())]
    data = b"".join(struct.pack(f"<{len(v)}f", *v).ljust(EACH, b"\0") for v in (vectors.get(n, ()) for n in shapes))
    return put(path, whole(given, tensors, data))


def test_config_json_is_what_the_header_says(tmp_path: Path) -> None:
    found = config_document(model(tmp_path / "x.gguf"))
    assert found["architectures"] == ["LlamaForCausalLM"]
    sizes = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    assert [found[key] for key in sizes] == [1, 8, 12, 4, 2]
    assert (found["head_dim"], found["vocab_size"], found["max_position_embeddings"]) == (2, 3, 64)
    assert (found["rms_norm_eps"], found["rope_theta"]) == (1e-5, 500_000.0)
    assert found["tie_word_embeddings"] is True and found["attention_bias"] is False
    assert (found["bos_token_id"], found["eos_token_id"]) == (None, 2)


def test_its_weights_fit_the_config(tmp_path: Path) -> None:
    opened = open_model(model(tmp_path / "x.gguf"))
    assert opened.weights
    assert opened.config.parameters() == sum(a * (b[0] if b else 1) for a, *b in SHAPES.values())


def test_numbers_are_what_they_were_before_float32() -> None:
    for number in (1e-5, 1e-6, 0.1, 10_000.0, 1_000_000.0, 1.0, 0.25):
        assert shortest(struct.unpack("<f", struct.pack("<f", number))[0]) == number


def scaled(factor: float, base: float, dims: int) -> list[float]:
    """What Llama 3.1 divides its frequencies by, as transformers computes it."""
    found = []
    for at in range(dims // 2):
        wave = 2 * 3.141592653589793 * base ** (2 * at / dims)
        smooth = (8192 / wave - 1.0) / (4.0 - 1.0)
        found.append(1.0 if wave < 8192 / 4 else factor if wave > 8192 else 1 / ((1 - smooth) / factor + smooth))
    return found


@pytest.mark.parametrize(("factor", "base", "dims"), [(8.0, 500_000.0, 128), (32.0, 500_000.0, 64)])
def test_llama3s_scaling_is_known_by_its_factors(factor: float, base: float, dims: int) -> None:
    found = llama3_scaling(scaled(factor, base, dims), base)
    assert (found["rope_type"], found["factor"], found["low_freq_factor"]) == ("llama3", factor, 1.0)
    with pytest.raises(ValueError, match="scaled in a way"):
        llama3_scaling([1.0, 2.0, 3.0, 8.0], base)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"general.architecture": ("str", "qwen3moe")}, "is 'qwen3moe', and it must be llama, qwen2"),
    ({"general.architecture": ("u32", 7)}, "is 7, and it must be"),
    ({"general.architecture": None}, "is None, and it must be"),
    ({"split.count": ("u32", 3)}, "one of 3 files: put them together"),
    ({"llama.expert_count": ("u32", 8)}, "llama.expert_count is 8"),
    ({"llama.block_count": None}, "no llama.block_count"),
    ({"llama.block_count": ("u32", 5000)}, "sizes are none of a model"),
    ({"llama.block_count": ("str", "1")}, "llama.block_count is '1'"),
    ({"llama.block_count": ("u32", 2)}, "no tensor model.layers.1."),
    ({"llama.attention.head_count": ("u32", 0)}, "head_count is 0"),
    ({"llama.attention.head_count_kv": ("u32", 3)}, "sizes are none of a model"),
    ({"llama.attention.head_count_kv": ("list", ("u32", []))}, "head_count_kv is []"),
    ({"llama.feed_forward_length": ("list", ("u32", [12, 8]))}, "layers differ in llama.feed_forward_length"),
    ({"llama.attention.value_length": ("u32", 4)}, "another width than its keys"),
    ({"llama.attention.layer_norm_rms_epsilon": ("f32", float("nan"))}, "epsilon is nan"),
    ({"llama.rope.freq_base": ("f32", float("inf"))}, "freq_base is inf"),
    ({"llama.rope.dimension_count": ("u32", 1)}, "turns a part of each head"),
    ({"llama.rope.scaling.type": ("str", "longrope")}, "scaling.type is 'longrope'"),
    ({"llama.embedding_length": ("u32", 16)}, "token_embd.weight is [3, 8]"),
]


@pytest.mark.parametrize(("keys", "why"), WRONG, ids=lambda each: each[:30] if isinstance(each, str) else "")
def test_what_is_no_model_here_is_told_with_the_files_name(tmp_path: Path, keys: dict[str, Any], why: str) -> None:
    path = model(tmp_path / "x.gguf", keys)
    with pytest.raises(InputError) as told:
        open_model(path)
    assert told.value.exit_code == 3
    assert told.value.diagnostics[0].file == str(path)
    assert why.replace("token_embd", "model.embed_tokens") in told.value.diagnostics[0].message


def test_a_tensor_that_is_no_part_of_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"blk\.0\.attn_q\.lora"):
        open_model(model(tmp_path / "x.gguf", more={"blk.0.attn_q.lora.weight": [1.0, 2.0]}))


def test_factors_that_are_no_frequencies_are_refused(tmp_path: Path) -> None:
    for values in ([1.0, 2.0, 3.0], [float("nan")], [-1.0]):
        with pytest.raises(InputError, match="rope_freqs"):
            open_model(model(tmp_path / "x.gguf", more={"rope_freqs.weight": values}))


def test_changed_values_are_read_or_told(tmp_path: Path) -> None:
    """Any key with any kind of value: the file's name, and nothing else is raised."""
    pick, odd = random.Random(3), [("u32", 0), ("u32", 1), ("u32", 2**32 - 1), ("f32", float("nan")), ("f32", -1.0)]
    odd += [("str", ""), ("str", "\u2581"), ("bool", True), ("list", ("u32", [1, 0])), ("list", ("str", ["x"] * 3))]
    more = ("rope.scaling.type", "rope.scaling.factor", "attention.key_length", "vocab_size", "logit_scale")
    names, told = [*KEYS, *(f"llama.{key}" for key in more), "tokenizer.ggml.bos_token_id"], 0
    for _ in range(400):
        path = model(tmp_path / "x.gguf", {pick.choice(names): pick.choice(odd) for _ in range(pick.randint(1, 3))})
        try:
            open_model(path)
        except InputError as error:
            told += 1
            named = {found.file for found in error.diagnostics}
            assert named == {str(path)}
    assert told > 200


def test_inspect_exits_with_3_and_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = put(tmp_path / "cut.gguf", model(tmp_path / "x.gguf").read_bytes()[:300])
    assert run("inspect", path) == 3
    said = capsys.readouterr().err
    assert "cut.gguf" in said and "Traceback" not in said


def test_inspect_shows_a_file_without_torch(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, "inspect", str(model(tmp_path / "x.gguf"))]
    assert "Llama" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
