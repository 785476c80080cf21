"""Find out, before anything is planned, whether a model's head is a tensor of its own: its checkpoint says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sprunec.errors import Diagnostic, InputError
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.families.cpm_ant.head import has_own_head
from sprunec.plan.export_formats import FORMATS
from sprunec.plan.plan import Plan


def with_own_head(plan: Plan) -> Plan:
    """Set the model's head apart from the embedding where the config or the checkpoint has it so.

    Raises:
        InputError: the plan ends in a form that cannot hold such a head.
    """
    model = plan.model
    if model.config.tie_word_embeddings and model.checkpoint and has_own_head(model.config, model.checkpoint):
        plan = replace(plan, model=replace(model, config=replace(model.config, tie_word_embeddings=False)))
        for spec in (spec for spec in plan.passes if spec.name == "emit"):
            for form in (FORMATS[name] for name in spec.options["formats"]):
                for code, why, hint in form.obstacles(plan.model.config):
                    message = f"the form {form.name} can't hold {model.checkpoint}: {why}"
                    file, pointer = str(plan.file or plan.name), f"{spec.pointer}/formats"
                    raise InputError(Diagnostic(code, message, hint, file=file, pointer=pointer))
    return plan


def teacher_config(config: ModelConfig, checkpoint: Path) -> ModelConfig:
    """Make the config of a teacher in the plan's shape; its head is tied or not by its own file."""
    own = has_own_head(config, checkpoint)
    return config if own is None else replace(config, tie_word_embeddings=not own)
