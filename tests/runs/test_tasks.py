"""Tasks of lm-eval by a plan give what lm-eval alone gives on the directories, for dense and small."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import validate

from sprunec.compiler.lower import lower
from sprunec.errors import InputError
from sprunec.execution.execute import execute
from sprunec.families.own_code import FLAG, trusted
from sprunec.plan.plan import read_plan
from sprunec.plan.schema import load_schema
from tests.helpers.small_plans import artifact, read_report
from tests.helpers.task_files import CHOICE, write_tasks
from tests.runs.test_causal_lms import EMIT, SCORED, directory
from tests.runs.test_interrupts import AGAIN, ROOT, SECONDS, interrupted, undone
from tests.test_cli import run

CUT = SCORED | {"unit": ["head", "dim_ff"], "target": {"num_heads": 4, "dim_ff": 40}}
POSITIONS = 96  # fewer than some texts have tokens
# lm-eval by itself: the directories, the task files, and the batch size; relative places of data are the current one's.
ALONE = """
import json, sys
from lm_eval import simple_evaluate
found = {}
for directory in sys.argv[2:]:
    about = {"pretrained": directory, "dtype": "float32"}
    tasks = json.loads(sys.argv[1])
    found[directory] = simple_evaluate("hf", about, tasks, device="cpu", batch_size=4)["results"]
json.dump(found, open("alone.json", "w"), default=str)
"""


def write_plan(folder: Path, *passes: dict[str, Any], **evaluate: Any) -> Path:
    content = {
        "name": "small",
        "model": {"path": "dense"},
        "data": {"source": "python-docs", "max_length": 32, "batch_size": 4},
        "engine": {"device": "cpu"},
        "passes": [*passes, {"pass": "evaluate", "batch_size": 4, **evaluate}],
    }
    (folder / "plan.json").write_text(json.dumps(content))
    return folder / "plan.json"


def dense(folder: Path) -> Path:
    return directory(folder, "llama", attention_bias=False, max_position_embeddings=POSITIONS)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run, by the command line, with what that said."""
    folder = tmp_path_factory.mktemp("tasks")
    dense(folder)
    write_plan(folder, CUT, EMIT, tasks=write_tasks(folder / "tasks"))
    command = [sys.executable, "-m", "sprunec", "run", str(folder / "plan.json"), "--out", str(folder / "out")]
    about = os.environ | {"PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "home")}
    said = subprocess.run([*command, "--json"], env=about, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    (folder / "stdout").write_text(said.stdout)
    (folder / "stderr").write_text(said.stderr)
    return folder


def test_the_numbers_are_those_of_lm_eval_alone(done: Path) -> None:
    directories = {"dense": done / "dense", "small": done / "out/model/huggingface"}
    tasks = [str(done / "tasks" / name) for name in ("choice.yaml", "rolling.yaml", "going-on.yaml")]
    command = [sys.executable, "-c", ALONE, json.dumps(tasks), *map(str, directories.values())]
    about = os.environ | {"HF_HOME": str(done / "home")}
    subprocess.run(command, cwd=done / "tasks", env=about, check=True, capture_output=True)
    alone = json.loads((done / "tasks/alone.json").read_text())
    models, compared = read_report(done / "out")["models"], 0
    for role, place in directories.items():
        for task, metrics in models[role]["tasks"].items():
            for metric, found in metrics.items():
                said = alone[str(place)][task]
                assert found["value"] == said[f"{metric},none"], (role, task, metric)
                error = said[f"{metric}_stderr,none"]
                assert found["stderr"] == (None if error == "N/A" else error), (role, task, metric)
                assert found["samples"] == 12
                compared += 1
    assert compared == 10
    # and the two columns are two models'
    before, after = (models[role]["tasks"]["rolling"]["bits_per_byte"]["value"] for role in ("dense", "small"))
    assert abs(before - after) > 1e-3


def test_stdout_is_one_document_and_stderr_ours(done: Path) -> None:
    document = json.loads((done / "stdout").read_text())
    validate(document, load_schema("report"))
    assert document == read_report(done / "out")
    lines = (done / "stderr").read_text().splitlines()
    assert all(line.startswith(("[", "note: ", "    ")) or "warning" in line for line in lines), lines
    assert any("evaluate-tasks-dense: request 18/18" in line for line in lines), lines  # windows of longer texts, too


def test_the_artifact_is_lm_evals_own_without_places_of_this_machine(done: Path) -> None:
    text = (artifact(done / "out", "evaluate-tasks") / "results.json").read_text()
    assert str(done) not in text and "/tmp" not in text
    found = json.loads(text)
    assert found["n-samples"]["choice"] == {"original": 12, "effective": 12}
    assert found["configs"]["choice"]["dataset_kwargs"] == {"data_files": {"test": "samples.jsonl"}}
    assert found["lm_eval_version"]


def test_a_report_shows_both_columns(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("run", done / "plan.json", "--out", done / "out", "--quiet") == 0
    said, page = capsys.readouterr().out, (done / "out/report.html").read_text()
    assert all(entry["cached"] for entry in read_report(done / "out")["passes"])
    models = read_report(done / "out")["models"]
    before, after = (models[role]["tasks"]["rolling"]["bits_per_byte"]["value"] for role in ("dense", "small"))
    row = ("rolling", "bits_per_byte", f"{before:.4f}", f"{after:.4f}", f"{after - before:+.4f}")
    assert all(word in line for line in said.splitlines() if "bits_per_byte" in line for word in row)
    cells = [f'<th scope="row" class="w">{row[0]}</th>', f'<td class="w">{row[1]}</td>']
    cells += [f'<td class="n">{word}</td>' for word in row[2:]]
    assert "".join(cells) in page


def test_samples_that_change_are_run_again_and_nothing_else(done: Path) -> None:
    def digests() -> dict[str, str | None]:
        return {node.name: node.digest for node in lower(read_plan(done / "plan.json")).nodes}

    before, samples = digests(), done / "tasks/samples.jsonl"
    text = samples.read_text()
    samples.write_text(text.replace("a loop", "some loop"))
    changed = {name for name, digest in digests().items() if digest != before[name]}
    samples.write_text(text)
    assert changed == {name for name in before if "evaluate-tasks" in name} and len(changed) == 2
    assert digests() == before


@pytest.mark.slow
def test_a_model_that_is_trained_is_emitted_to_be_run(tmp_path: Path) -> None:
    dense(tmp_path)
    write_tasks(tmp_path / "tasks")
    trained = {"pass": "finetune", "steps": 1, "learning_rate": 0.01}
    plan = write_plan(tmp_path, trained, tasks=["tasks/rolling.yaml"], limit=3)
    report = execute(lower(read_plan(plan)), tmp_path / "out").data
    assert [entry["pass"] for entry in report["passes"]][-2:] == ["emit", "evaluate-tasks"]
    assert report["models"]["dense"]["tasks"]["rolling"]["bits_per_byte"]["samples"] == 3
    assert "small" not in report["models"]
    assert not (tmp_path / "out/model").exists()


REACHING = CHOICE.replace("{{question}}", "{{ question.__class__.__mro__[1].__subclasses__() }}")
CALLING = CHOICE.replace('"{{question}}"', "!function words.question")
WORDS = """from pathlib import Path
Path(__file__).with_suffix(".ran").touch()
def question(sample):
    return sample["question"]
"""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (CALLING, "!function words.question runs Python code, which a plan may not"),
        (REACHING, "SecurityError: access to attribute '__class__' of 'str' object is unsafe"),
        (CHOICE.replace("acc_norm", "users/metric"), 'the metric "users/metric" is none of lm-eval\'s own'),
        (CHOICE.replace("{{question}}", "{{nothing}}"), "lm-eval cannot make this task: UndefinedError"),
        (CHOICE + "repeats: [\n", "this is no YAML"),
    ],
)
def test_tasks_that_are_wrong_or_unsafe_stop_a_run_before_it_begins(text: str, told: str, tmp_path: Path) -> None:
    dense(tmp_path)
    write_tasks(tmp_path / "tasks")
    (tmp_path / "tasks/choice.yaml").write_text(text)
    (tmp_path / "tasks/words.py").write_text(WORDS)
    plan = write_plan(tmp_path, CUT, tasks=["tasks/choice.yaml"])
    with pytest.raises(InputError) as caught:
        execute(lower(read_plan(plan)), tmp_path / "out")
    assert told in str(caught.value) and "choice.yaml" in str(caught.value)
    assert not (tmp_path / "out").exists() and not (tmp_path / "tasks/words.ran").exists()


def test_a_trusted_task_runs_its_code(done: Path, tmp_path: Path) -> None:
    dense(tmp_path)
    write_tasks(tmp_path / "tasks")
    (tmp_path / "tasks/choice.yaml").write_text(CALLING)
    (tmp_path / "tasks/words.py").write_text(WORDS)
    with trusted():
        graph = lower(read_plan(write_plan(tmp_path, tasks=["tasks/choice.yaml"])))
        report = execute(graph, tmp_path / "out").data
        assert (tmp_path / "tasks/words.ran").exists()
        (tmp_path / "tasks/words.py").write_text(WORDS + "\n")  # the code is a part of the task
        assert lower(read_plan(tmp_path / "plan.json")).nodes[-1].digest != graph.nodes[-1].digest
    assert (
        report["models"]["dense"]["tasks"]["choice"] == read_report(done / "out")["models"]["dense"]["tasks"]["choice"]
    )


def test_an_unknown_task_is_told_before_a_run_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense(tmp_path)
    assert run("run", write_plan(tmp_path, CUT, tasks=["arc_hard"]), "--out", tmp_path / "out") == 3
    said = capsys.readouterr().err
    assert 'tasks: lm-eval has no task "arc_hard"' in said.replace("error: ", "") and "`lm-eval ls tasks`" in said
    assert FLAG not in said and not (tmp_path / "out").exists()


def test_a_signal_ends_lm_eval_too(done: Path, tmp_path: Path) -> None:
    folder, name = undone(done, tmp_path / "copy", "evaluate-tasks")
    seconds, _ = interrupted(folder, AGAIN, "measuring.evaluate_tasks", signal.SIGINT, name)
    assert seconds < SECONDS
    assert read_report(folder / "out")["status"] == "interrupted"
    left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(folder).encode() in _read(path)]
    assert not left


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
