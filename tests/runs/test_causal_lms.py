"""A model of transformers from a directory to a smaller one of the same class, by a plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import validate
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer

from sprunec.compiler.inspect import inspect_model
from sprunec.compiler.lower import lower
from sprunec.data.text import read_text
from sprunec.errors import FormatError, InputError
from sprunec.execution.execute import execute
from sprunec.families.huggingface import releases
from sprunec.models.streamed import largest
from sprunec.plan.plan import read_plan
from sprunec.plan.schema import load_schema
from tests.helpers.causal_lms import PLAIN, causal_lm, families, token_ids

VOCABULARY = 300
SCORED = {"pass": "score-mask", "criterion": "activation", "batches": 2, "budget": "per-layer"}
LAYERS = {name: {"n_layer": 3} for name in ("gpt2", "gptj", "bloom")} | {
    "smollm3": {"num_hidden_layers": 3, "no_rope_layers": [1, 0, 1]},
}
EMIT = {"pass": "emit", "formats": ["huggingface"]}


def tokenizer() -> Tokenizer:
    """A small byte-level tokenizer, as Llama's and GPT-2's are."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<|end|>"], initial_alphabet=letters)
    made.train_from_iterator([read_text("python-docs", ())[:50_000]], trainer)
    return made


def directory(folder: Path, name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    model = causal_lm(name, **{"vocab_size": VOCABULARY} | PLAIN.get(name, {}) | changes)
    model.to(dtype).save_pretrained(folder / "dense")
    tokenizer().save(str(folder / "dense/tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "bos_token": None}
    (folder / "dense/tokenizer_config.json").write_text(json.dumps(about))
    return folder / "dense"


def run(folder: Path, *passes: dict[str, Any], **data: Any) -> Any:
    content = {
        "name": "small",
        "model": {"path": "dense"},
        "data": {"source": "python-docs", "max_length": 32, "batch_size": 4} | data,
        "evaluate": {"tokens": 200},
        "passes": [*passes, EMIT],
    }
    (folder / "plan.json").write_text(json.dumps(content))
    return execute(lower(read_plan(folder / "plan.json")), folder / "out")


def config_of_small(folder: Path) -> dict[str, Any]:
    """The config.json that a run has emitted."""
    found: dict[str, Any] = json.loads((folder / "out/model/huggingface/config.json").read_text())
    return found


def masked_logits(folder: Path, kept: dict[str, Any], ids: torch.Tensor) -> torch.Tensor:
    """What the dense model says with the weights behind everything that was cut set to zero, by transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(folder / "dense").double()
    width = model.config.head_dim
    for number, layer in enumerate(model.model.layers):
        heads = torch.zeros(model.config.num_attention_heads, dtype=torch.double)
        heads[kept["attention"][str(number)]] = 1.0
        layer.self_attn.o_proj.weight.data *= heads.repeat_interleave(width)
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("name", [pytest.param("llama", marks=pytest.mark.slow), "qwen3"])
def test_groups_heads_and_dims_are_cut_and_the_stock_class_opens_the_rest(name: str, tmp_path: Path) -> None:
    directory(tmp_path, name, num_attention_heads=6, num_key_value_heads=2)
    report = run(tmp_path, SCORED | {"unit": ["head", "dim_ff"], "target": {"num_heads": 4, "dim_ff": 40}})
    assert report.status == "done"
    assert report.data["comparison"]["max_abs_difference"] <= report.data["comparison"]["tolerance"]
    out = tmp_path / "out/model/huggingface"
    config = config_of_small(tmp_path)
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (4, 2, 10)
    assert config["intermediate_size"] == 40
    small = AutoModelForCausalLM.from_pretrained(out)
    assert sum(parameter.numel() for parameter in small.parameters()) == report.data["models"]["small"]["parameters"]
    text = "The for statement"
    ours, theirs = (AutoTokenizer.from_pretrained(each)(text)["input_ids"] for each in (out, tmp_path / "dense"))
    assert ours == theirs


def test_what_is_left_computes_what_the_masked_model_computes(tmp_path: Path) -> None:
    directory(tmp_path, "qwen3")
    report = run(tmp_path, SCORED | {"unit": "head", "target": {"num_heads": 4}})
    ids = token_ids(2, 9)
    masked = masked_logits(tmp_path, report.data["kept"], ids)
    with torch.no_grad():
        small = AutoModelForCausalLM.from_pretrained(tmp_path / "out/model/huggingface").double()
        assert largest(small(input_ids=ids, use_cache=False).logits - masked) < 1e-5 * float(masked.abs().max())


def test_a_group_takes_its_heads_along(tmp_path: Path) -> None:
    directory(tmp_path, "qwen3", num_hidden_layers=3)
    report = run(tmp_path, SCORED | {"unit": "kv_group", "target": {"num_kv_groups": 1}, "compensate": "least-squares"})
    config = config_of_small(tmp_path)
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (3, 1)
    for heads in report.data["kept"]["attention"].values():
        assert heads in ([0, 1, 2], [3, 4, 5])


def test_a_removed_block_takes_its_entries_of_lists_along(tmp_path: Path) -> None:
    directory(tmp_path, "smollm3", num_hidden_layers=4, no_rope_layers=[1, 0, 1, 0])
    report = run(
        tmp_path, {"pass": "score-mask", "criterion": "magnitude", "unit": "block", "target": {"num_layers": 3}}
    )
    config = config_of_small(tmp_path)
    left = [int(number) for number, heads in report.data["kept"]["attention"].items() if heads is not None]
    assert config["no_rope_layers"] == [[1, 0, 1, 0][number] for number in left]
    assert config["num_hidden_layers"] == len(config["layer_types"]) == 3


def test_llama_opens_as_mistral_where_its_class_refuses_the_heads(tmp_path: Path) -> None:
    changes = {"num_attention_heads": 6, "num_key_value_heads": 1, "attention_bias": False}
    directory(tmp_path, "llama", **changes)
    run(tmp_path, SCORED | {"unit": "head", "target": {"num_heads": 5}})
    config = config_of_small(tmp_path)
    assert (config["model_type"], config["sliding_window"], config["num_attention_heads"]) == ("mistral", None, 5)


def test_what_no_stock_class_can_be_is_its_own_class_layer_by_layer(tmp_path: Path) -> None:
    directory(tmp_path, "gpt2", scale_attn_by_inverse_layer_idx=False)
    report = run(tmp_path, SCORED | {"unit": "head", "target": {"num_heads": 5}})
    form = report.data["formats"]["huggingface"]
    assert max(form["max_abs_difference"], form["decoding_difference"]) <= form["tolerance"] < 0.01
    out = tmp_path / "out/model/huggingface"
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        AutoModelForCausalLM.from_pretrained(out, trust_remote_code=False)
    layers = json.loads((out / "config.json").read_text())["pruned"]["layers"]
    assert [layer["config"] for layer in layers] == [{"num_attention_heads": 5, "hidden_size": 40}] * 2
    assert layers[0]["shapes"]["attn.c_attn.weight"] == [48, 120]


def test_a_model_that_counts_its_layers_loses_none(tmp_path: Path) -> None:
    directory(tmp_path, "gpt2", n_layer=3, scale_attn_by_inverse_layer_idx=True)
    blocks = {"pass": "score-mask", "criterion": "magnitude", "unit": "block", "target": {"num_layers": 2}}
    why = "its class divides scores by the number of the layer, and layer . is gone|4.57.* passes over scale_attn_by"
    with pytest.raises((FormatError, InputError), match=why):
        run(tmp_path, blocks)


def test_a_model_py_is_not_made_of_a_library_s_class(tmp_path: Path) -> None:
    directory(tmp_path, "llama")
    content = {"name": "n", "model": {"path": "dense"}, "passes": [{"pass": "emit", "formats": ["sprunec"]}]}
    (tmp_path / "plan.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="the format sprunec can't hold this model: its class is transformers' own"):
        read_plan(tmp_path / "plan.json")


@pytest.mark.parametrize(("name", "dtype"), [("qwen3", torch.bfloat16)])
def test_gates_are_learned_and_what_is_left_is_trained(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    directory(tmp_path, name, dtype)
    gates = {"pass": "train-mask", "unit": "dim_ff", "target": {"dim_ff": 40}, "budget": "per-layer", "steps": 4}
    report = run(tmp_path, gates | {"learning_rate": 1e-3}, {"pass": "finetune", "steps": 4, "learning_rate": 1e-3})
    assert report.status in ("done", "target-missed")  # no gate settles in four steps
    assert report.data["comparison"]["max_abs_difference"] <= report.data["comparison"]["tolerance"]
    assert report.data["models"]["small"]["loss"] < report.data["models"]["dense"]["loss"]


def test_units_that_the_graph_forbids_are_refused_with_the_reason(tmp_path: Path) -> None:
    directory(tmp_path, "olmo2")
    with pytest.raises(InputError, match="head cannot be cut in this model: a norm over all heads counts them"):
        run(tmp_path, SCORED | {"unit": "head", "target": {"num_heads": 4}})


def test_a_new_model_of_a_library_is_refused(tmp_path: Path) -> None:
    directory(tmp_path, "qwen3")
    (tmp_path / "dense/model.safetensors").unlink()
    (tmp_path / "plan.json").write_text(json.dumps({"name": "n", "model": {"config": "dense"}, "passes": [EMIT]}))
    with pytest.raises(
        InputError, match="the plan names no weights, and a model of transformers does not start without"
    ):
        read_plan(tmp_path / "plan.json")


@pytest.mark.parametrize("name", families("llama", "qwen3", "gpt2", "phi3"))
def test_every_family_goes_from_directory_to_directory(name: str, tmp_path: Path) -> None:
    """Fewer feed-forward dims where the class can have them, and a block less; in half precision throughout."""
    directory(tmp_path, name, torch.bfloat16, **LAYERS.get(name, {"num_hidden_layers": 3}))
    dims = {"unit": "dim_ff", "target": {"dim_ff": 40}, "criterion": "magnitude"}
    blocks = {
        "pass": "score-mask",
        "unit": "block",
        "target": {"num_layers": 2},
        "criterion": "activation",
        "batches": 1,
    }
    passes = [blocks] if name == "bloom" else [{"pass": "score-mask", "budget": "per-layer"} | dims, blocks]
    report = run(tmp_path, *passes)
    assert report.data["comparison"]["max_abs_difference"] <= 1e-5
    form = report.data["formats"]["huggingface"]
    assert form["max_abs_difference"] <= form["tolerance"] < 0.001
    about = json.loads((tmp_path / "out/model/huggingface/config.json").read_text())
    assert form["dtype"] == about["dtype"] == "bfloat16"
    assert form["decoding_difference"] <= form["tolerance"] and ("own_code" in form) == ("auto_map" in about)


def test_inspect_says_what_cannot_be_cut_and_why(tmp_path: Path) -> None:
    directory(tmp_path, "olmo2")
    found = inspect_model(tmp_path / "dense")
    validate(found, load_schema("inspect"))
    assert {site["unit"] for site in found["sites"]} == {"dim_ff", "attention", "feed_forward"}
    (heads,) = (note for note in found["notes"] if note["text"].startswith("head cannot be cut"))
    assert heads["layers"] == [0, 1]
    layer = found["layers"][0]
    assert (layer["attention"]["kv_groups"], layer["attention"]["heads"]) == (2, 6)
    grouped = inspect_model(directory(tmp_path / "other", "qwen3"))
    assert {"kv_group", "head", "dim_ff"} <= {site["unit"] for site in grouped["sites"]}


def test_a_release_that_is_too_old_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory(tmp_path, "qwen3")
    monkeypatch.setattr(releases, "version", lambda _: "4.56.2")
    with pytest.raises(InputError, match=r"config.json:\d+:\d+: .*needs its release 4.57, and 4.56.2 is installed"):
        inspect_model(tmp_path / "dense")


def test_a_config_that_the_release_would_misread_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What release 5 writes of rotary positions, release 4 passes over: it takes base 10,000 instead."""
    path = directory(tmp_path, "qwen3") / "config.json"
    document = json.loads(path.read_text())
    plain = {key: value for key, value in document.items() if key not in ("rope_parameters", "rope_scaling")}
    path.write_text(json.dumps(plain | {"rope_theta": 5e5}))
    monkeypatch.setattr(releases, "version", lambda _: "4.57.6")
    assert inspect_model(tmp_path / "dense")["parameters"]["total"] > 0
    path.write_text(json.dumps(plain | {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}))
    with pytest.raises(InputError, match=r"/rope_parameters: .*transformers 4.57.6 passes over rope_parameters"):
        run(tmp_path)
    monkeypatch.setattr(releases, "version", lambda _: "5.0.0rc1")
    assert inspect_model(tmp_path / "dense")["parameters"]["total"] > 0
