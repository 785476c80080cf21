"""The script's flags, by their names: into the plan of BMCook's files, or into a native plan."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sprunec.cli import app
from sprunec.errors import InputError
from sprunec.plan.bmcook_flags import SCRIPT, Flags
from sprunec.plan.open_plan import read_any
from sprunec.plan.plan import check_plan
from tests.helpers.bmcook_files import CONFIG, FINE, bmcook, converted, said, write
from tests.helpers.small_plans import EMIT, TRAIN, plan

OPTS = """
 --model-config cpm_live_example/config/cpm-ant-1b.json --batch-size 32 --train-iters 200000 --save-iters 500
 --save-name cpm_live_checkpoint --max-length 512 --save results/ --lr 0.1 --inspect-iters 100 --warmup-iters 2000
 --lr-decay-style noam --weight-decay 0.01 --clip-grad 1.0 --loss-scale 1048576 --start-step 0
 --log-dir logs/tensorboard/cpm_live_48_4096/ --load cpm_live_compress/ckpt/1B/cpm_live_checkpoint_1B_pruned.pt
"""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_scripts_options_move_over_unchanged_and_are_the_defaults(tmp_path: Path) -> None:
    write(tmp_path, "cpm_live_example/config/cpm-ant-1b.json", CONFIG | {"half": True})
    converted(tmp_path, bmcook("fine-grained"), l0_pruning={"fine-grained": FINE})
    run = CliRunner()
    spelt = run.invoke(app, ["convert", "bmcook.json", *shlex.split(OPTS), "--data_bin_path", "data/pretrain"])
    bare = run.invoke(app, ["convert", "bmcook.json"])
    assert spelt.exit_code == bare.exit_code == 0, spelt.output
    assert json.loads(spelt.stdout) == json.loads(bare.stdout)
    assert "--load is not given" in bare.stderr
    assert "is not given" not in spelt.stderr
    assert "--log-dir has no effect" in spelt.stderr


def test_every_flag_lands_in_the_plan(tmp_path: Path) -> None:
    flags = Flags(
        model_config="m.json",
        load="a.pt",
        teacher="b.pt",
        data_bin_path="d",
        save_name="ant",
        save_iters=7,
        batch_size=3,
        max_length=64,
        train_iters=11,
        start_step=20,
        lr=0.5,
        lr_decay_style="cosine",
        warmup_iters=4.0,
        weight_decay=0.2,
        clip_grad=2.0,
        loss_scale=8.0,
        seed=9,
    )
    content = bmcook("fine-grained") | {"distillation": {"ce_scale": 0.5, "ce_temp": 2}}
    document = converted(tmp_path, content, flags, l0_pruning={"fine-grained": FINE}).value
    assert document["model"] == {"config": "m.json", "checkpoint": "a.pt", "start_step": 20}
    assert document["seed"] == 9
    data = {key: document["data"][key] for key in ("path", "batch_size", "max_length")}
    assert data == {"path": "d", "batch_size": 3, "max_length": 64}
    assert document["training"] == {
        "optimizer": "adamw",
        "learning_rate": 0.5,
        "schedule": "cosine",
        "warmup_steps": 4,
        "weight_decay": 0.2,
        "clip_grad": 2.0,
        "loss_scale": 8.0,
        "checkpoint_every": 7,
        "distillation": {"logits": 0.5, "temperature": 2, "teacher": "b.pt"},
    }
    assert document["outputs"] == {"checkpoint": "ant-31.pt"}


def test_a_wrong_flag_is_told_by_its_name(tmp_path: Path) -> None:
    write(tmp_path, "m.json", CONFIG)
    converted(tmp_path, bmcook("fine-grained"), l0_pruning={"fine-grained": FINE})
    _, found = check_plan("bmcook.json", flags=Flags(model_config="m.json", lr_decay_style="exponential"))
    (wrong,) = [finding for finding in found if finding.severity == "error"]
    assert wrong.file == "--lr-decay-style"
    assert '"exponential"' in wrong.message


def test_noam_that_ends_before_its_warm_up_is_warned_of(tmp_path: Path) -> None:
    """Started where an earlier stage ended, the same few steps are past it."""
    write(tmp_path, "m.json", CONFIG)
    converted(tmp_path, bmcook("fine-grained"), l0_pruning={"fine-grained": FINE})
    flags = {"model_config": "m.json", "train_iters": 50}
    found = check_plan("bmcook.json", flags=Flags(**flags))[1]
    assert [finding.code for finding in found].count("long-warmup") == 1
    later = check_plan("bmcook.json", flags=Flags(**flags, start_step=2000))[1]
    assert "long-warmup" not in [finding.code for finding in later]


def test_flags_change_a_native_plan_too(tmp_path: Path) -> None:
    write(tmp_path, "here/plan.json", plan(TRAIN, EMIT))
    flags = Flags(lr=0.5, batch_size=2, load="w.pt", start_step=3, seed=5)
    source = read_any("here/plan.json", flags)
    assert source.value["training"] == {"learning_rate": 0.5}
    assert source.value["data"]["batch_size"] == 2
    assert source.value["model"]["checkpoint"] == str(tmp_path / "w.pt")
    assert source.value["model"]["start_step"] == 3
    assert source.value["seed"] == 5


def test_a_native_plan_has_no_place_for_train_iters(tmp_path: Path) -> None:
    write(tmp_path, "plan.json", plan(TRAIN, EMIT))
    with pytest.raises(InputError, match="--train-iters goes with BMCook's bmcook.json"):
        read_any("plan.json", Flags(train_iters=3))


@pytest.mark.parametrize("flag", ["lr", "warmup_iters", "loss_scale"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_told_by_its_flag(tmp_path: Path, flag: str, number: float) -> None:
    converted(tmp_path, bmcook("fine-grained"), l0_pruning={"fine-grained": FINE})
    with pytest.raises(InputError, match="this is no finite number"):
        read_any("bmcook.json", Flags(**{flag: number}))


def test_a_name_with_spaces_and_other_scripts_is_a_name(tmp_path: Path) -> None:
    write(tmp_path, "m.json", CONFIG)
    converted(tmp_path, bmcook("fine-grained"), l0_pruning={"fine-grained": FINE})
    good = check_plan("bmcook.json", flags=Flags(model_config="m.json", save_name="模型 1"))[1]
    assert not [finding for finding in good if finding.severity == "error"]
    (wrong,) = [
        finding
        for finding in check_plan("bmcook.json", flags=Flags(model_config="m.json", save_name="../x"))[1]
        if finding.severity == "error"
    ]
    assert wrong.file == "--save-name"


def test_a_teacher_that_nothing_uses_and_one_that_was_trained_are_said(tmp_path: Path) -> None:
    second = {"fine-grained": FINE}
    idle = converted(tmp_path, bmcook("fine-grained"), Flags(teacher="t.pt"), l0_pruning=second)
    assert len(said(idle, "unused-flag")) == 1
    content = bmcook("fine-grained") | {"distillation": {"ce_scale": 1}}
    later = Flags(load="ant-3.pt", start_step=3)
    (told,) = said(converted(tmp_path, content, later, l0_pruning=second), "trained-teacher")
    assert told.message == "the teacher is ant-3.pt, which has had 3 steps of this chain"
    dense = Flags(load="ant-3.pt", start_step=3, teacher="dense.pt")
    assert not said(converted(tmp_path, content, dense, l0_pruning=second), "trained-teacher")


def test_two_folders_for_one_run_are_a_usage_error(tmp_path: Path) -> None:
    write(tmp_path, "plan.json", plan(TRAIN, EMIT))
    result = CliRunner().invoke(app, ["run", "plan.json", "--out", "a", "--save", "b"])
    assert result.exit_code == 2


def test_a_config_beside_bmcook_json_is_found(tmp_path: Path) -> None:
    name = Path(SCRIPT["model_config"]).name
    write(tmp_path, f"config/{name}", CONFIG)
    source = converted(tmp_path / "config", bmcook("fine-grained"), l0_pruning={"fine-grained": FINE})
    assert source.value["model"]["config"].endswith(f"config/{name}")


@pytest.mark.parametrize(("half", "precision"), [(True, "fp16"), (None, "fp16"), (False, "fp32")])
def test_half_is_the_precision(tmp_path: Path, half: bool | None, precision: str) -> None:
    config = {key: value for key, value in CONFIG.items() if key != "half"} | ({} if half is None else {"half": half})
    write(tmp_path, "m.json", config)
    flags = Flags(model_config="m.json")
    source = converted(tmp_path, bmcook("fine-grained"), flags, l0_pruning={"fine-grained": FINE})
    assert source.value["engine"]["precision"] == precision
    assert not said(source, "config-mismatch")
