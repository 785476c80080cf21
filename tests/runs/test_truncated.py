"""Files that become shorter while a run reads them: one message, where a map of them would end the process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sprunec
from sprunec.checkpoint.reader import read_state
from sprunec.checkpoint.writer import save_tensors
from tests.helpers.guide import records
from tests.helpers.small_plans import EMIT, MODEL, plan, save_weights, write

HALF = {"pass": "score-mask", "criterion": "magnitude", "unit": "head", "target": {"num_heads": 4}}
TRAIN = {"pass": "train", "steps": 2}
TAUGHT = TRAIN | {"distillation": {"logits": 1.0, "teacher": "teacher.safetensors"}}
SPARSE = {"pass": "sparsify", "pattern": "m4n2_1d", "tensors": ["project_"]}
LIVE = {"pass": "emit", "formats": ["cpm-live"]}
TEXT = {"source": "text", "path": "text.txt", "max_length": 34, "batch_size": 4}
SET = {"source": "cpm-live", "path": "set", "max_length": 34, "batch_size": 4}
# By what is going on: the plan's passes, what it trains on, and the file that becomes shorter.
CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any] | None, str]] = {
    "rewrite": ([HALF, EMIT], None, "m.pt"),
    "score-mask": ([HALF, EMIT], None, "m.safetensors"),
    "compare": ([HALF, EMIT], None, "m.pt"),
    "publish": ([EMIT], None, "m.safetensors"),
    "emit": ([LIVE], None, "m.pt"),
    "sparsify": ([SPARSE, EMIT], None, "m.safetensors"),
    "train": ([TRAIN, EMIT], TEXT, "m.pt"),
    "train by a teacher": ([TAUGHT, EMIT], TEXT, "teacher.safetensors"),
    "train on a set": ([TRAIN, EMIT], SET, "set/data_0"),
    "train on ids": ([TRAIN, EMIT], TEXT, "train.npy"),
}
# Every case in a process of its own, forked from one that has imported what it needs.
RUN = """
import json, os, sys
import sprunec
from pathlib import Path
from sprunec.engines import torch_engine
from sprunec.execution.progress import Watcher
from sprunec.checkpoint import reader

def shorten(path):
    os.chmod(path, 0o644)
    os.truncate(path, os.path.getsize(path) * 2 // 3)

class Shortens(Watcher):
    '''While the pass works: a checkpoint once its header has been read, since a shorter one is refused at once.'''

    def __init__(self, folder, doing, file):
        self.folder, self.doing, self.name = folder, doing.partition(" ")[0], file
        self.now, self.done = "", False
        self.whole_read = reader.read_places
        reader.read_places = self.read_places

    def node_started(self, index, total, name):
        self.now = name
        if self.doing in name and not self.name.endswith((".pt", ".safetensors")):
            shorten(next(self.folder.rglob(self.name)))

    def node_finished(self, index, total, name, **_):
        self.now = "publish" if index == total else ""

    def read_places(self, *arguments):
        found = self.whole_read(*arguments)
        opened = {place.file.resolve() for place in found.values()}
        if self.doing in self.now and not self.done and self.folder / self.name in opened:
            self.done = True
            shorten(self.folder / self.name)
        return found

def run(folder, doing, file):
    graph = sprunec.lower(sprunec.read_plan(folder / "plan.json"))
    try:
        sprunec.execute(graph, folder / "out", Shortens(folder, doing, file))
    except sprunec.errors.SprunecError as error:
        return error.exit_code, str(error)
    except OSError as error:
        return 1, sprunec.errors.disk_words(error)
    return 0, ""

for folder, doing, file in json.load(sys.stdin):
    folder, child = Path(folder), os.fork()
    if not child:
        code, text = run(folder, doing, file)
        (folder / "said").write_text(text)
        os._exit(code)
    (folder / "code").write_text(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of each case its folder, with the exit code of its run and what was said."""
    folders = {}
    for doing, (passes, data, file) in CASES.items():
        folder = folders[doing] = tmp_path_factory.mktemp(doing.replace(" ", "-"))
        prepare(folder, passes, data, file if file.startswith("m.") else "m.pt")
    given = json.dumps([[str(folders[doing]), doing, case[2]] for doing, case in CASES.items()])
    subprocess.run([sys.executable, "-c", RUN], input=given, text=True, check=True)
    return folders


def prepare(folder: Path, passes: list[dict[str, Any]], data: dict[str, Any] | None, checkpoint: str) -> None:
    state = read_state(save_weights(folder / "m.pt"))
    for name in ("m.safetensors", "teacher.safetensors"):
        save_tensors(state, folder / name)
    if data == SET:
        sprunec.write_dataset(folder / "set", records(120), block_size=4096)
        data = SET | {"block_size": 4096}
    (folder / "text.txt").write_text("a text that is long enough to train on, and some more of it. " * 60)
    content = plan(*passes, model={"config": MODEL, "checkpoint": checkpoint}, outputs={"checkpoint": "whole.pt"})
    content |= {"compare": {"tokens": 20}}
    if data is None:
        content = {key: value for key, value in content.items() if key not in ("data", "evaluate")}
    else:
        content["data"] = data
    write(folder, content)


@pytest.mark.parametrize("doing", CASES)
def test_a_file_that_becomes_shorter_is_named(doing: str, ended: dict[str, Path]) -> None:
    folder = ended[doing]
    said = (folder / "said").read_text()
    assert (folder / "code").read_text() == "1", said
    assert f"{CASES[doing][2]}: it has become shorter while it was read; copy it again" in said
    assert not (folder / "out/model").exists() and not list((folder / "out").glob("store/writing-*"))


def test_the_same_command_goes_on_with_the_whole_file(ended: dict[str, Path]) -> None:
    folder = ended["rewrite"]
    save_weights(folder / "m.pt")
    report = sprunec.execute(sprunec.lower(sprunec.read_plan(folder / "plan.json")), folder / "out")
    assert report.data["status"] == "done"
