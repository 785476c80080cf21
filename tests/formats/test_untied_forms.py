"""Hugging Face's CPM-Ant with a head that was trained apart, through a plan's masks, in every form that can hold it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CpmAntConfig, CpmAntForCausalLM

import sprunec
from sprunec.bmcook.masks.mask_forms import write_mask
from sprunec.compiler.inspect import inspect_model
from sprunec.errors import InputError, PassError
from sprunec.families.base_config import everything
from sprunec.families.cpm_ant.huggingface_files import all_context
from sprunec.families.cpm_ant.modeling_sprunec import SprunecForCausalLM
from sprunec.families.model_directory import read_config
from sprunec.passes import load
from sprunec.passes.job import Job
from sprunec.units import Kept
from tests.conftest import TINY, kept_layer, tiny_config
from tests.formats.test_hugging_face_input import THEIRS, ulps
from tests.formats.test_opened_alone import EVEN, RAGGED, run_alone
from tests.helpers.cut_models import emitted
from tests.helpers.small_plans import execute, plan, write
from tests.test_cli import run

V, PROMPT = TINY["vocab_size"], TINY["prompt_length"]
HEAD, STOCK_WORDS = "lm_head.weight", "cpmant.input_embedding.weight"
WORDS = torch.randint(1, V, (9,), generator=torch.Generator().manual_seed(2))
ALL = tuple(range(TINY["num_heads"])), tuple(range(TINY["dim_head"])), tuple(range(TINY["dim_ff"]))
KEPT = {
    "ragged": Kept((kept_layer((0, 2), ALL[1], ALL[2][:11]), kept_layer((1,), ALL[1], ALL[2]), kept_layer(*ALL))),
    "even": Kept([kept_layer((1, 3), ALL[1], ALL[2][5:25])] * 3),
}
WITHOUT_SPRUNEC_EITHER = """
sys.path.insert(0, directory + "/sprunec")
from model import load
from transformers import AutoModelForCausalLM
opened = AutoModelForCausalLM.from_pretrained(directory + "/huggingface", trust_remote_code=True).eval()
with torch.no_grad():
    plain = load(directory + "/sprunec")(**given)[0]
    words = given["input"][:, plain.size(1) - 9 :]
    logits = opened(input_ids=words).logits
head = opened.get_output_embeddings().weight.detach()
torch.save({"model.py": plain[0, -9:], "huggingface": logits[0], "head": head}, found)
"""


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that their own class has saved; its head is drawn apart, as if it had been trained."""
    torch.manual_seed(0)
    config = CpmAntConfig(**THEIRS, tie_word_embeddings=False)
    model, folder = CpmAntForCausalLM(config), tmp_path_factory.mktemp("untied")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layernorm" in name:
                parameter.copy_(1.0 + 0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder / "theirs")
    state = load_file(folder / "theirs/model.safetensors")
    assert (state[HEAD][:V] - state[STOCK_WORDS][:V]).abs().max() > 0.1
    return folder / "theirs"


@pytest.fixture(scope="module", params=["ragged", "even"])
def done(apart: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """What a plan has made of it that reads masks and emits; one kind ends in their classes, one in ours."""
    folder, kept = tmp_path_factory.mktemp(request.param), KEPT[request.param]
    report = pruned(apart, folder, kept, "sprunec", "huggingface", "pt2")
    return Done(request.param, folder / "out/model", report, masked_logits(apart, kept))


@dataclass(frozen=True)
class Done:
    """`wanted`: what the masked original says, (9, V)."""

    shape: str
    model: Path
    report: dict[str, Any]
    wanted: Tensor


@torch.no_grad()
def masked_logits(directory: Path, kept: Kept) -> Tensor:
    """Their own class with the columns behind every unit that goes set to 0."""
    model = CpmAntForCausalLM.from_pretrained(directory).eval()
    for layer, left in zip(model.cpmant.encoder.layers, kept, strict=True):
        heads = torch.zeros(TINY["num_heads"], TINY["dim_head"])
        heads[list(left.get("head", ()))] = 1.0
        layer.self_att.self_attention.attention_out.weight.mul_(heads.flatten())
        dims = torch.zeros(TINY["dim_ff"]).index_fill(0, torch.tensor(left["dim_ff"]), 1.0)
        layer.ffn.ffn.w_out.weight.mul_(dims)
    return model(input_ids=WORDS[None]).logits[0, :, :V]


def pruned(apart: Path, folder: Path, kept: Kept, *formats: str, **emit: Any) -> dict[str, Any]:
    """The report of a plan that reads masks and emits; its config says nothing of the head."""
    whole = everything(tiny_config())
    write_mask(folder / "mask.pt", "bmcook", {"head", "dim_ff"}, whole, whole, kept)
    passes = [{"pass": "load-mask", "path": "mask.pt"}, {"pass": "emit", "formats": list(formats), **emit}]
    model = {"config": str(apart / "config.json"), "checkpoint": str(apart)}
    return execute({"name": "untied", "model": model, "passes": passes}, folder)


def test_every_form_says_what_the_masked_original_does(done: Done, tmp_path: Path) -> None:
    assert done.report["status"] == "done" and done.report["comparison"]["max_abs_difference"] < 1e-10
    assert {name.split("-")[-1] for name in done.report["formats"]} == {"huggingface", "pt2"}
    assert done.wanted.abs().max() > 1.0
    inputs = all_context(WORDS, tiny_config(), 2, 2)
    found: Any = run_alone(WITHOUT_SPRUNEC_EITHER, done.model, inputs, tmp_path)
    with torch.no_grad():
        found["sprunec.load"] = sprunec.load(done.model / "sprunec")(**inputs)[0][0, PROMPT:]
        exported = torch.export.load(done.model / "pt2/model.pt2").module()
        found["pt2"] = exported(*inputs.values())[0][0, PROMPT:]
    for name in ("sprunec.load", "model.py", "huggingface", "pt2"):
        assert (found[name][:, :V] - done.wanted).abs().max() < 1e-5, name
    config = json.loads((done.model / "huggingface/config.json").read_text())
    assert ("auto_map" in config) == (done.shape == "ragged") and config["tie_word_embeddings"] is False
    table = load_file(done.model / "huggingface/model.safetensors")
    assert torch.equal(found["head"], table[HEAD if done.shape == "even" else f"model.{HEAD}"])


def test_head_comes_back_within_one_rounding(done: Done, apart: Path) -> None:
    before, after = (load_file(path / "model.safetensors") for path in (apart, done.model / "huggingface"))
    if done.shape == "ragged":  # in our own scale
        after = {HEAD: after[f"model.{HEAD}"] / TINY["dim_model"] ** 0.5}
    assert ulps(before[HEAD][:V], after[HEAD][:V]) <= 1
    assert done.shape == "ragged" or before[HEAD].shape == after[HEAD].shape


def test_what_was_written_is_the_next_plans_model(done: Done, tmp_path: Path) -> None:
    """Both kinds of directory, by their configs, with the size that `inspect` tells."""
    directory = done.model / "huggingface"
    model = {"config": str(directory / "config.json"), "checkpoint": str(directory)}
    emit = {"pass": "emit", "formats": ["sprunec"]}
    assert execute({"name": "again", "model": model, "passes": [emit]}, tmp_path)["status"] == "done"
    again = tmp_path / "out/model/sprunec"
    assert not read_config(again).tie_word_embeddings
    assert inspect_model(directory)["parameters"]["total"] == read_config(again).parameters()
    with torch.no_grad():
        logits = sprunec.load(again)(**all_context(WORDS, tiny_config(), 2, 2))[0][0, PROMPT:]
    assert (logits - done.wanted).abs().max() < 1e-5


def test_half_precision_keeps_both_tables(apart: Path, tmp_path: Path) -> None:
    report = pruned(apart, tmp_path, KEPT["even"], "sprunec", "huggingface", dtype="bf16")
    (found,) = report["formats"].values()
    assert report["status"] == "done" and 1e-4 < found["max_abs_difference"] <= found["tolerance"] < 0.5
    table = load_file(tmp_path / "out/model/huggingface/model.safetensors")
    assert {tensor.dtype for tensor in table.values()} == {torch.bfloat16}


def test_cpm_live_is_refused_before_any_work(apart: Path, tmp_path: Path) -> None:
    """Its classes have one table: told by the checkpoint's bytes, or by the config alone."""
    words = r"the format cpm-live can't hold .*its head is a tensor of its own.*emit \"sprunec\" or \"huggingface\""
    with pytest.raises(InputError, match=words) as caught:
        pruned(apart, tmp_path, KEPT["even"], "cpm-live")
    assert caught.value.diagnostics[0].pointer == "/passes/1/formats"
    model = {"config": TINY | {"tie_word_embeddings": False}}
    with pytest.raises(InputError, match=words):
        execute({"name": "x", "model": model, "passes": [{"pass": "emit", "formats": ["cpm-live"]}]}, tmp_path)
    assert not (tmp_path / "out").exists()


def test_refusal_is_a_document_too(apart: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = {"config": str(apart / "config.json"), "checkpoint": str(apart)}
    content = {"name": "x", "model": model, "passes": [{"pass": "emit", "formats": ["cpm-live"]}]}
    for more in ([], ["--dry-run"]):
        assert run("run", write(tmp_path, content), "--out", tmp_path / "out", "--json", *more) == 3
        document = json.loads(capsys.readouterr().out)
        assert [finding["code"] for finding in document["diagnostics"]] == ["head-apart"]


def test_dry_run_counts_a_head_of_its_own(apart: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = []
    for config in (apart / "config.json", TINY):
        model = {"config": str(config), "checkpoint": str(apart)} if config is not TINY else {"config": TINY}
        content = plan({"pass": "train", "steps": 1}, model=model)
        assert run("run", write(tmp_path, content), "--dry-run", "--json") == 0
        document = json.loads(capsys.readouterr().out)
        sizes.append((document["parameters"]["before"], document["training"][0]["memory"]))
    assert sizes[0][0] - sizes[1][0] == V * TINY["dim_model"]
    assert sizes[0][1] > sizes[1][1]


def test_cpm_live_writes_no_model_without_its_head(tmp_path: Path) -> None:
    with pytest.raises(PassError, match="cpm-live cannot hold this model: its head is a tensor of its own"):
        emitted(EVEN, tmp_path, "cpm-live", tied=False)
    assert not (tmp_path / "out/cpm-live").exists()


def test_our_names_in_a_pt_are_found_too(apart: Path, tmp_path: Path) -> None:
    """Their model, fine-tuned and saved in CPM-Live's names with the head beside them."""
    options = load.LoadOptions(config=tiny_config(tie_word_embeddings=False).to_dict())
    (tmp_path / "loaded").mkdir()
    load.run(Job(options, {}, {"checkpoint": (apart,)}, tmp_path / "loaded", "cpu", print))
    torch.save(load_file(tmp_path / "loaded/model.safetensors"), tmp_path / "ours.pt")
    model = {"config": dict(TINY), "checkpoint": "ours.pt"}
    whole = everything(tiny_config())
    write_mask(tmp_path / "mask.pt", "bmcook", {"head", "dim_ff"}, whole, whole, KEPT["ragged"])
    passes = [{"pass": "load-mask", "path": "mask.pt"}, {"pass": "emit", "formats": ["sprunec"]}]
    report = execute({"name": "ours", "model": model, "passes": passes}, tmp_path)
    assert report["status"] == "done" and report["comparison"]["max_abs_difference"] < 1e-10
    with torch.no_grad():
        found = sprunec.load(tmp_path / "out/model/sprunec")(**all_context(WORDS, tiny_config(), 2, 2))[0][0, PROMPT:]
    assert (found - masked_logits(apart, KEPT["ragged"])).abs().max() < 1e-5


def test_own_classes_take_the_head_for_the_output_embedding(tmp_path: Path) -> None:
    """Saved and loaded, written with, and left alone by adapters on all linears."""
    source = emitted(RAGGED, tmp_path, "huggingface", tied=False) / "huggingface"
    model = SprunecForCausalLM.from_pretrained(source).eval()
    assert model.get_output_embeddings() is model.model.lm_head
    with torch.no_grad():
        wanted = model(input_ids=WORDS[None]).logits
        hidden = model(input_ids=WORDS[None], output_hidden_states=True).hidden_states[-1]
        assert (hidden @ model.model.lm_head.weight.T / TINY["dim_model"] ** 0.5 - wanted).abs().max() < 1e-5
    model.save_pretrained(tmp_path / "saved")
    again = SprunecForCausalLM.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        assert torch.equal(again(input_ids=WORDS[None]).logits, wanted)
    adapted = get_peft_model(again, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert isinstance(again.model.lm_head, nn.Linear) and not hasattr(again.model.lm_head, "lora_A")
    assert adapted.generate(input_ids=WORDS[None], max_new_tokens=3, do_sample=False).shape == (1, 12)


def test_adapter_on_the_head_merges_into_it(tmp_path: Path) -> None:
    source = emitted(RAGGED, tmp_path, "huggingface", tied=False) / "huggingface"
    base = SprunecForCausalLM.from_pretrained(source)
    options = LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(base, options).eval()
    with torch.no_grad():
        wanted = model(input_ids=WORDS[None]).logits
        assert (model.merge_and_unload()(input_ids=WORDS[None]).logits - wanted).abs().max() < 1e-5
