"""All that plans know of BMCook: what its script took on its command line, and how its files look.

The flags keep their names, so the script's OPTS move over unchanged. What the files say is read in `bmcook/`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

SCRIPT: Mapping[str, Any] = {
    "model_config": "cpm_live_example/config/cpm-ant-1b.json",
    "load": "cpm_live_compress/ckpt/1B/cpm_live_checkpoint_1B_pruned.pt",
    "data_bin_path": "data/pretrain",
    "save_name": "cpm_live_checkpoint",
    "save_iters": 500,
    "batch_size": 32,
    "max_length": 512,
    "train_iters": 200000,
    "start_step": 0,
    "lr": 0.1,
    "lr_decay_style": "noam",
    "warmup_iters": 2000.0,
    "weight_decay": 0.01,
    "clip_grad": 1.0,
    "loss_scale": 1048576.0,
    "seed": 1234,
}
NO_EFFECT = "has no effect: "
SECTIONS = ("distillation", "pruning", "quantization", "MoEfication")
L0_SECTIONS = ("coarse-grained", "fine-grained")


def is_bmcook(value: Mapping[str, Any]) -> bool:
    """Tell whether a file has BMCook's sections and not a plan's."""
    return any(name in value for name in SECTIONS) and "passes" not in value


def kind_of(value: Mapping[str, Any]) -> str:
    """Give the schema of one of BMCook's second files; empty for anything else."""
    if any(name in value for name in L0_SECTIONS):
        return "l0_pruning"
    return "sprune" if isinstance(value.get("main"), dict) else ""


def _flag(*names: str, help: str) -> Any:
    """A flag that may be left out; `names` beside the one that follows from the field."""
    return field(default=None, metadata={"names": names, "help": help})


@dataclass(frozen=True)
class Flags:
    """The flags that were given; None: not given. Paths are relative to the current directory."""

    sprune_config: str | None = _flag(help="l0_pruning.json or sprune.json; default: the one beside bmcook.json.")
    model_config: str | None = _flag(help="The model config.")
    load: str | None = _flag(help="The checkpoint to start from.")
    teacher: str | None = _flag(help="The checkpoint to distil from; default: the one to start from.")
    data_bin_path: str | None = _flag("--data_bin_path", help="CPM-Live's binary data set.")
    save: str | None = _flag(help="As --out.")
    save_name: str | None = _flag(help="The full-shape checkpoint is OUT/<save-name>-<step>.pt.")
    save_iters: int | None = _flag(help="Steps from one save of a training pass to the next.")
    batch_size: int | None = _flag(help="Rows of a global batch.")
    max_length: int | None = _flag(help="Columns of a row, the prompt's among them.")
    train_iters: int | None = _flag(help="Training steps of a stage; 0: prune only.")
    start_step: int | None = _flag(help="Training steps that the checkpoint has had.")
    lr: float | None = _flag(help="The learning rate.")
    lr_decay_style: str | None = _flag(help="noam, cosine, linear or constant.")
    warmup_iters: float | None = _flag(help="Warm-up steps.")
    weight_decay: float | None = _flag(help="Weight decay.")
    clip_grad: float | None = _flag(help="The largest gradient norm.")
    loss_scale: float | None = _flag(help="The first loss scale of fp16 training.")
    seed: int | None = _flag(help="The seed.")
    inspect_iters: int | None = _flag(help=NO_EFFECT + "every step is in events.jsonl.")
    log_dir: str | None = _flag(help=NO_EFFECT + "logs are in OUT.")
    lr_decay_iters: int | None = _flag(help=NO_EFFECT + "schedules end with their pass.")
    local_rank: int | None = _flag("--local_rank", help=NO_EFFECT + "torchrun tells each process its rank.")
    base_path: str | None = _flag(help=NO_EFFECT + "paths are relative to the current directory.")
    dataset_name: str | None = _flag("--dataset_name", help=NO_EFFECT + "--data-bin-path says where data is.")
    epochs: int | None = _flag(help=NO_EFFECT + "--train-iters counts steps.")
    max_encoder_length: int | None = _flag(help=NO_EFFECT + "--max-length is the one that counts.")
    max_decoder_length: int | None = _flag(help=NO_EFFECT + "--max-length is the one that counts.")

    def of(self, name: str) -> Any:
        """The value given, or the script's."""
        given = getattr(self, name)
        return SCRIPT.get(name) if given is None else given

    def given(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self) if getattr(self, each.name) is not None}

    def not_finite(self) -> list[str]:
        """Flags whose number is none that JSON has."""
        given = self.given().items()
        return [option(name) for name, value in given if isinstance(value, float) and not math.isfinite(value)]

    def idle(self) -> list[str]:
        """Flags that were given and do nothing."""
        helps = {each.name: each.metadata["help"] for each in fields(self)}
        return [
            f"{option(name)} {helps[name][0].lower()}{helps[name][1:]}"
            for name in self.given()
            if helps[name].startswith(NO_EFFECT)
        ]


NO_FLAGS = Flags()


def option(name: str) -> str:
    """The flag of a field, as it is typed."""
    return "--" + name.replace("_", "-")


NATIVE = {
    "model_config": "/model/config",
    "load": "/model/checkpoint",
    "start_step": "/model/start_step",
    "data_bin_path": "/data/path",
    "batch_size": "/data/batch_size",
    "max_length": "/data/max_length",
    "lr": "/training/learning_rate",
    "lr_decay_style": "/training/schedule",
    "warmup_iters": "/training/warmup_steps",
    "weight_decay": "/training/weight_decay",
    "clip_grad": "/training/clip_grad",
    "loss_scale": "/training/loss_scale",
    "save_iters": "/training/checkpoint_every",
    "teacher": "/training/distillation/teacher",
    "seed": "/seed",
}
PATHS = ("model_config", "load", "data_bin_path", "teacher")


def native_overrides(flags: Flags) -> dict[str, Any]:
    """What the flags mean to a native plan, by JSON pointer; paths are made absolute."""
    values = {name: value for name, value in flags.given().items() if name in NATIVE}
    values |= {name: os.path.abspath(values[name]) for name in PATHS if name in values}
    return {NATIVE[name]: value for name, value in values.items()}


def foreign_to_native(flags: Flags) -> list[str]:
    """Flags that a native plan has no place for."""
    return [option(name) for name in flags.given() if name not in NATIVE and name != "save"]


def plan_name(save_name: str) -> str:
    """A plan's name from a file's: what a plan's name can't hold becomes a dash."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", save_name)[:100].lstrip(".") or "bmcook"
