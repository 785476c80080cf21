"""What is BMCook's or CPM-Live's is imported only when a file of theirs is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.helpers.small_plans import TRAIN, mask_pass, plan, write

ROOT = Path(__file__).parents[2]
CHECK = """
import sys
from sprunec.plan.plan import check_plan
plan, found = check_plan(sys.argv[1])
"""
RUN = """
import sys
from sprunec.execution.execute import execute
from sprunec.compiler.lower import lower
from sprunec.plan.plan import read_plan
report = execute(lower(read_plan(sys.argv[1])), sys.argv[2])
"""
TOLD = "print(sorted(name for name in sys.modules if name.startswith('sprunec.bmcook')))"


def imported(code: str, *arguments: Path) -> str:
    command = [sys.executable, "-c", code + TOLD, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_checking_a_native_plan_imports_nothing_of_bmcook() -> None:
    assert imported(CHECK, ROOT / "plans/quickstart.json") == "[]"


def test_running_a_native_plan_imports_nothing_of_bmcook(tmp_path: Path) -> None:
    emit = {"pass": "emit", "formats": ["sprunec"]}
    path = write(tmp_path, plan(TRAIN, mask_pass("head", {"num_heads": 4}), emit))
    assert imported(RUN, path, tmp_path / "out") == "[]"
    assert (tmp_path / "out" / "masks" / "head_mask.pt").exists()


def test_a_file_of_theirs_brings_it_in() -> None:
    assert "sprunec.bmcook.data.sets" in imported(CHECK, ROOT / "tests/plans/good/data-set.json")
