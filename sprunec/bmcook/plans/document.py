"""The parts of the plan around its passes, from the script's flags."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sprunec.bmcook.plans.cm_loss import distillation
from sprunec.bmcook.plans.plan_builder import PlanBuilder
from sprunec.checkpoint.layouts import CONFIG, has_weights
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.plan.bmcook_flags import NATIVE, Flags, plan_name
from sprunec.plan.model_config import read_config
from sprunec.plan.source import Source, read_source

HELD_OUT = 0.02
EVALUATED = 200_000
TRAINING = ("lr", "lr_decay_style", "warmup_iters", "weight_decay", "clip_grad", "save_iters")
PATHS = ("config", "checkpoint", "path", "save_mask", "teacher")


def plan_document(plan: PlanBuilder, bmcook: Source, config: str, half: bool, *, prunes: bool) -> dict[str, Any]:
    """Make the plan of `plan`'s passes and the flags.

    Args:
        config: the model config's path.
        half: trained in half precision.
        prunes: a plan that doesn't may start without a checkpoint.
    """
    flags = plan.flags
    model: dict[str, Any] = {"config": config}
    brings_weights = os.path.isdir(config) and has_weights(Path(config))
    if flags.load is not None or (prunes and not brings_weights):
        model["checkpoint"] = flags.of("load")
    if flags.start_step:
        model["start_step"] = flags.start_step
    document: dict[str, Any] = {"name": plan_name(flags.of("save_name")), "seed": flags.of("seed"), "model": model}
    if plan.trained:
        document["data"] = {
            "source": "cpm-live",
            "path": flags.of("data_bin_path"),
            "max_length": flags.of("max_length"),
            "batch_size": flags.of("batch_size"),
            "held_out": HELD_OUT,
        }
        document["training"] = _training(plan, bmcook, half, prunes)
        document["evaluate"] = {"tokens": EVALUATED}
        document["outputs"] = {"checkpoint": f"{flags.of('save_name')}-{flags.of('start_step') + plan.trained}.pt"}
    document["engine"] = {"name": "torch", "device": "auto", "precision": "fp16" if half else "fp32"}
    return document | {"passes": plan.passes}


def _training(plan: PlanBuilder, bmcook: Source, half: bool, prunes: bool) -> dict[str, Any]:
    flags = plan.flags
    options = {"optimizer": "adamw"} | {NATIVE[name].rpartition("/")[2]: flags.of(name) for name in TRAINING}
    options["warmup_steps"] = round(options["warmup_steps"])
    if half or flags.loss_scale is not None:
        options["loss_scale"] = flags.of("loss_scale")
    if distilled := distillation(plan, bmcook, prunes=prunes):
        options["distillation"] = distilled
        plan.origins["/training/distillation"] = (bmcook, "/distillation")
        plan.origins["/training/distillation/pairs"] = (bmcook, "/distillation/mse_hidn_module")
    return options


def config_path(bmcook: Source, flags: Flags) -> str:
    """Give the model config's path: the one given, the script's, or one of the same name beside bmcook.json."""
    path: str = flags.of("model_config")
    beside = Path(bmcook.file).parent / Path(path).name
    missing = flags.model_config is None and not os.path.exists(path)
    return str(beside) if missing and beside.exists() else path


def read_if_there(path: str) -> tuple[ModelConfig | None, bool]:
    """Read a config, and whether the model is trained in half precision; what is wrong with it is told later."""
    if os.path.isdir(path):
        path = os.path.join(path, CONFIG)
    if not os.path.isfile(path):
        return None, True
    config = read_config(path)[0]
    assert config is None or isinstance(config, ModelConfig)
    return config, config is None or read_source(path).value.get("half", True) is not False


def rebase(document: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Give the plan for a file in `folder`: its relative paths name the same files from there."""

    def moved(path: Any) -> Any:
        if isinstance(path, list):
            return [moved(each) for each in path]
        return path if os.path.isabs(path) else os.path.relpath(os.path.realpath(path), os.path.realpath(folder))

    def inside(node: Any) -> Any:
        if isinstance(node, list):
            return [inside(each) for each in node]
        if not isinstance(node, dict):
            return node
        return {key: moved(value) if key in PATHS else inside(value) for key, value in node.items()}

    # the names under outputs are those of files in OUT
    return {key: value if key == "outputs" else inside(value) for key, value in document.items()}
