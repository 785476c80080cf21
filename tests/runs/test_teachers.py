"""Whole runs under teachers that are larger, other, in half precision, in files, or asked once for all students."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sprunec.compiler.lower import lower
from sprunec.errors import InputError
from sprunec.execution.execute import execute
from sprunec.models import held_out
from sprunec.passes import teacher_cache
from sprunec.plan.plan import check_plan, read_plan
from tests.graph.test_needs import PEAKS
from tests.helpers.causal_lms import causal_lm
from tests.helpers.small_plans import artifact, read_report
from tests.runs.test_causal_lms import VOCABULARY, directory
from tests.runs.test_distilled import events

DIMS = {"pass": "score-mask", "criterion": "magnitude", "unit": "dim_ff", "target": {"dim_ff": 40}}
TUNE = {"pass": "finetune", "steps": 3, "learning_rate": 1e-3}


def teacher(folder: Path, name: str = "qwen3", dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """Another model of the same tokens, beside the plan's."""
    model = causal_lm(name, vocab_size=VOCABULARY, **changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    model.to(dtype).save_pretrained(folder / "teacher")
    return folder / "teacher"


def planned(folder: Path, distillation: dict[str, Any] | None, *passes: dict[str, Any], **changes: Any) -> Path:
    content = {
        "name": "taught",
        "model": {"path": "dense"},
        "data": {"source": "python-docs", "max_length": 16, "batch_size": 4},
        "evaluate": {"tokens": 64},
        "passes": [*(passes or (DIMS,)), TUNE | {"distillation": distillation}],
    } | changes
    (folder / "plan.json").write_text(json.dumps(content))
    return folder / "plan.json"


def run(
    folder: Path, distillation: dict[str, Any] | None, *passes: dict[str, Any], out: str = "out", **more: Any
) -> Any:
    return execute(lower(read_plan(planned(folder, distillation, *passes, **more))), folder / out)


def taught(out: Path) -> list[float]:
    return [event["distillation"] for event in events(out, "finetune")]


def weights(out: Path) -> bytes:
    return (artifact(out, "finetune") / "model.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.bfloat16])
def test_a_teacher_in_its_files_says_the_same_as_one_in_memory(dtype: torch.dtype, tmp_path: Path) -> None:
    directory(tmp_path, "qwen3")
    teacher(tmp_path, dtype=dtype)
    pair = "[post]model.layers.1:[pre]model.layers.1"
    asked = {"logits": 0.5, "hidden": 1.0, "pairs": [pair], "teacher": "teacher"}
    for keep in ("memory", "disk", "auto"):
        run(tmp_path, asked, out=keep, engine={"teacher_weights": keep})
    assert taught(tmp_path / "disk") == taught(tmp_path / "memory") == taught(tmp_path / "auto")
    assert weights(tmp_path / "disk") == weights(tmp_path / "memory")


@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_hidden_states_of_gated_and_of_cut_blocks_are_drawn_to_the_dense_ones(name: str, tmp_path: Path) -> None:
    directory(tmp_path, name, **({"n_layer": 3} if name == "gpt2" else {"num_hidden_layers": 3}))
    blocks = "transformer.h" if name == "gpt2" else "model.layers"
    down = "mlp.c_proj" if name == "gpt2" else "mlp.down_proj"
    pairs = [f"[post]{blocks}.{n}:[post]{blocks}.{n}" for n in range(3)]
    pairs += [f"[pre]{blocks}.1:[pre]{blocks}.1", f"[post]{blocks}.0.{down}:[post]{blocks}.0.{down}"]
    asked = {"hidden": 1.0, "pairs": pairs}
    gates = {"pass": "train-mask", "unit": "dim_ff", "target": {"dim_ff": 40}, "steps": 3, "distillation": asked}
    block = {"pass": "score-mask", "criterion": "magnitude", "unit": "block", "target": {"num_layers": 2}}
    run(tmp_path, asked, gates | {"learning_rate": 1e-3}, block)
    told = [event["distillation"] for event in events(tmp_path / "out", "train-mask-dim_ff")]
    assert told[0] > 0  # gates start nearly open, and what they close is another state than the teacher's
    assert all(value > 0 for value in taught(tmp_path / "out"))
    report = read_report(tmp_path / "out")
    notes = next(entry["metrics"]["notes"] for entry in report["passes"] if entry["pass"] == "finetune")
    kept = report["kept"]["attention"]
    gone = next(layer for layer, heads in kept.items() if heads is None)
    assert all(f"{blocks}.{gone}" in note for note in notes if "is not distilled" in note)
    assert any("is not distilled" in note for note in notes)


@pytest.mark.parametrize("name", [pytest.param("qwen3", marks=pytest.mark.slow), "llama"])
def test_a_directory_of_other_width_and_depth_teaches(name: str, tmp_path: Path) -> None:
    directory(tmp_path, "qwen3")
    teacher(tmp_path, name, hidden_size=60, num_hidden_layers=3)
    pair = "[post]model.layers.1:[post]model.layers.2"
    run(tmp_path, {"logits": 0.5, "hidden": 1.0, "pairs": [pair], "project": True, "teacher": "teacher"})
    assert all(value > 0 for value in taught(tmp_path / "out"))
    names = {entry["name"]: entry["digest"] for entry in read_report(tmp_path / "out")["passes"]}
    digest = next(digest for name, digest in names.items() if name.endswith("load-teacher"))
    loaded = json.loads((tmp_path / "out/store" / digest / "config.json").read_text())
    assert loaded["config"]["hidden_size"] == 60
    plan, found = check_plan(planned(tmp_path, {"hidden": 1.0, "pairs": [pair], "teacher": "teacher"}))
    assert plan is None
    assert "the student's state is 48 wide, the teacher's 60" in found[0].message
    plan, found = check_plan(
        planned(tmp_path, {"hidden": 1.0, "pairs": [pair.replace("2", "3")], "teacher": "teacher"})
    )
    assert plan is None
    assert 'the teacher has no module "model.layers.3"' in found[0].message


def test_a_teacher_of_other_tokens_is_refused_with_one_error(tmp_path: Path) -> None:
    directory(tmp_path, "qwen3")
    teacher(tmp_path).joinpath("tokenizer.json").write_bytes((tmp_path / "dense/tokenizer.json").read_bytes())
    asked = {"logits": 0.5, "teacher": "teacher"}
    assert check_plan(planned(tmp_path, asked))[1] == ()
    document = json.loads((tmp_path / "teacher/tokenizer.json").read_text())
    tokens = document["model"]["vocab"]
    one, other = sorted(tokens, key=tokens.get)[100:102]
    tokens[one], tokens[other] = tokens[other], tokens[one]
    (tmp_path / "teacher/tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"has '.*' as token 100, and the model has|as token 100, and") as caught:
        read_plan(planned(tmp_path, asked))
    assert [each.pointer for each in caught.value.diagnostics] == ["/passes/1/distillation/teacher"]


# --- the cache ---


def cached(top_k: int, **more: Any) -> dict[str, Any]:
    return {"logits": 0.5, "teacher_cache": {"top_k": top_k}, **more}


@pytest.mark.slow
def test_all_tokens_in_the_cache_train_as_the_teacher_does(tmp_path: Path) -> None:
    directory(tmp_path, "qwen3")
    run(tmp_path, cached(VOCABULARY), out="cached")
    run(tmp_path, {"logits": 0.5}, out="uncached")
    ours, theirs = taught(tmp_path / "cached"), taught(tmp_path / "uncached")
    assert ours == pytest.approx(theirs, rel=1e-3)
    run(tmp_path, cached(8), out="few")
    assert taught(tmp_path / "few") != pytest.approx(theirs, rel=1e-2)
    (made,) = [entry for entry in read_report(tmp_path / "few")["passes"] if entry["pass"] == "teacher-cache"]
    assert made["metrics"]["sequences"] in (11, 12)  # two windows of three steps may be alike
    assert made["metrics"]["positions"] == made["metrics"]["sequences"] * 16
    assert 8 / VOCABULARY < made["metrics"]["kept"] < 1


def test_a_second_student_uses_what_the_first_one_s_teacher_said(tmp_path: Path) -> None:
    directory(tmp_path, "qwen3")
    run(tmp_path, cached(8))
    heads = {"pass": "score-mask", "criterion": "magnitude", "unit": "head", "target": {"num_heads": 4}}
    report = run(tmp_path, cached(8, logits=2.0, divergence="reverse"), heads, name="another")
    (again,) = [entry for entry in report.data["passes"] if entry["pass"] == "teacher-cache"]
    assert again["cached"]
    hotter = lower(read_plan(planned(tmp_path, cached(8, temperature=2.0))))
    first = lower(read_plan(planned(tmp_path, cached(8))))
    digests = [next(node.digest for node in graph.nodes if node.pass_ == "teacher-cache") for graph in (first, hotter)]
    assert digests[0] != digests[1]


@pytest.mark.slow
def test_a_sequence_that_comes_again_is_asked_about_once(tmp_path: Path) -> None:
    directory(tmp_path, "qwen3")
    lines = [json.dumps({"input": f"a{n}", "target": f"b{n} c"}) for n in range(8)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    data = {"source": "pairs", "path": "pairs.jsonl", "held_out": 0.25, "max_length": 16, "batch_size": 4}
    report = run(tmp_path, cached(8, on="all"), data=data)
    (made,) = [entry for entry in report.data["passes"] if entry["pass"] == "teacher-cache"]
    assert made["metrics"]["sequences"] == 6  # of 12 in three steps
    asked = run(tmp_path, cached(8), data=data)
    (fewer,) = [entry for entry in asked.data["passes"] if entry["pass"] == "teacher-cache"]
    assert fewer["metrics"]["positions"] < made["metrics"]["positions"]


@pytest.mark.slow
def test_a_cache_that_was_stopped_goes_on_and_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts of one batch; stopped behind the first block of the second."""
    monkeypatch.setattr(teacher_cache, "TOGETHER", 4 * 16 * 48)
    monkeypatch.setattr(held_out, "LOGITS", 2000)
    directory(tmp_path, "qwen3")
    run(tmp_path, cached(8), out="whole")
    graph, ran = lower(read_plan(planned(tmp_path, cached(8)))), list[Any]()
    advance = teacher_cache_advance(monkeypatch, ran)
    store = tmp_path / "out/store"

    def asked() -> bool:
        return len(list(store.glob("partial-*/00000-ids.npy"))) == 1 and len(ran) >= advance

    with pytest.raises(KeyboardInterrupt):
        execute(graph, tmp_path / "out", None, asked)
    before = len(ran)
    execute(graph, tmp_path / "out")
    ours, theirs = (artifact(tmp_path / out, "teacher-cache") for out in ("out", "whole"))
    names = sorted(path.name for path in theirs.glob("*.npy"))
    assert len(names) == 3 * 3 + 3
    assert all((ours / name).read_bytes() == (theirs / name).read_bytes() for name in names)
    assert 0 < before < len(ran)
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


def teacher_cache_advance(monkeypatch: pytest.MonkeyPatch, ran: list[Any]) -> int:
    """Note each block that is gone through; say how many make one part and a block."""
    from sprunec.models.block_by_block import BlockByBlock

    whole = BlockByBlock.advance

    def noted(self: BlockByBlock, path: str) -> None:
        ran.append(path)
        whole(self, path)

    monkeypatch.setattr(BlockByBlock, "advance", noted)
    return 3


def test_what_a_dry_run_says_of_the_disk_is_what_is_written(tmp_path: Path) -> None:
    directory(tmp_path, "qwen3")
    graph = lower(read_plan(planned(tmp_path, cached(8))))
    (node,) = [node for node in graph.nodes if node.pass_ == "teacher-cache"]
    execute(graph, tmp_path / "out")
    files = list(artifact(tmp_path / "out", "teacher-cache").glob("*.npy"))
    size = sum(np.load(path).nbytes for path in files)
    assert size <= node.needs.disk + 100  # the last entries of the index
    assert node.needs.disk == 12 * (16 * (8 * 6 + 4) + 24)
    assert size > 0.9 * node.needs.disk


# --- against what is taken


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux forgets a peak")
def test_a_teacher_in_its_files_takes_the_memory_of_two_blocks(tmp_path: Path) -> None:
    """Of 390 MB in float32, eight blocks; what it takes is about what is said, and so little for the cache, too."""
    directory(tmp_path, "qwen3")
    sizes = {"hidden_size": 1024, "intermediate_size": 3584, "num_hidden_layers": 8, "head_dim": 64}
    size = sum(path.stat().st_size for path in teacher(tmp_path, **sizes).glob("*.safetensors"))
    taken, said = {}, {}
    cases: dict[str, dict[str, Any]] = {"memory": {}, "disk": {}, "cached": {"teacher_cache": {"top_k": 8}}}
    for keep, more in cases.items():
        engine = {"teacher_weights": "memory" if keep == "memory" else "disk"}
        plan = planned(tmp_path, {"logits": 0.5, "teacher": "teacher"} | more, engine=engine)
        command = [sys.executable, "-c", PEAKS, str(plan), str(tmp_path / keep)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
        found = json.loads(done.stdout.splitlines()[-1])
        name = next(name for name in found if name.endswith("teacher-cache" if more else "finetune"))
        taken[keep], said[keep] = found[name]
        assert taken[keep] < 1.25 * said[keep]  # libraries take what they are said to and a little more, by chance
    print({keep: f"{value / 1e6:.0f} of {said[keep] / 1e6:.0f} MB" for keep, value in taken.items()})
    assert size > 3.8e8
    assert max(taken["disk"], taken["cached"]) < taken["memory"] - 0.6 * size


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the limit is another")
def test_a_teacher_larger_than_memory_teaches(tmp_path: Path) -> None:
    """Its 24 blocks have 1.2 GB, and a process may have 0.6 of that; what it has freed does not count."""
    directory(tmp_path, "qwen3")
    sizes = {"hidden_size": 1024, "intermediate_size": 3584, "num_hidden_layers": 24, "head_dim": 64}
    size = sum(path.stat().st_size for path in teacher(tmp_path, **sizes).glob("*.safetensors"))
    limit = f"import ctypes, resource; resource.setrlimit(resource.RLIMIT_DATA, 2 * ({int(0.6 * size)},))"
    limit += "; ctypes.CDLL(None).mallopt(-3, 2**20)"  # M_MMAP_THRESHOLD: else glibc keeps much of it
    cases: dict[str, dict[str, Any]] = {"memory": {}, "disk": {}, "cached": {"teacher_cache": {"top_k": 8}}}
    codes, said = {}, {}
    for keep, more in cases.items():
        engine = {"teacher_weights": "memory" if keep == "memory" else "disk"}
        plan = planned(tmp_path, {"logits": 0.5, "teacher": "teacher"} | more, engine=engine)
        command = [sys.executable, "-c", f"{limit}\n{PEAKS}", str(plan), str(tmp_path / keep)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        codes[keep], said[keep] = done.returncode, done.stderr[-1000:]
    assert size > 1.1e9
    assert codes == {"memory": 1, "disk": 0, "cached": 0}, said
    assert "memory" in said["memory"]
