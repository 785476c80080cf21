"""The command line: documents, exit codes, streams, and what it does not import."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sprunec.cli import app, main
from sprunec.plan.schema import validator
from tests.helpers.small_plans import EMIT, MODEL, TRAIN, guide, mask_pass, plan, write

ROOT = Path(__file__).parent.parent
BAD = sorted((ROOT / "tests" / "plans" / "bad").glob("*.json"))
SHIPPED = [path for path in sorted((ROOT / "plans").glob("*.json")) if '"passes"' in path.read_text()]


def run(*arguments: object) -> int:
    """The exit code of `sprunec ...`; anything but a clean exit is an error of the test."""
    before, sys.argv = sys.argv, ["sprunec", *(str(argument) for argument in arguments)]
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = before
    return 0


WITHOUT_TORCH = """
import sys
import time
from sprunec.cli import main
try:
    main()
finally:
    heavy = {"torch", "numpy", "safetensors"} & set(sys.modules)
    assert not heavy, heavy
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["validate", "plans/quickstart.json"],
        ["--help"],
        ["run", "plans/cpm-ant-1b-to-300m.json", "--dry-run"],
        ["run", "plans/quickstart.json", "--dry-run", "--json"],
    ],
)
def test_what_needs_no_torch_imports_none(arguments: list[str]) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, sprunec; assert 'torch' not in sys.modules; sprunec.read_plan('plans/quickstart.json')"
    subprocess.run([sys.executable, "-c", code + "; assert 'torch' not in sys.modules"], cwd=ROOT, check=True)


def test_the_guides_example_at_true_size(capsys: pytest.CaptureFixture[str]) -> None:
    """1B to 300M: layers keep different heads, so the shared bias table keeps its 16 columns."""
    assert run("run", ROOT / "plans/cpm-ant-1b-to-300m.json", "--dry-run", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    validator("graph").validate(document)
    assert document["parameters"] == {"before": 1_149_865_984, "after": 430_403_584}
    words = [node["pass"] for node in document["nodes"]]
    assert words[:4] == ["data", "load", "evaluate", "train-mask"]
    assert words[3:8] == ["train-mask", "binarize", "rewrite", "compare", "finetune"]
    assert words[-6:] == ["expand", "emit", "compare", "evaluate", "evaluate", "measure-speed"]
    assert all(node["digest"] is None for node in document["nodes"])  # its checkpoint is not here


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_plans_are_valid_without_their_models(path: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert run("validate", path) == 0


@pytest.mark.usefixtures("cached_configs")
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_plans_are_valid_and_lower(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("validate", path) == 0
    assert run("run", path, "--dry-run", "--out", tmp_path / "out") == 0
    assert "nodes, 0 already in the store" in capsys.readouterr().out


def test_validate_prints_a_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = guide()
    broken["passes"][1]["target"] = {"num_heads": 99}
    path = write(tmp_path, broken)
    assert run("validate", path, "--json") == 3
    document = json.loads(capsys.readouterr().out)
    validator("diagnostics").validate(document)
    assert document["valid"] is False
    assert [(d["code"], d["pointer"]) for d in document["diagnostics"]] == [
        ("target-too-large", "/passes/1/target/num_heads")
    ]
    assert document["diagnostics"][0]["line"] == 1


def test_run_prints_its_report_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = plan(TRAIN, EMIT)
    assert run("run", write(tmp_path, content), "--out", tmp_path / "out", "--json") == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    validator("report").validate(report)
    assert report == json.loads((tmp_path / "out/report.json").read_text())
    assert "3-train: step 2/2, loss" in captured.err


def test_a_second_run_says_that_nothing_was_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, plan(TRAIN, EMIT))
    assert run("run", path, "--out", tmp_path / "out") == 0
    assert "every pass was done before" not in capsys.readouterr().out
    assert run("run", path, "--out", tmp_path / "out") == 0
    captured = capsys.readouterr()
    assert "every pass was done before; nothing to do" in captured.out
    assert captured.err.count("already in the store") == 7


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_bad_plans_exit_3_without_a_traceback(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if path.name == "expected.json":
        return
    code = run("validate", path)
    printed = capsys.readouterr()
    assert code in (0, 3)  # 0: only warnings
    assert "Traceback" not in printed.err
    if code == 3:
        assert re.search(r": error: |error", printed.err)
        assert run("run", path, "--out", tmp_path / "out") == 3
        assert not (tmp_path / "out").exists()


def mutated(content: dict[str, Any], draw: random.Random) -> str:
    """The plan with one value, key or character changed."""
    text = json.dumps(content)
    kind = draw.randrange(3)
    if kind == 0:
        place = draw.randrange(len(text))
        return text[:place] + draw.choice('{}[]",:0a\\\n') + text[place + draw.randrange(3) :]
    holders = [content]
    for holder in holders:
        inner = holder.values() if isinstance(holder, dict) else holder
        holders.extend(value for value in inner if isinstance(value, dict | list) and value)
    holder = draw.choice(holders)
    key = draw.choice(list(holder)) if isinstance(holder, dict) else draw.randrange(len(holder))
    junk = [None, -1, 0, 1e308, "", "x" * 300, [], {}, True, "../..", 2**70, {"unit": "head"}]
    if kind == 1:
        holder[key] = draw.choice(junk)
    else:
        del holder[key]
    return json.dumps(content)


def test_a_hundred_mutations_exit_0_or_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(5)
    codes = []
    for number in range(100):
        path = tmp_path / f"{number}.json"
        path.write_text(mutated(guide(), draw))
        codes.append(run("validate", path))
        dry = run("run", path, "--dry-run")
        assert dry == codes[-1], path.read_text()
        assert "Traceback" not in capsys.readouterr().err
    assert set(codes) == {0, 3}
    assert codes.count(3) > 50


def test_a_failed_run_prints_a_document_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = plan({"pass": "train", "steps": 60, "learning_rate": 1000, "schedule": "constant"})
    assert run("run", write(tmp_path, content), "--out", tmp_path / "out", "--json", "--quiet") == 1
    report = json.loads(capsys.readouterr().out)
    validator("report").validate(report)
    assert report["status"] == "failed"
    assert "became nan" in report["error"] or "became inf" in report["error"]


def test_a_missing_device_is_told_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = plan(TRAIN, engine={"device": "cuda:77"})
    assert run("run", write(tmp_path, content), "--out", tmp_path / "out", "--json") == 3
    captured = capsys.readouterr()
    validator("diagnostics").validate(json.loads(captured.out))
    assert "cuda:77 is not on this machine" in captured.err
    assert not (tmp_path / "out").exists()


def test_out_that_cannot_be_written_is_an_input_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("a file")
    assert run("run", write(tmp_path, plan(TRAIN)), "--out", tmp_path / "out") == 3
    assert "cannot be written to" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "a file"


# --- inspect ---


def inspected(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert run("inspect", path, "--json") == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    validator("inspect").validate(document)
    return document


def test_inspect_reads_a_config_without_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = inspected(write(tmp_path, MODEL, "model.json"), capsys)
    assert document["parameters"] == {"total": 43208, "prunable": 3 * (8224 + 4640)}
    heads = next(site for site in document["sites"] if site["unit"] == "head")
    assert (heads["layer"], heads["size"], heads["parameters_each"]) == (0, 8, 4 * 8 * 32)
    assert heads["label"] == "encoder.layers.0.self_att.self_attention"
    assert {tensor["name"].rpartition("attention.")[2] for tensor in heads["tensors"]} == {
        "project_q.weight",
        "project_k.weight",
        "project_v.weight",
        "attention_out.weight",
    }


def test_inspect_reads_what_emit_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = plan(TRAIN, mask_pass("head", {"num_heads": 3}, budget="per-layer"), EMIT)
    run("run", write(tmp_path, content), "--out", tmp_path / "out", "--quiet")
    report = json.loads((tmp_path / "out/report.json").read_text())
    capsys.readouterr()
    for path in (tmp_path / "out/model/sprunec", *(tmp_path / "out/store").glob("*/model.safetensors")):
        document = inspected(path, capsys)
        if path.is_dir():
            assert document["parameters"]["total"] == report["models"]["small"]["parameters"]
            assert [layer["attention"]["heads"] for layer in document["layers"]] == [3, 3, 3]
            break


@pytest.mark.parametrize("content", ["{", "[]", '{"hidden_size": 4096}', "\x00\x01"])
def test_inspect_names_what_it_cannot_read(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.json"
    path.write_text(content)
    assert run("inspect", path) == 3
    assert "model.json" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["gone.json", "gone", "gone.pt", "gone.safetensors"])
def test_inspect_of_nothing_is_an_input_error(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", tmp_path / name) == 3
    assert name in capsys.readouterr().err.replace("\n", "")


# --- signals ---


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupt_exits_130_and_the_same_command_continues(name: str, tmp_path: Path) -> None:
    content = plan({"pass": "train", "steps": 2}, {"pass": "train", "steps": 400}, EMIT)
    command = [sys.executable, "-m", "sprunec", "run", str(write(tmp_path, content)), "--out", str(tmp_path / "out")]
    running = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    events = tmp_path / "out" / "events.jsonl"
    while running.poll() is None and not (events.exists() and "4-train" in events.read_text()):
        time.sleep(0.05)
    running.send_signal(getattr(signal, name))
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130, errors
    assert "run the same command again to continue" in errors
    assert "Traceback" not in errors
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["status"] == "interrupted"
    assert [entry["name"] for entry in report["passes"]] == ["1-data", "2-load", "3-train"]
    assert not list((tmp_path / "out/store").glob("writing-*"))


# --- help, schemas, completion ---


@pytest.mark.parametrize("command", [command.callback.__name__ for command in app.registered_commands])
def test_every_command_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command.replace("_", "-"), "--help") == 0
    assert f"Example: sprunec {command.replace('_', '-')} " in " ".join(capsys.readouterr().out.split())


def test_schemas_are_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("schema", "--json") == 0
    listed = json.loads(capsys.readouterr().out)["schemas"]
    assert {"plan", "model", "passes/search", "report"} <= listed.keys()
    assert run("schema") == 0
    assert "passes/search" in capsys.readouterr().out
    assert run("schema", "plan") == 0
    assert json.loads(capsys.readouterr().out)["title"] == "sprunec plan"
    assert run("schema", "plna") == 2
    assert "did you mean plan?" in capsys.readouterr().err


def test_shells_complete_commands_and_options() -> None:
    for words, wanted in (("sprunec ins", "inspect"), ("sprunec run --dry", "--dry-run")):
        shell = {"_SPRUNEC_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        code = "import sys; sys.argv = ['sprunec']; from sprunec.cli import app; app(prog_name='sprunec')"
        command, environment = [sys.executable, "-c", code], os.environ | shell
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert wanted in done.stdout.split(), done.stderr
