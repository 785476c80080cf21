"""What a valid plan may come to regret: each warning with a plan that calls for it, and one that does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sprunec.data.saved import SavedIds, save_array
from sprunec.data.text import read_text
from sprunec.data.unseen import RUN, seen_share
from sprunec.plan.advice.advise import ADVICE
from sprunec.plan.plan import check_plan
from tests.helpers.hub import SMOLLM2
from tests.helpers.small_plans import EMIT, MODEL, TRAIN, execute, mask_pass, plan, write
from tests.test_cli import run

SCORED = {"pass": "score-mask", "criterion": "activation", "unit": "dim_ff"}
HUGGINGFACE = {"pass": "emit", "formats": ["huggingface"]}
FINETUNE = {"pass": "finetune", "steps": 20}


def warned(folder: Path, content: dict[str, Any]) -> dict[str, str]:
    """Warnings by code, with their places and words; what is missing on the disk is not told here."""
    _, found = check_plan(write(folder, content), advice=ADVICE)
    assert all(each.severity == "warning" for each in found), found
    return {each.code: f"{each.pointer}: {each.message}; {each.hint}" for each in found if each.code != "missing-file"}


def smollm2(folder: Path, *passes: dict[str, Any], **changes: Any) -> dict[str, Any]:
    write(folder, SMOLLM2[1], "config.json")
    model = {"config": "config.json", "checkpoint": "model.safetensors"}
    data = {"source": "text", "path": "book.txt", "tokenizer": "tokenizer.json", "max_length": 512, "batch_size": 4}
    return plan(*passes, HUGGINGFACE, model=model, **{"data": data} | changes)


def test_a_large_cut_without_recovery_is_warned_of(tmp_path: Path) -> None:
    cut = SCORED | {"target": {"sparsity": 0.5}, "compensate": "least-squares", "multiple_of": {"dim_ff": 32}}
    told = warned(tmp_path, smollm2(tmp_path, cut))
    assert told.keys() == {"no-recovery"}
    assert told["no-recovery"].startswith("/passes/0/target: 37% of what can be cut goes, and nothing is trained")
    assert warned(tmp_path, smollm2(tmp_path, cut, FINETUNE)) == {}
    assert warned(tmp_path, smollm2(tmp_path, cut | {"target": {"sparsity": 0.2}})) == {}
    search = {"pass": "search", "units": ["kv_group", "dim_ff"], "multiple_of": {"dim_ff": 32}}
    assert "no-recovery" in warned(tmp_path, smollm2(tmp_path, search | {"target": {"parameters": "70M"}}))
    assert warned(tmp_path, smollm2(tmp_path, search | {"target": {"parameters": "110M"}})) == {}


def test_several_small_cuts_are_one_large_one(tmp_path: Path) -> None:
    cuts = [SCORED | {"target": {"dim_ff": size}, "budget": "per-layer"} for size in (1280, 1024)]
    assert "no-recovery" not in warned(tmp_path, smollm2(tmp_path, cuts[0]))
    told = warned(tmp_path, smollm2(tmp_path, *cuts))["no-recovery"]
    assert told.startswith("/passes/1/target: 25% of") and '"compensate": "least-squares"' in told
    blind = SCORED | {"criterion": "magnitude", "target": {"dim_ff": 1408}, "budget": "per-layer"}
    assert "no-recovery" in warned(tmp_path, smollm2(tmp_path, blind))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 6}, "/passes/1/steps: 6 steps at 1 move gates by 5.2 at most"),
        ({"steps": 100, "mask_learning_rate": 0.02}, "give 3"),
        ({"steps": 100, "ramp": 1.0}, "/passes/1/ramp: the ramp leaves 0 steps at the target"),
    ],
)
def test_gates_that_cannot_arrive_are_warned_of(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    gates = mask_pass("head", {"num_heads": 2}, **options)
    assert words in warned(tmp_path, plan(TRAIN, gates, FINETUNE, EMIT))["gates-too-slow"]


def test_gates_that_have_the_steps_are_not_warned_of(tmp_path: Path) -> None:
    assert warned(tmp_path, plan(TRAIN, mask_pass("head", {"num_heads": 2}, 40), FINETUNE, EMIT)) == {}
    assert warned(tmp_path, plan(TRAIN, mask_pass("head", {"num_heads": 7}, 6), FINETUNE, EMIT)) == {}


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "settles"), [(6, False), (60, True)])
def test_the_warning_about_gates_comes_true(steps: int, settles: bool, tmp_path: Path) -> None:
    content = plan({"pass": "train", "steps": 20}, mask_pass("dim_ff", {"dim_ff": 12}, steps), EMIT)
    assert ("gates-too-slow" not in warned(tmp_path, content)) == settles
    assert all(row["settled"] == settles for row in execute(content, tmp_path / "run")["budgets"])


def test_widths_that_quantizers_dislike_are_warned_of(tmp_path: Path) -> None:
    def told(**options: Any) -> str:
        return warned(tmp_path, smollm2(tmp_path, SCORED | options, FINETUNE)).get("odd-widths", "")

    assert told(target={"dim_ff": 1232}, budget="per-layer").endswith("give 1216 or 1248")
    assert told(target={"dim_ff": 1216}, budget="per-layer") == ""
    assert told(target={"dim_ff": 1216}).endswith('add "multiple_of": {"dim_ff": 32}')
    assert told(target={"dim_ff": 1216}, multiple_of={"dim_ff": 64}) == ""
    grid = {"pass": "search", "units": ["dim_ff"], "target": {"parameters": "120M"}}
    assert "odd-widths" not in warned(tmp_path, smollm2(tmp_path, grid | {"damage": "kl"}))  # of eighths of 1536
    assert "odd-widths" in warned(tmp_path, smollm2(tmp_path, grid))  # by fisher of quarters of these
    odd = warned(tmp_path, smollm2(tmp_path, grid | {"grid": {"dim_ff": [1200]}}))
    assert odd["odd-widths"].startswith("/passes/0/grid/dim_ff: 1200: kernels are slower")
    model = {"config": MODEL | {"dim_ff": 512}}  # which no quantizer opens
    assert warned(tmp_path, plan(TRAIN, SCORED | {"target": {"dim_ff": 301}}, FINETUNE, EMIT, model=model)) == {}


def test_text_that_is_seen_again_and_again_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("word " * 16_384)  # about 18 thousand tokens to train on
    told = warned(tmp_path, smollm2(tmp_path, {"pass": "train", "steps": 40}))
    assert told["repeated-text"].startswith("/data: training asks for 81,920 tokens, and the text has about 18,432")
    assert "repeated-text" not in warned(tmp_path, smollm2(tmp_path, {"pass": "train", "steps": 15}))
    new = plan({"pass": "train", "steps": 20_000}, EMIT)
    assert "it is gone through 6." in warned(tmp_path, new)["repeated-text"]
    assert warned(tmp_path, plan({"pass": "train", "steps": 10_000}, EMIT)) == {}


def test_a_file_that_is_held_out_and_trained_on_is_warned_of(tmp_path: Path) -> None:
    for name in ("book.txt", "other.txt"):
        (tmp_path / name).write_text("some words " * 1000)
    data = {"source": "text", "path": "*.txt", "max_length": 34, "batch_size": 4}
    told = warned(tmp_path, plan(TRAIN, EMIT, data=data | {"held_out": "./book.txt"}))
    assert told["held-out-overlap"].startswith("/data/held_out: ") and "is trained on, too" in told["held-out-overlap"]
    assert warned(tmp_path, plan(TRAIN, EMIT, data=data | {"path": "other.txt", "held_out": "book.txt"})) == {}


def test_rates_far_from_the_familys_are_warned_of(tmp_path: Path) -> None:
    def told(rate: float) -> set[str]:
        return set(warned(tmp_path, smollm2(tmp_path, {"pass": "train", "steps": 1, "learning_rate": rate})))

    assert told(2e-2) == {"high-rate"} and told(1e-8) == {"low-rate"}
    assert told(2e-4) == told(2e-6) == set()


def test_held_out_text_that_is_in_the_training_text_is_found(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 300, 3_000_000).astype(np.int32)
    parts = {"train": ids[:2_500_000], "apart": ids[2_500_000:], "within": ids[1_100_000:1_150_000]}
    parts["half"] = np.concatenate([parts["apart"][:50_000], parts["within"]])
    for name, part in parts.items():
        save_array(tmp_path / name, part)
    train, *held_out = (SavedIds(tmp_path / name) for name in ("train", "apart", "within", "half"))
    shares = [seen_share(train, each) for each in held_out]
    assert shares[:2] == [0.0, 1.0] and shares[2] == pytest.approx(0.5, abs=0.01)
    save_array(tmp_path / "short", ids[: RUN - 1])
    assert seen_share(train, SavedIds(tmp_path / "short")) == 0.0


def test_a_run_says_that_held_out_text_is_trained_on(tmp_path: Path) -> None:
    text = read_text("python-docs", ())
    (tmp_path / "book.txt").write_text(text[:40_000])
    (tmp_path / "copy.txt").write_text(text[10_000:20_000])
    (tmp_path / "apart.txt").write_text(text[60_000:70_000])
    for held_out, notes in (("copy.txt", 1), ("apart.txt", 0)):
        data = {
            "source": "text",
            "path": "../book.txt",
            "held_out": f"../{held_out}",
            "max_length": 34,
            "batch_size": 4,
        }
        report = execute(plan(TRAIN, EMIT, data=data), tmp_path / held_out[:-4])
        first = next(entry for entry in report["passes"] if entry["pass"] == "data")
        told = first["metrics"].get("notes", [])
        assert len(told) == notes
        assert all("100% of the held-out text is in the text that is trained on" in note for note in told)


def test_commands_give_advice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, plan(TRAIN, mask_pass("head", {"num_heads": 2}, 3), FINETUNE, EMIT))
    for command in (["validate", path], ["run", path, "--dry-run"]):
        assert run(*command) == 0
        assert "warning: /passes/1/steps: 3 steps at 1 move gates by" in capsys.readouterr().err
