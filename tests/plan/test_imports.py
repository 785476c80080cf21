"""Checking a plan is quick: nothing heavy is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CHECK = """
import sys
from sprunec.plan.plan import check_plan
plan, found = check_plan("plans/cpm-ant-1b-to-300m.json")
assert plan is not None
print(sorted({"torch", "numpy"} & set(sys.modules)))
"""


def test_checking_a_plan_imports_no_torch() -> None:
    done = subprocess.run([sys.executable, "-c", CHECK], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")
