"""First plans: valid for every family, right for the size, and refused where there is no such size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sprunec.compiler.recommended import Wish, recommend
from sprunec.data.text import read_text
from sprunec.errors import InputError
from sprunec.plan.plan import check_plan
from tests.compiler.test_shape import ROOT, WITHOUT_TORCH
from tests.helpers.causal_lms import CONFIGS
from tests.helpers.hub import SMOLLM2
from tests.helpers.small_plans import MODEL, read_report, save_weights, write
from tests.runs.test_causal_lms import directory
from tests.test_cli import run

PROSE = "the quick brown fox jumps over the lazy dog, and then the dog sleeps in the sun all day long. "


def smollm2(folder: Path, **wish: Any) -> Any:
    return recommend(write(folder, SMOLLM2[1], "config.json"), Wish(**wish), output=folder / "plan.json")


def passes(found: Any) -> dict[str, Any]:
    return {each["pass"]: each for each in found.document["passes"]}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_has_a_first_plan_that_is_valid(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory(tmp_path, name)
    (tmp_path / "book.txt").write_text(PROSE * 100)
    path = tmp_path / "plan.json"
    wanted = ["--sparsity", "0.3", "--data", tmp_path / "book.txt", "-o", path]
    assert run("init", tmp_path / "dense", *wanted) == 0
    assert "the dense model" in capsys.readouterr().err
    plan, found = check_plan(path, strict=True)
    assert plan is not None
    assert {each.code for each in found} <= {"no-tokenizer"}  # the tiny model has none


def test_small_cuts_are_not_trained_and_large_ones_with_all_weights(tmp_path: Path) -> None:
    small, some, large = (
        passes(smollm2(tmp_path, parameters=count)) for count in (125 * 10**6, 110 * 10**6, 70 * 10**6)
    )
    assert list(small) == ["search", "emit"]
    assert small["search"] == {
        "pass": "search",
        "units": ["kv_group", "dim_ff"],
        "target": {"parameters": "125M"},
        "multiple_of": {"dim_ff": 32},
    }
    assert list(some) == list(large) == ["search", "finetune", "emit"]
    assert some["finetune"]["adapter"]["rank"] == 16 and some["finetune"]["distillation"] == {"logits": 1.0}
    assert "adapter" not in large["finetune"] and large["finetune"]["distillation"] == {"logits": 1.0}


def test_without_peft_all_weights_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sprunec.compiler.recommended.find_spec", lambda name: None)
    found = smollm2(tmp_path, parameters=110 * 10**6)
    assert "adapter" not in passes(found)["finetune"]
    assert any("pip install 'sprunec[lora]'" in reason for reason in found.reasons)


def test_memory_and_time_are_limits_of_the_search(tmp_path: Path) -> None:
    found = passes(smollm2(tmp_path, gigabytes=0.3, milliseconds=12))
    memory = {"gigabytes": 0.3, "batch": 1, "length": 4096}
    assert found["search"]["target"] == {"memory": memory, "latency": {"milliseconds_per_token": 12, "batch": 1}}
    assert "finetune" in found  # how much goes is known once it has been timed


def test_recovery_takes_no_more_steps_than_the_text_has(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text(PROSE * 300)
    config = write(tmp_path, SMOLLM2[1], "config.json")
    found = recommend(config, Wish(sparsity=0.3), (tmp_path / "short.txt",), tmp_path / "plan.json")
    steps = passes(found)["finetune"]["steps"]
    assert steps * 2048 <= len(PROSE) * 300 * 0.9 < (steps + 1) * 2048
    assert any("give more with --data" in reason for reason in found.reasons)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--parameters", "200M", "200,000,000 is not below 134,515,008, the parameters that the model has"),
        ("--parameters", "10M", "10,000,000 asked for, and 47,147,328 is the least possible"),
        ("--sparsity", "0.99", "give more than 47,147,328\n"),
        ("--memory", "9", "9 GB are not below 0.363 GB, what the model takes as it is"),
        ("--memory", "0.01", "0.01 asked for, and 0.125752 is the least possible"),
    ],
)
def test_sizes_that_there_are_not_are_refused(
    option: str, value: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write(tmp_path, SMOLLM2[1], "config.json")
    assert run("init", config, option, value, "-o", tmp_path / "plan.json") == 3
    told = capsys.readouterr().err
    assert words in told and f"error: {option}: " in told
    assert not (tmp_path / "plan.json").exists()


@pytest.mark.parametrize("given", [["--parameters", "many"], ["--sparsity", "1.5"], ["--latency", "0"]])
def test_what_is_no_size_is_wrong_usage(given: list[str], tmp_path: Path) -> None:
    assert run("init", write(tmp_path, SMOLLM2[1], "config.json"), *given) == 2
    assert run("init", tmp_path / "config.json", "--parameters", "110M", "--sparsity", "0.2") == 2


def test_a_new_model_is_trained_first_and_weights_need_their_config(tmp_path: Path) -> None:
    new = recommend(write(tmp_path, MODEL, "model.json"), Wish(sparsity=0.3), output=tmp_path / "plan.json").document
    assert [each["pass"] for each in new["passes"]] == ["train", "search", "finetune", "emit"]
    assert (new["name"], new["model"]) == ("model-less-30", {"config": "model.json"})
    with pytest.raises(InputError, match="these weights come without a config"):
        recommend(save_weights(tmp_path / "ant.pt"), Wish(sparsity=0.3))


def test_nothing_is_overwritten_and_the_plan_goes_to_stdout_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write(tmp_path, SMOLLM2[1], "config.json")
    assert run("init", config, "--parameters", "110M") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["name"].endswith("-110m") and "- a search chooses" in printed.err
    (tmp_path / "plan.json").write_text("mine")
    assert run("init", config, "--parameters", "110M", "-o", tmp_path / "plan.json") == 3
    assert (tmp_path / "plan.json").read_text() == "mine"


def test_a_first_plan_imports_no_torch(tmp_path: Path) -> None:
    config = write(tmp_path, SMOLLM2[1], "config.json")
    command = [sys.executable, "-c", WITHOUT_TORCH, "init", str(config), "--parameters", "110M"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_run_does_a_first_plan(tmp_path: Path) -> None:
    directory(tmp_path, "llama")
    (tmp_path / "book.txt").write_text(read_text("python-docs", ())[:15_000])
    path, out = tmp_path / "plan.json", tmp_path / "out"
    assert run("init", tmp_path / "dense", "--sparsity", "0.3", "--data", tmp_path / "book.txt", "-o", path) == 0
    assert run("run", path, "--out", out, "--quiet") == 0
    models = read_report(out)["models"]
    assert models["small"]["parameters"] < models["dense"]["parameters"]
    assert (out / "model/huggingface/config.json").is_file()
