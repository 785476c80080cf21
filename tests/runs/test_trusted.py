"""A run of several processes on a directory that brings its own classes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sprunec.families.own_code import FLAG
from tests.helpers.own_models import CLASSES, give_own_code
from tests.helpers.small_plans import read_report
from tests.runs.test_causal_lms import directory

MASK = {"pass": "train-mask", "unit": "dim_ff", "target": {"dim_ff": 40}, "budget": "per-layer", "steps": 2}


@pytest.mark.slow
def test_every_process_has_the_classes_and_they_go_along(tmp_path: Path) -> None:
    own = give_own_code(directory(tmp_path, "llama", attention_bias=False), model_type="llama")
    (own / "configuration_own.py").write_text("from transformers import LlamaConfig as OwnConfig")
    content = {
        "name": "small",
        "model": {"path": "dense"},
        "data": {"source": "python-docs", "max_length": 32, "batch_size": 4},
        "passes": [MASK, {"pass": "emit", "formats": ["huggingface"]}],
    }
    (tmp_path / "plan.json").write_text(json.dumps(content))
    about = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "HF_HOME": str(tmp_path / "cached")}
    command = [sys.executable, "-m", "sprunec", "run", str(tmp_path / "plan.json"), FLAG, "--devices", "2"]
    command += ["--out", str(tmp_path / "out"), "--quiet"]
    done = subprocess.run(command, env=about, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 4), done.stderr  # no gate settles in two steps
    form = read_report(tmp_path / "out")["formats"]["huggingface"]
    assert form["max_abs_difference"] <= form["tolerance"]
    out = tmp_path / "out/model/huggingface"
    assert json.loads((out / "config.json").read_text())["auto_map"] == CLASSES
    assert (out / "modeling_own.py").read_text() == (own / "modeling_own.py").read_text()
    assert not list(tmp_path.rglob("transformers_modules"))
