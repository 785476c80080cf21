"""The parts of the plan around its passes, from the script's flags."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sprunec.bmcook.plans.cm_loss import distillation
from sprunec.bmcook.plans.plan_builder import Growing
from sprunec.checkpoint.layouts import CONFIG, has_weights
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.plan.bmcook_flags import Flags, plan_name
from sprunec.plan.model_config import read_config
from sprunec.plan.source import Source, read_source

HELD_OUT = 0.02
EVALUATED = 200_000


def plan_document(plan: Growing, bmcook: Source, config: str, half: bool, *, prunes: bool) -> dict[str, Any]:
    """The plan that `plan`'s passes make with the flags.

    Args:
        config: the model config's path.
        half: trained in half precision.
        prunes: a plan that doesn't may start without a checkpoint.
    """
    flags = plan.flags
    steps = plan.trained
    model: dict[str, Any] = {"config": config}
    if flags.load is not None or (prunes and not _brings_weights(config)):
        model["checkpoint"] = flags.of("load")
    if flags.start_step:
        model["start_step"] = flags.start_step
    document: dict[str, Any] = {"name": plan_name(flags.of("save_name")), "seed": flags.of("seed"), "model": model}
    if steps:
        document["data"] = {
            "source": "cpm-live",
            "path": flags.of("data_bin_path"),
            "max_length": flags.of("max_length"),
            "batch_size": flags.of("batch_size"),
            "held_out": HELD_OUT,
        }
        document["training"] = _training(plan, bmcook, half, prunes)
        document["evaluate"] = {"tokens": EVALUATED}
        document["outputs"] = {"checkpoint": f"{flags.of('save_name')}-{flags.of('start_step') + steps}.pt"}
    document["engine"] = {"name": "torch", "device": "auto", "precision": "fp16" if half else "fp32"}
    return document | {"passes": plan.passes}


def _training(plan: Growing, bmcook: Source, half: bool, prunes: bool) -> dict[str, Any]:
    flags = plan.flags
    options = {
        "optimizer": "adamw",
        "learning_rate": flags.of("lr"),
        "schedule": flags.of("lr_decay_style"),
        "warmup_steps": round(flags.of("warmup_iters")),
        "weight_decay": flags.of("weight_decay"),
        "clip_grad": flags.of("clip_grad"),
        "checkpoint_every": flags.of("save_iters"),
    }
    if half or flags.loss_scale is not None:
        options["loss_scale"] = flags.of("loss_scale")
    toward = distillation(plan, bmcook, prunes=prunes)
    if toward is not None:
        options["distillation"] = toward
        plan.origins["/training/distillation"] = (bmcook, "/distillation")
        plan.origins["/training/distillation/pairs"] = (bmcook, "/distillation/mse_hidn_module")
    return options


def config_path(bmcook: Source, flags: Flags) -> str:
    """The one given, the script's, or one of the same name beside bmcook.json."""
    path: str = flags.of("model_config")
    beside = Path(bmcook.file).parent / Path(path).name
    missing = flags.model_config is None and not os.path.exists(path)
    return str(beside) if missing and beside.exists() else path


def _brings_weights(config: str) -> bool:
    """A directory given as the model config may have the checkpoint in it."""
    return os.path.isdir(config) and has_weights(Path(config))


def look_at(path: str) -> tuple[ModelConfig | None, bool]:
    """The config if it can be read, and whether the model is trained in half precision; what is wrong is told later."""
    if os.path.isdir(path):
        path = os.path.join(path, CONFIG)
    if not os.path.isfile(path):
        return None, True
    config = read_config(path)[0]
    return config, config is None or read_source(path).value.get("half", True) is not False


def rebase(document: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The plan for a file in `folder`: its relative paths name the same files from there."""

    def move(path: str) -> str:
        return path if os.path.isabs(path) else os.path.relpath(os.path.realpath(path), os.path.realpath(folder))

    def inside(node: dict[str, Any]) -> dict[str, Any]:
        paths = {key: node[key] for key in ("config", "checkpoint", "path", "save_mask", "teacher") if key in node}
        moved = {
            key: [move(p) for p in value] if isinstance(value, list) else move(value) for key, value in paths.items()
        }
        return node | moved

    found = dict(document) | {
        "model": inside(document["model"]),
        "passes": [inside(entry) for entry in document["passes"]],
    }
    if "data" in document:
        found["data"] = inside(document["data"])
    if "distillation" in document.get("training", {}):
        training = document["training"]
        found["training"] = training | {"distillation": inside(training["distillation"])}
    return found
