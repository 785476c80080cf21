"""Hugging Face's CPM-Ant in, and out again: the same model, and the same numbers but for one rounding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CpmAntConfig, CpmAntForCausalLM

import sprunec
from sprunec.compiler.inspect import inspect_model
from sprunec.errors import InputError
from sprunec.families.cpm_ant.huggingface_files import all_context
from sprunec.formats.huggingface import transformers_release
from sprunec.passes import emit, load
from sprunec.passes.job import Job
from sprunec.plan.model_config import read_config
from tests.conftest import TINY, tiny_config
from tests.formats.test_opened_alone import RAGGED
from tests.helpers.cut_models import OPTIONS, emitted
from tests.helpers.small_plans import execute

FILE = "huggingface/model.safetensors"
UNSCALED = ("layernorm", "relative_attention_bias")
THEIRS = {
    "vocab_size": TINY["vocab_size"],
    "hidden_size": TINY["dim_model"],
    "num_attention_heads": TINY["num_heads"],
    "dim_head": TINY["dim_head"],
    "dim_ff": TINY["dim_ff"],
    "num_hidden_layers": TINY["num_layers"],
    "prompt_types": TINY["prompt_types"],
    "prompt_length": TINY["prompt_length"],
    "segment_types": TINY["segment_types"],
    "position_bias_num_buckets": TINY["position_bias_num_buckets"],
    "position_bias_max_distance": TINY["position_bias_max_distance"],
    "init_std": 0.3,
}


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A directory that their own class has saved; the head is the table of words, as in the published model."""
    model = CpmAntForCausalLM(CpmAntConfig(**THEIRS))
    with torch.no_grad():
        if transformers_release() >= 5:
            model.lm_head.weight.copy_(model.cpmant.input_embedding.weight[: TINY["vocab_size"]])
        for name, parameter in model.named_parameters():
            if "layernorm" in name:
                parameter.copy_(1.0 + 0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def through(theirs: Path, folder: Path, *formats: str, dtype: str = "keep") -> Path:
    """What comes out of the passes that load and emit."""
    config, found = read_config(str(theirs / "config.json"))
    assert config is not None, found
    source, out = folder / "loaded", folder / "emitted"
    source.mkdir()
    out.mkdir()
    load.run(Job(load.LoadOptions(config=config.to_dict()), {}, {"checkpoint": (theirs,)}, source, "cpu", print))
    options = emit.EmitOptions(formats=formats, details=OPTIONS | {"dtype": dtype})
    emit.run(Job(options, {"model": source, "source": source}, {}, out, "cpu", print))
    return out


def change(directory: Path, edit: Any) -> None:
    path = directory / "model.safetensors"
    state = load_file(path)
    edit(state)
    save_file(state, path, metadata={"format": "pt"})


def ulps(a: Tensor, b: Tensor) -> int:
    one, other = (tensor.numpy().view(np.int32).astype(np.int64) for tensor in (a, b))
    return int(np.abs(one - other).max())


def test_there_and_back_rounds_at_most_once(theirs: Path, tmp_path: Path) -> None:
    before, after = load_file(theirs / "model.safetensors"), load_file(through(theirs, tmp_path, "huggingface") / FILE)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        if any(word in name for word in UNSCALED):
            assert torch.equal(tensor, after[name]), name
        else:
            assert ulps(tensor, after[name]) <= 1, name


def test_our_model_says_what_theirs_does(theirs: Path, tmp_path: Path) -> None:
    ours = sprunec.load(through(theirs, tmp_path, "sprunec") / "sprunec")
    words = torch.randint(1, TINY["vocab_size"], (9,))
    with torch.no_grad():
        wanted = CpmAntForCausalLM.from_pretrained(theirs)(input_ids=words[None]).logits[0, :, : TINY["vocab_size"]]
        found = ours(**all_context(words, tiny_config(), 2, 2))[0][0, TINY["prompt_length"] :]
    assert wanted.abs().max() > 1.0
    assert (found - wanted).abs().max() < 1e-5


def test_the_older_form_has_no_head_of_its_own(theirs: Path, tmp_path: Path) -> None:
    before = load_file(theirs / "model.safetensors")
    change(theirs, lambda state: state.pop("lm_head.weight", None))
    after = load_file(through(theirs, tmp_path, "huggingface") / FILE)
    words = "cpmant.input_embedding.weight"
    assert ulps(before[words], after[words]) <= 1
    assert ("lm_head.weight" in after) == (transformers_release() >= 5)


def test_half_precision_comes_back_as_it_was(theirs: Path, tmp_path: Path) -> None:
    change(theirs, lambda state: state.update({name: tensor.half() for name, tensor in state.items()}))
    before = load_file(theirs / "model.safetensors")
    after = load_file(through(theirs, tmp_path, "huggingface", dtype="fp16") / FILE)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_inspect_shows_a_directory_of_theirs(theirs: Path) -> None:
    document = inspect_model(theirs)
    assert document["parameters"]["total"] == sum(
        tensor.numel() for name, tensor in load_file(theirs / "model.safetensors").items() if name != "lm_head.weight"
    )
    assert [layer["attention"]["heads"] for layer in document["layers"]] == [4, 4, 4]


def test_inspect_names_a_tensor_that_does_not_fit(theirs: Path) -> None:
    config = json.loads((theirs / "config.json").read_text())
    (theirs / "config.json").write_text(json.dumps(config | {"dim_ff": 41}))
    with pytest.raises(InputError, match=r"w_in.w_0.weight is \[40, 24\] and the config says \[41, 24\]"):
        inspect_model(theirs)


def test_another_family_is_named(theirs: Path) -> None:
    config = json.loads((theirs / "config.json").read_text())
    (theirs / "config.json").write_text(json.dumps(config | {"model_type": "t5"}))
    with pytest.raises(InputError, match="this is T5's config, and it is no causal language model"):
        inspect_model(theirs)


def test_what_we_wrote_in_our_own_classes_is_read_again(tmp_path: Path) -> None:
    """A cut model as the next plan's input: bit for bit."""
    first = emitted(RAGGED, tmp_path / "first", "sprunec", "huggingface")
    second = through(first / "huggingface", tmp_path, "sprunec")
    one, two = (load_file(path / "sprunec/model.safetensors") for path in (first, second))
    assert one.keys() == two.keys()
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_a_plan_takes_their_directory(theirs: Path, tmp_path: Path) -> None:
    model = {"config": "theirs/config.json", "checkpoint": "theirs"}
    emit = {"pass": "emit", "formats": ["sprunec", "huggingface"], "dtype": "bf16"}
    report = execute({"name": "through", "model": model, "passes": [emit]}, tmp_path)
    (found,) = report["formats"].values()
    assert report["status"] == "done"
    assert found["dtype"] == "bfloat16"
    assert 1e-4 < found["max_abs_difference"] <= found["tolerance"] < 0.5
