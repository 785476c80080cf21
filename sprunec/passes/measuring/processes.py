"""Run a script of ours in a process of its own, and listen to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sprunec.errors import PassError
from sprunec.families.own_code import MODULES

# What tells a process that it is one of several.
RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def run_script(
    script: str,
    settings: Mapping[str, Any],
    tell: Callable[[int, int], None],
    name: str,
    environment: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Start the process, and return what it has found: the last line of its stdout, an object in JSON.

    Args:
        tell: takes lists among the lines before: how much is done, and how much there is.
        name: how messages call it.

    Raises:
        PassError: it has ended without; says how.
    """
    with tempfile.TemporaryDirectory(prefix="sprunec-apart-") as folder, open(f"{folder}/said", "w+b") as said:
        quiet = {"HF_MODULES_CACHE": f"{folder}/modules", "TOKENIZERS_PARALLELISM": "false", "TMPDIR": folder}
        quiet["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if not (Path(path) / MODULES).is_dir())
        about = {each: value for each, value in os.environ.items() if each not in RANKS} | quiet | (environment or {})
        command = [sys.executable, "-P", "-m", script, json.dumps(settings)]
        # Ctrl-C is for this process to answer: it ends the other one, which else would say so at length.
        with subprocess.Popen(
            command, env=about, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, start_new_session=True
        ) as process:
            try:
                assert process.stdout is not None
                found: Any = None
                for line in process.stdout:
                    with suppress(ValueError):  # the last one of a process that was killed
                        found = json.loads(line)
                    if isinstance(found, list):
                        tell(*found)
            except BaseException:
                process.kill()
                raise
        if not isinstance(found, dict):
            said.seek(0)
            lines = said.read().decode("utf-8", "replace").strip().splitlines() or ["no message"]
            raise PassError(f"{name} has ended with {process.returncode}: {lines[-1]}")
    return found
