"""Plans whose rows are whole documents, of models of transformers: everything that batches go through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sprunec.errors import InputError
from sprunec.plan.plan import read_plan
from tests.runs.test_causal_lms import SCORED, directory, run

WORDS = "the statement of a class is an object that for each name in it while others are not".split()  # noqa: SIM905


def lines(folder: Path, count: int = 120) -> None:
    """Documents of three to some dozens of tokens."""
    texts = [
        " ".join(WORDS[place % len(WORDS)] for place in range(number, number + 1 + number % 9))
        for number in range(count)
    ]
    (folder / "d.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def packed(folder: Path, *passes: dict[str, Any], **more: Any) -> Any:
    data = {"source": "jsonl", "path": "d.jsonl", "packing": "documents", "max_length": 48}
    return run(folder, *passes, **data | more)


def alone(folder: Path) -> float:
    """The held-out loss as transformers alone tells it, a document at a time."""
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder / "dense").eval(),
        AutoTokenizer.from_pretrained(folder / "dense"),
    )
    texts = [json.loads(line)["text"] for line in (folder / "d.jsonl").read_text().splitlines()]
    cut = sum(map(len, texts)) - round(sum(map(len, texts)) * 0.1)
    total = count = start = 0
    for text in texts:
        piece, start = text[max(cut - start, 0) :], start + len(text)
        if piece:
            ids = torch.tensor([[*tokenizer(piece)["input_ids"], tokenizer.eos_token_id]])
            with torch.no_grad():
                logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
            total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
            count += ids.shape[1] - 1
    return total / count


@pytest.mark.parametrize("name", ["gemma3_text", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_masks_are_scored_and_learned_and_what_is_left_is_trained_on_packed_rows(name: str, tmp_path: Path) -> None:
    directory(tmp_path, name)
    lines(tmp_path)
    least = SCORED | {"unit": "dim_ff", "target": {"dim_ff": 48}, "compensate": "least-squares"}
    taylor = SCORED | {"unit": "dim_ff", "target": {"dim_ff": 44}, "criterion": "taylor"}
    gates = {"pass": "train-mask", "unit": "dim_ff", "target": {"dim_ff": 40}, "budget": "per-layer", "steps": 3}
    tune = {"pass": "finetune", "steps": 4, "learning_rate": 1e-3, "accumulate": 2}
    report = packed(tmp_path, least, taylor, gates | {"learning_rate": 1e-3}, tune)
    assert report.status in ("done", "target-missed")  # no gate settles in three steps
    comparison = report.data["comparison"]
    assert comparison["max_abs_difference"] <= comparison["tolerance"]
    models = report.data["models"]
    assert models["small"]["loss"] < models["dense"]["loss"]
    (data,) = (entry for entry in report.data["passes"] if entry["pass"] == "data")
    assert data["metrics"]["padding"] < 0.05
    assert models["dense"]["loss"] == pytest.approx(alone(tmp_path), rel=1e-4)


def test_a_model_without_position_ids_is_refused_before_any_work(tmp_path: Path) -> None:
    directory(tmp_path, "bloom", n_layer=2)
    lines(tmp_path)
    content = {
        "name": "n",
        "model": {"path": "dense"},
        "data": {"source": "jsonl", "path": "d.jsonl", "packing": "documents", "max_length": 48},
        "passes": [{"pass": "finetune", "steps": 2}],
    }
    (tmp_path / "plan.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"/data/packing: error: .*BloomForCausalLM takes no position_ids; rem"):
        read_plan(tmp_path / "plan.json")
