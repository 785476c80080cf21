"""Processes that open what a run wrote, forked from one that has the libraries: 0.2 seconds each instead of 4.

They are as new as those of a run: the one they are forked from has imported libraries and done nothing else.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LIBRARIES = [
    "transformers.dynamic_module_utils",
    *(f"transformers.models.{kind}.modeling_{kind}" for kind in ("llama", "qwen3", "gemma3", "gpt2", "gpt_neox")),
]
FORKED = multiprocessing.get_context("forkserver")


def prepare() -> None:
    FORKED.set_forkserver_preload(LIBRARIES)


def run(command: list[str], *, env: dict[str, str], **_: Any) -> subprocess.CompletedProcess[str]:
    """Run `python -P -m script ...` as `subprocess.run` does, which it takes the place of."""
    script, arguments = command[3], command[4:]
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "said.txt"
        process = FORKED.Process(target=_script, args=(script, arguments, env, str(said)))
        process.start()
        process.join()
        return subprocess.CompletedProcess(command, process.exitcode or 0, "", said.read_text())


def _script(name: str, arguments: list[str], environment: dict[str, str], said: str) -> None:
    from transformers import dynamic_module_utils

    with Path(said).open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    dynamic_module_utils.HF_MODULES_CACHE = environment["HF_MODULES_CACHE"]  # read when it was imported
    sys.path[:] = environment["PYTHONPATH"].split(os.pathsep)
    sys.argv = [name, *arguments]
    runpy.run_module(name, run_name="__main__")
