"""What a plan is told about its forms before any work, and what goes into them besides the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sprunec.errors import InputError
from sprunec.families.cpm_ant.modeling_sprunec import SprunecForCausalLM
from sprunec.plan import export_formats as forms
from sprunec.plan.plan import check_plan
from sprunec.units import Kept
from tests.conftest import TINY, kept_layer, tiny_config
from tests.helpers.cut_models import Case, emitted, masked_model
from tests.helpers.live_loader import load_live
from tests.helpers.small_plans import TRAIN, execute, mask_pass, plan, read_report, write

DIMS, WIDE, PROMPT = tuple(range(TINY["dim_head"])), tuple(range(TINY["dim_ff"])), TINY["prompt_length"]
EVEN = Case(Kept(kept_layer((1, 3), DIMS, WIDE[:30]) for _ in range(3)), "fp32")
RAGGED = Case(
    Kept((kept_layer((1, 3), DIMS, WIDE[:30]), kept_layer((2,), DIMS, None), kept_layer((0, 1), DIMS, WIDE))), "fp32"
)


def emit(*formats: str) -> dict[str, Any]:
    return {"pass": "emit", "formats": list(formats)}


@pytest.mark.parametrize(("strict", "severity"), [(True, "error"), (False, "warning")])
def test_a_missing_package_is_told_with_the_command(
    strict: bool, severity: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forms, "find_spec", lambda name: None)
    _, found = check_plan(write(tmp_path, plan(TRAIN, emit("sprunec", "huggingface"))), strict=strict)
    (finding,) = found
    assert (finding.severity, finding.code) == (severity, "missing-package")
    assert finding.hint == "pip install 'sprunec[hf]'"
    assert check_plan(write(tmp_path, plan(TRAIN, emit("sprunec", "pt2"))), strict=strict)[1] == ()


def test_a_mask_file_that_cpm_live_cannot_hold_stops_before_the_training(tmp_path: Path) -> None:
    heads = mask_pass("head", {"num_heads": 3}, save_mask="heads.pt")
    execute(plan(TRAIN, heads, emit("sprunec")), tmp_path, "first")
    loading = {"pass": "load-mask", "path": "heads.pt"}
    with pytest.raises(InputError, match="the format cpm-live can't hold what this mask leaves"):
        execute(plan(TRAIN, loading, {"pass": "finetune", "steps": 2}, emit("cpm-live")), tmp_path)
    assert "finetune" not in [entry["pass"] for entry in read_report(tmp_path / "out")["passes"]]


def test_folded_weights_are_stored_as_asked(tmp_path: Path) -> None:
    out = emitted(EVEN, tmp_path, "cpm-live", "huggingface", dtype="fp16")
    state = torch.load(out / "cpm-live/model.pt", weights_only=True)
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}
    assert json.loads((out / "cpm-live/config.json").read_text())["half"] is True
    assert json.loads((out / "huggingface/config.json").read_text())["dtype"] == "float16"


def test_folding_rounds_once(tmp_path: Path) -> None:
    """From the exact product, not from one that float16 has rounded before."""
    exact = load_live(emitted(EVEN, tmp_path / "whole", "cpm-live", dtype="fp32") / "cpm-live").state_dict()
    half = load_live(emitted(EVEN, tmp_path / "half", "cpm-live", dtype="fp16") / "cpm-live").state_dict()
    assert all(tensor.half().equal(half[name].half()) for name, tensor in exact.items())


def test_own_classes_keep_every_weight_bit_for_bit(tmp_path: Path) -> None:
    out = emitted(RAGGED, tmp_path, "sprunec", "huggingface", dtype="bf16")
    model = SprunecForCausalLM.from_pretrained(out / "huggingface")
    from safetensors.torch import load_file

    for name, tensor in load_file(out / "sprunec/model.safetensors").items():
        assert torch.equal(tensor, model.state_dict()[f"model.{name}"])


def test_pairs_are_written_behind_their_own_prompt(tmp_path: Path) -> None:
    """transformers' own classes know prompt 2 only."""
    assert "auto_map" not in json.loads(
        (emitted(EVEN, tmp_path / "2", "huggingface") / "huggingface/config.json").read_text()
    )
    out = emitted(EVEN, tmp_path / "1", "huggingface", task=1)
    assert json.loads((out / "huggingface/config.json").read_text())["task"] == 1


def test_the_vocabulary_goes_along(tmp_path: Path) -> None:
    marks = ["<pad>", "<unk>", "<mask>", "<sep>", "</n>", "</_>", "<s>", "</s>", "a", "b"]
    (tmp_path / "words.txt").write_text("\n".join(marks), encoding="utf-8")
    directory = emitted(RAGGED, tmp_path, "huggingface", vocab=(tmp_path / "words.txt",)) / "huggingface"
    assert (directory / "vocab.txt").read_text(encoding="utf-8").split("\n") == [*marks, ""]
    config = json.loads((directory / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (6, 7)
    assert json.loads((directory / "tokenizer_config.json").read_text())["tokenizer_class"] == "CpmAntTokenizer"


def test_the_vocabulary_goes_along_without_mark_and_other_line_ends(tmp_path: Path) -> None:
    """transformers takes a line as it stands: a mark or a space would be part of a piece."""
    marks = ["<pad>", "<unk>", "<mask>", "<sep>", "</n>", "</_>", "<s>", "</s>", "a", "b"]
    text = "\r\n".join([marks[0], f" {marks[1]} ", *marks[2:]])
    (tmp_path / "words.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    directory = emitted(RAGGED, tmp_path, "huggingface", vocab=(tmp_path / "words.txt",)) / "huggingface"
    assert (directory / "vocab.txt").read_bytes() == "".join(f"{piece}\n" for piece in marks).encode()
    assert json.loads((directory / "config.json").read_text())["bos_token_id"] == 6
    assert (directory / "tokenizer_config.json").exists()


def opened(tmp_path: Path) -> SprunecForCausalLM:
    return SprunecForCausalLM.from_pretrained(emitted(RAGGED, tmp_path, "huggingface") / "huggingface").eval()


@torch.no_grad()
def test_what_has_a_label_is_not_seen_from_before(tmp_path: Path) -> None:
    model, words = opened(tmp_path), torch.randint(1, 97, (1, 8))
    labels = words.clone()
    labels[:, :3] = -100
    loss = model(input_ids=words, labels=labels).loss
    other = words.clone()
    other[:, 6] = (other[:, 6] + 1) % 96 + 1
    first, second = (model(input_ids=each, labels=labels).logits for each in (words, other))
    assert torch.equal(first[:, :6], second[:, :6])
    assert not torch.equal(first[:, 6:], second[:, 6:])
    wanted = torch.nn.functional.cross_entropy(first[0, 2:7], words[0, 3:])
    assert abs(float(loss - wanted)) < 1e-6


@torch.no_grad()
def test_padding_on_either_side_changes_nothing(tmp_path: Path) -> None:
    model, words = opened(tmp_path), torch.randint(1, 97, (1, 6))
    wanted = model(input_ids=words).logits
    for pad in ((4, 0), (0, 4)):
        padded = torch.nn.functional.pad(words, pad, value=9)
        mask = torch.nn.functional.pad(torch.ones_like(words), pad)
        columns = slice(pad[0], pad[0] + 6)
        # Distances count columns, so the prompt is the same to all of them: it is another segment.
        assert (model(input_ids=padded, attention_mask=mask).logits[:, columns] - wanted).abs().max() < 1e-5


@torch.no_grad()
def test_a_cache_changes_no_score(tmp_path: Path) -> None:
    """Recomputed, what has been generated must still not be seen from before."""
    model, words = opened(tmp_path), torch.randint(1, 97, (2, 6))
    options = {"max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    cached, whole = (model.generate(words, use_cache=use, **options) for use in (True, False))
    inputs = inputs_of(cached.sequences[0])
    inputs["context"][:, PROMPT + 6 :] = False
    wanted = masked_model(RAGGED)(**inputs)[0][0, PROMPT + 5 : -1]
    for found in (cached, whole):
        assert (torch.stack(found.logits)[:, 0] - wanted).abs().max() < 1e-5


@torch.no_grad()
def test_several_new_words_behind_a_past_see_only_what_is_before_them(tmp_path: Path) -> None:
    model, words = opened(tmp_path), torch.randint(1, 97, (2, 9))
    first = model(input_ids=words[:, :4], use_cache=True)
    second = model(input_ids=words, past_key_values=first.past_key_values, use_cache=True).logits
    context = (torch.arange(9) < 4).expand(2, -1)
    whole = model(input_ids=words, context=context, use_cache=False).logits
    assert (torch.cat([first.logits, second], 1) - whole).abs().max() < 1e-5


@torch.no_grad()
def test_a_model_without_any_attention_still_writes(tmp_path: Path) -> None:
    case = Case(Kept(kept_layer(None, None, WIDE[:7]) for _ in range(3)), "fp32")
    model = SprunecForCausalLM.from_pretrained(emitted(case, tmp_path, "huggingface") / "huggingface").eval()
    words = torch.randint(1, 97, (2, 5))
    written = model.generate(words, max_new_tokens=4, do_sample=False)
    for row in written:
        wanted = masked_model(case)(**inputs_of(row))[0][0, PROMPT:].argmax(-1)
        assert torch.equal(wanted[4:-1], row[5:])


def inputs_of(row: torch.Tensor) -> dict[str, torch.Tensor]:
    from sprunec.families.cpm_ant.huggingface_files import all_context

    return all_context(row, tiny_config(), 2, 2)
