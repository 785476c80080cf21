"""docs/scale.md has the tables that the code makes, and its script is one."""

from __future__ import annotations

import runpy
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_tables_are_what_the_code_makes() -> None:
    made = runpy.run_path(str(ROOT / "docs/make_scale.py"))["page"]()
    assert (ROOT / "docs/scale.md").read_text(encoding="utf-8") == made, "run python docs/make_scale.py"


def test_the_script_starts_as_many_processes_as_it_says(tmp_path: Path) -> None:
    (tmp_path / "torchrun").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "torchrun").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "NODES": "2", "HEAD": "first"}
    command = ["bash", str(ROOT / "plans/prune_cpm_ant.sh")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "--nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint first:29500" in done.stdout
    assert "-m sprunec run config/bmcook.json" in done.stdout and "--batch-size 256" in done.stdout
