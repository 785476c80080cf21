"""What a BMCook user's run must not lose, write over or keep silent about."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import sprunec
from sprunec.execution.progress import Watcher
from sprunec.plan.bmcook_flags import Flags
from tests.helpers.bmcook_files import FINE, bmcook
from tests.helpers.guide import STEPS, command, digests, emitted, fine, prepare, report, run


@pytest.fixture(autouse=True)
def _in_a_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)


def test_a_stage_that_fails_leaves_the_old_mask() -> None:
    """Written only when its pass has ended."""
    fine(FINE, command(out="one"))
    before = Path(FINE["heads_mask"]).read_bytes()
    broken = torch.load("dense.pt", weights_only=True)
    broken["encoder.output_layernorm.weight"] *= 1e38
    torch.save(broken, "broken.pt")
    stopped = fine(FINE, command(load="broken.pt", out="two"), code=1)
    assert re.search("the (loss|gradient norm) became (nan|inf)", str(stopped.exception))
    assert Path(FINE["heads_mask"]).read_bytes() == before


def test_a_mask_that_has_not_settled_is_said() -> None:
    """The original saved exactly the target's number of heads even before the first step, and said nothing."""
    told = fine(FINE, command(), code=4)
    assert "not settled" in told.stderr
    assert report("out")["status"] == "target-missed"


def test_files_of_another_stage_in_the_folder_change_nothing() -> None:
    """An optimizer's state beside the checkpoints was loaded whatever model it was of; and training never stopped."""
    fine(FINE, command(out="one"))
    Path("two").mkdir()
    for name in ("ant.rank-0.opt", f"ant-{STEPS}.pt"):
        Path("two", name).write_bytes(b"left over")
    fine(FINE, command(out="two"))
    assert report("two")["kept"] == report("one")["kept"]
    first, second = emitted("one"), emitted("two")
    assert all(torch.equal(first[name], second[name]) for name in first)
    steps = [json.loads(line)["model_steps"] for line in Path("two/events.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]


def test_stopped_gates_go_on_where_they_were() -> None:
    """Started again, the original drew new gates, and soon saved them over the old mask."""
    fine(FINE, command(out="whole"))
    wanted = Path(FINE["heads_mask"]).read_bytes()
    Path(FINE["heads_mask"]).unlink()
    flags = Flags(
        model_config="model.json",
        load="dense.pt",
        data_bin_path="data",
        train_iters=STEPS,
        batch_size=4,
        max_length=40,
        lr=0.1,
        warmup_iters=2.0,
        save_name="ant",
    )
    graph = sprunec.lower(sprunec.read_plan("bmcook.json", flags=flags))
    training = Counts()
    with pytest.raises(KeyboardInterrupt):
        sprunec.execute(graph, "stopped", training, lambda: training.made == 2)
    assert not Path(FINE["heads_mask"]).exists()
    fine(FINE, command(out="stopped"))
    assert Path(FINE["heads_mask"]).read_bytes() == wanted
    assert digests("stopped") == digests("whole")
    weights = [emitted(out) for out in ("whole", "stopped")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert [json.loads(line)["step"] for line in Path("stopped/events.jsonl").read_text().splitlines()] == [1, 2, 3]


@pytest.mark.parametrize("part", ["model/sprunec/model.safetensors", "masks/head_mask.pt"])
def test_a_run_does_not_take_away_what_it_starts_from(part: str) -> None:
    """In one folder a run replaces what an earlier one has published there."""
    fine(FINE, command())
    before = Path("out", part).read_bytes()
    if part.startswith("masks"):
        told = fine(FINE | {"train_mask": False, "heads_mask": f"out/{part}"}, command(load="out/ant-3.pt"), code=1)
    else:
        config = ["--model-config", "out/model/sprunec/config.json"]
        told = run(bmcook("fine-grained", is_pruning=False), [*command(load=f"out/{part}"), *config], code=1)
    assert "is what this run would replace" in str(told.exception)
    assert Path("out", part).read_bytes() == before


def test_a_stage_does_not_write_over_the_checkpoint_that_it_starts_from() -> None:
    """--start-step forgotten: both would be called ant-3.pt."""
    fine(FINE, command())
    before = Path("out/ant-3.pt").read_bytes()
    told = fine(FINE | {"train_mask": False}, command(load="out/ant-3.pt"), code=1)
    assert "give --start-step where the last stage ended" in str(told.exception)
    assert Path("out/ant-3.pt").read_bytes() == before


def test_a_stage_that_counts_from_too_early_is_warned_of() -> None:
    fine(FINE, command(out="one"))
    told = fine(FINE | {"train_mask": False}, command(load="one/ant-3.pt", out="two"))
    assert "was made at training step 3, and this run counts from 0" in told.stderr.replace("\n", " ")


def test_two_of_four_goes_on_with_the_mask_that_it_has_written() -> None:
    """The file is the run's own: the same command is the same plan, and nothing is trained again."""
    content = bmcook("m4n2_1d")
    content["pruning"] |= {"pruned_module": ["w_out"], "pruning_mask_path": "mask.bin"}
    run(content, command())
    assert Path("mask.bin").exists()
    run(content, command())
    assert all(entry["cached"] for entry in report("out")["passes"])


def test_tensors_that_the_config_has_no_name_for_are_refused() -> None:
    state = torch.load("dense.pt", weights_only=True)
    torch.save(state | {"extra.weight": torch.ones(2)}, "extra.pt")
    refused = fine(FINE, command(load="extra.pt"), code=1)
    assert "no place for and that may change what it computes: extra.weight" in str(refused.exception)
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, "wrapped.pt")
    stopped = fine(FINE, command(load="wrapped.pt", out="other"), code=1)
    assert 'every name begins with "module.": save it without that word' in str(stopped.exception)


def test_a_small_set_holds_out_one_record() -> None:
    prepare(Path("small"), count=12)
    fine(FINE, [*command(), "--data-bin-path", "small/data"])
    (data,) = [entry["metrics"] for entry in report("out")["passes"] if entry["pass"] == "data"]
    assert data["records"] == 12
    assert report("out")["models"]["dense"]["loss"] > 0


class Counts(Watcher):
    """The training steps that were made."""

    made = 0

    def step(self, event: Mapping[str, Any]) -> None:
        self.made += 1
