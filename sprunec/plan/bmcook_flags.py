"""All that plans know of BMCook: what its script took on its command line, and how its files look.

The flags keep their names, so the script's OPTS move over unchanged. What the files say is read in `bmcook/`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from sprunec.plan.source import Source

NO_EFFECT = "has no effect: "
SECTIONS = ("distillation", "pruning", "quantization", "MoEfication")
L0_SECTIONS = ("coarse-grained", "fine-grained")


def kind_of(value: Mapping[str, Any]) -> str:
    """Give the schema of one of BMCook's second files; empty for anything else."""
    if any(name in value for name in L0_SECTIONS):
        return "l0_pruning"
    return "sprune" if isinstance(value.get("main"), dict) else ""


def _flag(help: str, pointer: str = "", script: Any = None, names: Sequence[str] = ()) -> Any:
    """Declare a flag that may be left out.

    Args:
        pointer: of what it says in a native plan.
        script: what the script took where it was not given.
        names: beside the one that follows from the field.
    """
    return field(default=None, metadata={"help": help, "pointer": pointer, "script": script, "names": names})


@dataclass(frozen=True)
class Flags:
    """The flags that were given; None: not given. Paths are relative to the current directory."""

    sprune_config: str | None = _flag("l0_pruning.json or sprune.json; default: the one beside bmcook.json.")
    model_config: str | None = _flag("The model config.", "/model/config", "cpm_live_example/config/cpm-ant-1b.json")
    load: str | None = _flag(
        "The checkpoint to start from.",
        "/model/checkpoint",
        "cpm_live_compress/ckpt/1B/cpm_live_checkpoint_1B_pruned.pt",
    )
    teacher: str | None = _flag(
        "The checkpoint to distil from; default: the one to start from.", "/training/distillation/teacher"
    )
    data_bin_path: str | None = _flag(
        "CPM-Live's binary data set.", "/data/path", "data/pretrain", names=("--data_bin_path",)
    )
    save: str | None = _flag("As --out.")
    save_name: str | None = _flag(
        "The full-shape checkpoint is OUT/<save-name>-<step>.pt.", script="cpm_live_checkpoint"
    )
    save_iters: int | None = _flag(
        "Steps from one save of a training pass to the next.", "/training/checkpoint_every", 500
    )
    batch_size: int | None = _flag("Sequences of a global batch.", "/data/batch_size", 32)
    max_length: int | None = _flag("Positions of a sequence, the model's own among them.", "/data/max_length", 512)
    train_iters: int | None = _flag("Training steps of a stage; 0: prune only.", script=200000)
    start_step: int | None = _flag("Training steps that the checkpoint has had.", "/model/start_step", 0)
    lr: float | None = _flag("The learning rate.", "/training/learning_rate", 0.1)
    lr_decay_style: str | None = _flag("noam, cosine, linear or constant.", "/training/schedule", "noam")
    warmup_iters: float | None = _flag("Warm-up steps.", "/training/warmup_steps", 2000.0)
    weight_decay: float | None = _flag("Weight decay.", "/training/weight_decay", 0.01)
    clip_grad: float | None = _flag("The largest gradient norm.", "/training/clip_grad", 1.0)
    loss_scale: float | None = _flag("The first loss scale of fp16 training.", "/training/loss_scale", 1048576.0)
    seed: int | None = _flag("The seed.", "/seed", 1234)
    inspect_iters: int | None = _flag(NO_EFFECT + "every step is in events.jsonl.")
    log_dir: str | None = _flag(NO_EFFECT + "logs are in OUT.")
    lr_decay_iters: int | None = _flag(NO_EFFECT + "schedules end with their pass.")
    local_rank: int | None = _flag(NO_EFFECT + "torchrun tells each process its rank.", names=("--local_rank",))
    base_path: str | None = _flag(NO_EFFECT + "paths are relative to the current directory.")
    dataset_name: str | None = _flag(NO_EFFECT + "--data-bin-path says where data is.", names=("--dataset_name",))
    epochs: int | None = _flag(NO_EFFECT + "--train-iters counts steps.")
    max_encoder_length: int | None = _flag(NO_EFFECT + "--max-length is the one that counts.")
    max_decoder_length: int | None = _flag(NO_EFFECT + "--max-length is the one that counts.")

    def of(self, name: str) -> Any:
        """Give the value given, or the script's."""
        return self.given().get(name, SCRIPT.get(name))

    def given(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self) if getattr(self, each.name) is not None}

    def idle(self) -> list[str]:
        """Tell of the flags that were given and do nothing."""
        helps = {each.name: each.metadata["help"] for each in fields(self)}
        return [f"{option(name)} {helps[name]}" for name in self.given() if helps[name].startswith(NO_EFFECT)]

    def native_overrides(self) -> dict[str, Any]:
        """Give what the flags mean to a native plan, by JSON pointer; paths are made absolute."""
        values = {name: value for name, value in self.given().items() if name in NATIVE}
        return {NATIVE[name]: os.path.abspath(value) if name in PATHS else value for name, value in values.items()}

    def origins(self) -> dict[str, tuple[Source, str]]:
        """Say of what the flags mean to a native plan, by JSON pointer, that it stands on the command line."""
        return {NATIVE[name]: (Source(option(name), None), "") for name in self.given() if name in NATIVE}


NO_FLAGS = Flags()


def option(name: str) -> str:
    """Write the flag of a field as it is typed."""
    return "--" + name.replace("_", "-")


SCRIPT = {each.name: each.metadata["script"] for each in fields(Flags) if each.metadata["script"] is not None}
NATIVE = {each.name: each.metadata["pointer"] for each in fields(Flags) if each.metadata["pointer"]}
PATHS = ("model_config", "load", "data_bin_path", "teacher")
