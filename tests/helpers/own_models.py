"""A directory whose model has classes of its own, in Python files beside its config."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

CONFIGURATION = """
from transformers import LlamaConfig

class OwnConfig(LlamaConfig):
    model_type = "own-llama"
"""
MODELING = """
from transformers import LlamaForCausalLM
from .configuration_own import OwnConfig

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
    factor = 2.0
"""
CLASSES = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}


def give_own_code(directory: Path, **changes: Any) -> Path:
    """Make the config.json of a model one that brings code, with it."""
    document = json.loads((directory / "config.json").read_text())
    document |= {"model_type": "own-llama", "architectures": ["OwnForCausalLM"], "auto_map": CLASSES}
    (directory / "config.json").write_text(json.dumps(document | changes))
    (directory / "configuration_own.py").write_text(CONFIGURATION)
    (directory / "modeling_own.py").write_text(MODELING)
    return directory


def copied(directory: Path, to: Path) -> Path:
    return Path(shutil.copytree(directory, to))
