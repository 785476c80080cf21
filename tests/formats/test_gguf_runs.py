"""The format `gguf` in runs: what is compared before it is published, what is refused before any work, and a kill."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from tokenizers import Tokenizer

from sprunec.checkpoint import gguf_writer
from sprunec.compiler.lower import lower
from sprunec.errors import ComparisonError, InputError, SprunecError
from sprunec.execution.execute import execute
from sprunec.families.gguf.file_values import check_file
from sprunec.families.gguf.graph_fit import row_of
from sprunec.families.gguf.metadata import fields
from sprunec.families.gguf.written_tensors import file_tensors
from sprunec.families.model_directory import open_model_tensors
from sprunec.formats import gguf as gguf_format
from sprunec.formats.gguf import reopen
from sprunec.plan.plan import check_plan, read_plan
from sprunec.plan.schema import validator
from tests.formats.test_deci import GROUPED
from tests.formats.test_gguf import PACKED, PLAIN, UNSCALED
from tests.helpers.causal_lms import causal_lm
from tests.helpers.gguf_files import cut, exported
from tests.helpers.llama_graphs import Graph
from tests.helpers.small_plans import MODEL, plan, write
from tests.runs.test_causal_lms import SCORED, directory

EMIT = {"pass": "emit", "formats": ["gguf"]}
DIMS = SCORED | {"unit": "dim_ff", "target": {"sparsity": 0.3}, "budget": "global"}


@pytest.fixture
def by_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether llama.cpp is installed is no matter here."""
    monkeypatch.setattr(gguf_format, "RUNTIME", "no_llama_cpp")


def planned(folder: Path, *passes: dict[str, Any], **emit: Any) -> Path:
    content = plan(*passes, EMIT | emit, name="small", model={"path": "dense"}, evaluate={"tokens": 100})
    return write(folder, content)


@pytest.mark.usefixtures("by_numbers")
@pytest.mark.parametrize(("kind", "apart"), [("keep", 1e-4), ("q8_0", 0.05)])
def test_a_run_compares_the_file_and_the_tokenizer_is_in_it(kind: str, apart: float, tmp_path: Path) -> None:
    given = directory(tmp_path, "llama", **(GROUPED | PLAIN["llama"]))
    whole = SCORED | {"unit": "layer", "target": {"num_attention": 2, "num_feed_forward": 2}, "budget": "global"}
    report = execute(lower(read_plan(planned(tmp_path, DIMS, whole, gguf={"type": kind}))), tmp_path / "out")
    assert report.status == "done", report.data["error"]
    assert [error.message for error in validator("report").iter_errors(report.data)] == []
    form, out = report.data["formats"]["gguf"], tmp_path / "out/model/gguf"
    assert form["max_abs_difference"] <= min(form["tolerance"], apart * report.data["comparison"]["largest_logit"])
    assert form["dtype"] == ("f32" if kind == "keep" else kind)
    tokens = Tokenizer.from_file(str(given / "tokenizer.json"))
    keys = Graph(out / "model.gguf").keys
    assert [tokens.id_to_token(row) for row in range(tokens.get_vocab_size())] == keys["tokenizer.ggml.tokens"]
    assert keys["general.architecture"] == "deci"
    card = (out / "README.md").read_text()
    assert "llama-cli -m model.gguf" in card and "its matrices are" in card
    assert {path.name for path in out.iterdir()} == {"model.gguf", "README.md", "origin.json"}


@pytest.mark.usefixtures("by_numbers")
def test_a_run_that_was_stopped_while_it_wrote_leaves_nothing_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory(tmp_path, "qwen3", **PACKED)
    written, real = list[str](), gguf_writer.write_tensor

    def full(file: Any, reader: Any, name: str, output: Any) -> None:
        if len(written) == 7:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(name)
        real(file, reader, name, output)

    alike = SCORED | {"unit": "dim_ff", "target": {"dim_ff": 64}}
    graph = lower(read_plan(planned(tmp_path, alike)))
    with monkeypatch.context() as patch:
        patch.setattr(gguf_writer, "write_tensor", full)
        with pytest.raises((SprunecError, OSError), match="No space left"):
            execute(graph, tmp_path / "out")
    assert not (tmp_path / "out/model").exists() and not list(tmp_path.rglob("store/*/gguf"))
    report = execute(graph, tmp_path / "out")
    cached = {entry["pass"]: entry["cached"] for entry in report.data["passes"]}
    assert report.status == "done" and cached["score-mask"] and not cached["emit"]
    assert len(GGUFReader(tmp_path / "out/model/gguf/model.gguf").tensors) == 25


def test_a_changed_key_or_number_is_found_when_it_is_read_again(tmp_path: Path) -> None:
    file, _ = exported(causal_lm("qwen3", **PACKED), tmp_path, type="q8_0")
    config, content = cut(causal_lm("qwen3", **PACKED), tmp_path), file.read_bytes()
    row = row_of(config)
    assert row is not None
    tensors = file_tensors(config, row, open_model_tensors(tmp_path / "small"), "q8_0")
    assert 0.5 < check_file(file, fields(config, row), tensors) <= 1.0
    place = next(tensor.data_offset for tensor in GGUFReader(file).tensors if tensor.name == "blk.0.attn_q.weight")
    for at, byte, why in (
        (place + 20, content[place + 20] ^ 0x40, r"a number of blk.0.attn_q.weight is [\d.]+ times as far off as"),
        (content.index(b"qwen3.block_count") + len("qwen3.block_count") + 4, 3, "says qwen3.block_count is 3"),
        (content.index(b"ffn_down"), ord("F"), "has not the tensors that were written"),
    ):
        file.write_bytes(content[:at] + bytes([byte]) + content[at + 1 :])
        with pytest.raises(ComparisonError, match=why):
            check_file(file, fields(config, row), tensors)


@pytest.mark.usefixtures("by_numbers")
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "gpt_neox", "phi3"])
def test_a_file_read_back_has_the_directory_s_tensors(name: str, tmp_path: Path) -> None:
    model = causal_lm(name, **(UNSCALED if name == "gpt2" else {}))
    file, _ = exported(model, tmp_path)
    config = cut(model, tmp_path)
    weights = open_model_tensors(tmp_path / "small")
    opened = reopen(file.parent, config, weights)
    assert opened.weights is not None and (opened.stored, opened.runtime) == ("f32", "")
    for tensor in weights:
        assert torch.allclose(opened.weights[tensor], weights[tensor], rtol=0, atol=1e-6), tensor
        rows = list(range(0, weights.shape(tensor)[0], 3))
        assert torch.equal(opened.weights.rows(tensor, rows), opened.weights[tensor][rows])


@pytest.mark.parametrize(
    ("name", "changes", "why"),
    [
        ("olmo2", {}, "it is for what llama.cpp computes: model_type llama, mistral, qwen2, qwen3"),
        ("llama", {"hidden_act": "gelu"}, "the graph of llama has silu, and hidden_act is gelu"),
        ("qwen3", {"attention_bias": True}, "the graph of qwen3 has attention_bias false, and it is true"),
        (
            "gpt2",
            {"scale_attn_by_inverse_layer_idx": True},
            "has scale_attn_by_inverse_layer_idx false, and it is true",
        ),
        ("gpt2", {"scale_attn_weights": False}, "has scale_attn_weights true, and it is false"),
        ("gemma2", {"attn_logit_softcapping": None}, "the graph of gemma2 has attn_logit_softcapping, and it is null"),
        ("gemma2", {"tie_word_embeddings": False}, "the head of gemma2 is its embedding, and here it has weights"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "turns positions by default, linear, llama3, yarn, and rope_type is dynamic",
        ),
        (
            "qwen3",
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4, "beta_fast": 16}},
            "the graph of qwen3 has beta_fast 32.0, and it is 16",
        ),
    ],
)
def test_models_that_no_graph_can_be_are_refused_before_any_work(
    name: str, changes: dict[str, Any], why: str, tmp_path: Path
) -> None:
    directory(tmp_path, name, **changes)
    with pytest.raises(InputError, match=why) as caught:
        read_plan(planned(tmp_path))
    assert 'emit "huggingface" instead of "gguf"' in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        (
            "qwen3",
            {"unit": "dim_ff", "target": {"sparsity": 0.3}},
            'sparsity lets layers keep unlike numbers of "dim_ff"',
        ),
        (
            "qwen3",
            {"unit": "kv_group", "target": {"num_kv_groups": 1}, "budget": "global"},
            'keep unlike numbers of "kv',
        ),
        (
            "gemma3_text",
            {"unit": "attention", "target": {"num_attention": 1}},
            "a layer without its attention is unlike",
        ),
        ("gpt2", {"unit": "layer", "target": {"num_attention": 1, "num_feed_forward": 1}}, "without its attention is"),
        (
            "gpt2",
            {"unit": "head", "target": {"num_heads": 3}, "budget": "per-layer"},
            "can't hold other heads: those of",
        ),
        (
            "phi3",
            {"unit": "kv_group", "target": {"num_kv_groups": 1}},
            "those of phi3 are together as wide as the model",
        ),
    ],
)
def test_passes_that_leave_what_a_graph_cannot_be_are_refused(
    name: str, options: dict[str, Any], why: str, tmp_path: Path
) -> None:
    directory(tmp_path, name)
    with pytest.raises(InputError, match=why) as caught:
        read_plan(planned(tmp_path, SCORED | {"budget": "global"} | options))
    assert 'emit "huggingface" instead of "gguf"' in str(caught.value)


def test_the_same_passes_are_fine_where_a_graph_reads_sizes_by_layer(tmp_path: Path) -> None:
    directory(tmp_path, "qwen2")
    unlike = [
        {"unit": "kv_group", "target": {"num_kv_groups": 1}, "budget": "global"},
        {"unit": "layer", "target": {"num_attention": 1, "num_feed_forward": 2}, "budget": "global"},
        {"unit": "dim_ff", "target": {"sparsity": 0.3}, "budget": "global"},
    ]
    assert read_plan(planned(tmp_path, *(SCORED | each for each in unlike)))


def test_whole_blocks_leave_layers_alike(tmp_path: Path) -> None:
    directory(tmp_path, "gemma3_text")
    assert read_plan(planned(tmp_path, SCORED | {"unit": "block", "target": {"num_layers": 1}, "budget": "global"}))


def test_a_mask_file_that_no_graph_can_be_stops_before_the_training(tmp_path: Path) -> None:
    directory(tmp_path, "qwen3")
    content = plan(DIMS | {"save_mask": "dims.pt"}, model={"path": "dense"}, evaluate={"tokens": 100})
    execute(lower(read_plan(write(tmp_path, content))), tmp_path / "first")
    path = planned(tmp_path, {"pass": "load-mask", "path": "dims.pt"}, {"pass": "finetune", "steps": 2})
    with pytest.raises(InputError, match="the format gguf can't hold what this mask leaves: its layers have"):
        execute(lower(read_plan(path)), tmp_path / "out")


@pytest.mark.parametrize(
    ("size", "kind", "cutting", "multiple"),
    [
        (96, "q8_0", {}, 32),
        (96, "q8_0", {"multiple_of": {"dim_ff": 32}}, None),
        (96, "q8_0", {"multiple_of": {"dim_ff": 8}}, 32),
        (96, "q8_0", {"target": {"dim_ff": 64}, "budget": "per-layer"}, None),
        (96, "q8_0", {"target": {"dim_ff": 60}, "budget": "per-layer"}, 32),
        (72, "q8_0", {}, None),
        (512, "f16", {}, 256),
        (96, "f16", {}, None),
    ],
)
def test_widths_that_quantizations_pack_are_hints(
    size: int, kind: str, cutting: dict[str, Any], multiple: int | None, tmp_path: Path
) -> None:
    """Of a model whose width is none from the start, a cut loses nothing."""
    directory(tmp_path, "llama", intermediate_size=size)
    _, found = check_plan(planned(tmp_path, DIMS | cutting, gguf={"type": kind}))
    told = [finding for finding in found if finding.code == "uneven-width"]
    assert [(each.severity, each.hint) for each in told] == (
        [("warning", f'write "multiple_of": {{"dim_ff": {multiple}}}')] if multiple else []
    )


def test_an_option_of_a_format_that_is_not_emitted_is_told(tmp_path: Path) -> None:
    directory(tmp_path, "llama")
    _, found = check_plan(planned(tmp_path, formats=["huggingface"], gguf={"type": "f16"}))
    assert "gguf is about a format that is not emitted" in [finding.message for finding in found]


def test_a_tokenizer_that_llama_cpp_lacks_is_refused_before_any_work(tmp_path: Path) -> None:
    given = directory(tmp_path, "llama")
    document = json.loads((given / "tokenizer.json").read_text())
    document["model"] = {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a", "max_input_chars_per_word": 9}
    (given / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="it is WordPiece, and llama.cpp has BPE and Unigram"):
        lower(read_plan(planned(tmp_path)))


def test_cpm_ant_has_a_form_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the format gguf can't hold this model: it is for what llama.cpp computes"):
        read_plan(write(tmp_path, plan({"pass": "train", "steps": 1}, EMIT, model={"config": MODEL})))
