"""The emitted Hugging Face form as others train it: with adapters from peft, and with activations recomputed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import Tensor, nn
from transformers import CpmAntForCausalLM, Trainer, TrainingArguments

from sprunec.families.cpm_ant.blocks import Block, build
from sprunec.families.cpm_ant.modeling_sprunec import SprunecForCausalLM
from sprunec.units import Kept
from tests.conftest import TINY, kept_layer, tiny_config
from tests.formats.test_opened_alone import EVEN, RAGGED, run_alone
from tests.helpers.cut_models import Case, emitted

NAMED, ALL = ["project_q", "project_v"], "all-linear"
WITHOUT_ATTENTION = Case(Kept(kept_layer(None, None, tuple(range(7))) for _ in range(3)), "fp32")
WORDS = torch.randint(1, TINY["vocab_size"], (4, 9), generator=torch.Generator().manual_seed(5))
LABELS = WORDS.masked_fill(torch.arange(9) < 4, -100)
CLASSES = {"own": SprunecForCausalLM, "stock": CpmAntForCausalLM}
NOISE = 1e-5
MERGED_AND_SAVED = """
from pathlib import Path
from peft import PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)
model = PeftModel.from_pretrained(base, given["adapter"]).eval()
words = given["words"]
with torch.no_grad():
    result = {"adapter": model(input_ids=words).logits}
    model.merge_and_unload().save_pretrained(given["merged"])
    again = AutoModelForCausalLM.from_pretrained(given["merged"], trust_remote_code=True).eval()
    result["again"] = again(input_ids=words).logits
torch.save(result | {"class": [torch.tensor(list(type(again).__name__.encode()))]}, found)
"""


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The form in its own classes, of a ragged model, and in transformers' own, of an even one."""
    cases = {"own": RAGGED, "stock": EVEN}
    return {
        name: emitted(case, tmp_path_factory.mktemp(name), "huggingface") / "huggingface"
        for name, case in cases.items()
    }


def lora(targets: Any, **options: Any) -> LoraConfig:
    return LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM", **options)


def loss_of(model: nn.Module) -> Tensor:
    """The mean over the labels, each against the logits of the column before it."""
    logits = model(input_ids=WORDS).logits[:, :-1].flatten(0, 1)
    return nn.functional.cross_entropy(logits, LABELS[:, 1:].flatten())


def trained(model: nn.Module, steps: int = 15) -> list[float]:
    """The losses of a few steps of all that may be trained; the model is left in eval mode."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 3e-2)
    model.train()
    losses = []
    for _ in range(steps):
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    model.eval()
    return losses


@torch.no_grad()
def logits_of(model: nn.Module) -> Tensor:
    return model(input_ids=WORDS).logits.float()


@pytest.mark.parametrize("targets", [NAMED, ALL])
@pytest.mark.parametrize("form", ["own", "stock"])
def test_lora_trains_loads_again_and_merges(
    form: str, targets: Any, directories: dict[str, Path], tmp_path: Path
) -> None:
    source = directories[form]
    model = get_peft_model(CLASSES[form].from_pretrained(source), lora(targets))
    dense, losses = logits_of(model), trained(model)
    wanted = logits_of(model)
    assert losses[-1] < 0.9 * losses[0]
    assert (wanted - dense).abs().max() > 0.1
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(CLASSES[form].from_pretrained(source), tmp_path / "adapter").eval()
    assert torch.equal(logits_of(again), wanted)
    assert (logits_of(model.merge_and_unload()) - wanted).abs().max() < NOISE


@pytest.mark.parametrize("form", ["own", "stock"])
def test_a_merged_model_opens_as_the_one_it_was_merged_into(
    form: str, directories: dict[str, Path], tmp_path: Path
) -> None:
    model = get_peft_model(CLASSES[form].from_pretrained(directories[form]), lora(ALL))
    trained(model)
    model.save_pretrained(tmp_path / "adapter")
    given = {"words": WORDS, "adapter": str(tmp_path / "adapter"), "merged": str(tmp_path / "merged")}
    found: Any = run_alone(MERGED_AND_SAVED, directories[form], given, tmp_path)
    assert bytes(found["class"][0].tolist()).decode() == CLASSES[form].__name__
    assert torch.equal(found["adapter"], logits_of(model))
    assert (found["again"] - found["adapter"]).abs().max() < NOISE


@pytest.mark.parametrize(
    "adapter",
    [
        lora(["attention_out", "w_out"], init_lora_weights=False),
        lora(ALL, init_lora_weights=False, use_dora=True),
        IA3Config(
            target_modules=["project_k", "project_v", "w_out"],
            feedforward_modules=["w_out"],
            task_type="CAUSAL_LM",
            init_ia3_weights=False,
        ),
    ],
    ids=["lora behind a division", "dora", "ia3"],
)
def test_every_kind_of_adapter_merges_into_what_it_was(adapter: Any, directories: dict[str, Path]) -> None:
    """They take a linear for x W^T: one that divided inside would come out otherwise."""
    source = SprunecForCausalLM.from_pretrained(directories["own"])
    dense = logits_of(source.eval())
    model = get_peft_model(source, copy.deepcopy(adapter)).eval()
    wanted = logits_of(model)
    assert (wanted - dense).abs().max() > 1e-2
    assert (logits_of(model.merge_and_unload()) - wanted).abs().max() < NOISE


def test_embeddings_may_be_trained_beside_an_adapter(directories: dict[str, Path], tmp_path: Path) -> None:
    """The table is the head too: both uses see what has been learned."""
    options = lora(NAMED, modules_to_save=["input_embedding"])
    model = get_peft_model(SprunecForCausalLM.from_pretrained(directories["own"]), options)
    before = model.get_input_embeddings().weight.detach().clone()
    losses = trained(model)
    wanted, table = logits_of(model), model.get_input_embeddings().weight.detach().clone()
    assert losses[-1] < losses[0] and (table - before).abs().max() > 1e-2
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(SprunecForCausalLM.from_pretrained(directories["own"]), tmp_path / "adapter")
    assert torch.equal(logits_of(again.eval()), wanted)
    merged = model.merge_and_unload()
    assert (logits_of(merged) - wanted).abs().max() < NOISE
    assert torch.equal(merged.model.input_embedding.weight, table)


def test_lora_on_weights_in_half_precision(directories: dict[str, Path]) -> None:
    source = SprunecForCausalLM.from_pretrained(directories["own"], dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in source.parameters()} == {torch.bfloat16}
    model = get_peft_model(source, lora(ALL))
    losses = trained(model)
    wanted = logits_of(model)
    assert losses[-1] < 0.9 * losses[0]
    # A merge rounds the weights once more: 2^-8 of logits up to 5, through three layers.
    assert (logits_of(model.merge_and_unload()) - wanted).abs().max() < 0.15


def test_a_model_with_an_adapter_writes_the_same_with_a_cache(directories: dict[str, Path]) -> None:
    source = SprunecForCausalLM.from_pretrained(directories["own"])
    dense = source.generate(WORDS, max_new_tokens=6, do_sample=False)
    model = get_peft_model(source, lora(ALL, init_lora_weights=False)).eval()
    columns: list[int] = []
    query = source.model.encoder.layers[1].self_att.self_attention.project_q
    query.register_forward_hook(lambda _, given, out: columns.append(out.size(1)))
    cached, whole = (
        model.generate(input_ids=WORDS, max_new_tokens=6, do_sample=False, use_cache=use) for use in (True, False)
    )
    assert torch.equal(cached, whole) and not torch.equal(cached, dense)
    first = TINY["prompt_length"] + 9
    assert columns == [first, *[1] * 5, *range(first, first + 6)]


def gradients(model: nn.Module, calls: list[int]) -> dict[str, Tensor]:
    """Of one step from labels; `calls` counts how often blocks run."""
    for block in (module for module in model.modules() if isinstance(module, Block)):
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    model(input_ids=WORDS, labels=LABELS).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("case", [RAGGED, WITHOUT_ATTENTION], ids=["ragged", "without attention"])
def test_recomputed_activations_give_the_same_gradients(case: Case, reentrant: bool, tmp_path: Path) -> None:
    directory = emitted(case, tmp_path, "huggingface") / "huggingface"
    plain, again = (SprunecForCausalLM.from_pretrained(directory).train() for _ in range(2))
    again.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    calls: tuple[list[int], list[int]] = ([], [])
    wanted, found = gradients(plain, calls[0]), gradients(again, calls[1])
    unused = {"model.position_bias.relative_attention_bias"} if case is WITHOUT_ATTENTION else set()
    assert wanted.keys() == found.keys() == dict(plain.named_parameters()).keys() - unused
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    assert (len(calls[0]), len(calls[1])) == (3, 6)


def test_activations_are_recomputed_while_training_only(directories: dict[str, Path]) -> None:
    model = SprunecForCausalLM.from_pretrained(directories["own"]).train()
    calls: list[int] = []
    model.gradient_checkpointing_enable()
    gradients(model, calls)
    assert len(calls) == 6
    assert model(input_ids=WORDS).past_key_values is None  # what is recomputed would fill a cache twice
    model.gradient_checkpointing_disable()
    calls.clear()
    model(input_ids=WORDS, labels=LABELS).loss.backward()
    assert len(calls) == 3
    model.gradient_checkpointing_enable()
    calls.clear()
    model.eval()(input_ids=WORDS, labels=LABELS).loss.backward()
    assert len(calls) == 3
    assert model(input_ids=WORDS).past_key_values.get_seq_length() == TINY["prompt_length"] + 9


@pytest.mark.parametrize("reentrant", [False, True])
def test_an_adapter_learns_the_same_through_recomputed_activations(
    reentrant: bool, directories: dict[str, Path]
) -> None:
    """All weights are frozen: gradients have to come through the embeddings' output."""
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = prepare_model_for_kbit_training(SprunecForCausalLM.from_pretrained(directories["own"]))
        if recompute:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model = get_peft_model(model, lora(ALL, init_lora_weights=False)).train()
        found.append(gradients(model, calls := []))
        assert len(calls) == (6 if recompute else 3)
    assert found[0].keys() == found[1].keys() and all("lora" in name for name in found[0])
    assert all(gradient.abs().max() > 0 for gradient in found[0].values())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_trainer_trains_an_adapter_from_labels(directories: dict[str, Path], tmp_path: Path) -> None:
    model = get_peft_model(SprunecForCausalLM.from_pretrained(directories["own"]), lora(ALL))
    rows = [{"input_ids": words, "labels": labels} for words, labels in zip(WORDS, LABELS, strict=True)] * 4
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        max_steps=12,
        per_device_train_batch_size=4,
        learning_rate=3e-2,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        dataloader_pin_memory=False,
        report_to=[],
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 12 and losses[-1] < 0.9 * losses[0]


def test_linears_are_torchs_and_building_draws_no_numbers() -> None:
    before = torch.get_rng_state()
    model = build(tiny_config())
    assert torch.equal(torch.get_rng_state(), before)
    matrices = [n for n, p in model.encoder.layers.named_parameters() if p.dim() > 1]
    linears = [f"{n}.weight" for n, m in model.encoder.layers.named_modules() if isinstance(m, nn.Linear)]
    assert sorted(matrices) == sorted(linears) and len(linears) == 3 * 7


def test_a_vocabulary_of_another_size_is_refused(directories: dict[str, Path]) -> None:
    model = SprunecForCausalLM.from_pretrained(directories["own"])
    assert model.resize_token_embeddings(TINY["vocab_size"]) is model.get_input_embeddings()
    with pytest.raises(ValueError, match=r"has 97 tokens and cannot have 100.* add tokens to that one"):
        model.resize_token_embeddings(100)
    assert model.get_input_embeddings().weight.shape == (97, TINY["dim_model"])
