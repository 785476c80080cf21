"""Errors of the disk, member by member: each names the file, has the system's words, and says what to do."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

import sprunec
from sprunec.checkpoint.writer import save_tensors
from sprunec.cli import main
from sprunec.errors import REMEDIES, InputError, PassError
from sprunec.execution.progress import Watcher
from tests.families.test_vocabulary import SPECIAL
from tests.helpers.bmcook_files import FINE, bmcook, converted
from tests.helpers.faults import Disk, is_named, watched
from tests.helpers.guide import command, prepare
from tests.helpers.small_plans import EMIT, MODEL, mask_pass, plan, save_weights, write

PLAN = plan(
    {"pass": "train", "steps": 2, "checkpoint_every": 1},
    mask_pass("head", {"num_heads": 3}, budget="global", save_mask="out/heads.pt"),
    EMIT,
    outputs={"checkpoint": "whole.pt"},
    data={"source": "text", "path": "text.txt", "max_length": 34, "batch_size": 4},
)
NEEDED, FREE = "bytes were to be written", "bytes are free there"


def told(
    arguments: list[str], folder: Path, at: tuple[str, str, int], capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """The exit code and the message of a command to which the disk says no; what every such message has."""
    disk = Disk(folder, at=at)
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["sprunec", *arguments])
        with watched(disk), pytest.raises(SystemExit) as stop:
            main()
    said = capsys.readouterr().err
    assert disk.failed is not None, (at, said)
    assert stop.value.code in (1, 3), said
    assert "Traceback" not in said and "traceback" not in said
    error = said[said.index(os.strerror(at[2])) :]
    assert is_named(said, disk.failed) and REMEDIES[at[2]] in error, (at, said)
    assert (FREE in error) == (at[2] in (errno.ENOSPC, errno.EDQUOT)), (at, said)
    return int(stop.value.code or 0), said


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run."""
    folder = tmp_path_factory.mktemp("done")
    (folder / "text.txt").write_text("a text that is long enough to train on, and some more of it. " * 60)
    sprunec.execute(sprunec.lower(sprunec.read_plan(write(folder, PLAN))), folder / "out")
    return folder


# From a plan and its text, in the order of a run: the file, and whether it is known how large it would be.
WORK = [
    ("write", "train.npy", errno.ENOSPC, True),
    ("close", "held_out.npy", errno.EDQUOT, True),
    ("read", "text.txt", errno.ESTALE, False),
    ("open", "vocabulary.json", errno.EMFILE, False),
    ("write", "model.safetensors", errno.ENOSPC, True),
    ("close", "model.safetensors", errno.EFBIG, True),
    ("os.fsync", "model.safetensors", errno.EIO, False),
    ("write", "kept.json", errno.ENOSPC, True),
    ("close", "manifest.json", errno.ENOSPC, True),
    ("open", "events.jsonl", errno.EROFS, False),
    ("write", "events.jsonl", errno.ENOSPC, False),
    ("write", "save.writing", errno.ENOSPC, True),
    ("close", "save.writing", errno.EDQUOT, True),
    ("open", "save.writing", errno.EACCES, False),
]


@pytest.mark.parametrize(("kind", "name", "error", "sized"), WORK, ids=str)
def test_the_disk_says_no_while_a_run_works(
    kind: str, name: str, error: int, sized: bool, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(done, tmp_path / "work", ignore=shutil.ignore_patterns("out"))
    arguments = ["run", str(tmp_path / "work/plan.json"), "--out", str(tmp_path / "work/out")]
    _, said = told(arguments, tmp_path / "work", (kind, name, error), capsys)
    assert (NEEDED in said) == sized, said
    assert not list((tmp_path / "work/out").glob("store/writing-*")), "something is half-written"


# Of a run whose work is done: it reads its store, and puts what users look for in place.
PUBLISHING = [
    ("mkdir", ".publishing", errno.EROFS, False),
    ("write", "model/sprunec/config.json", errno.ENOSPC, True),
    ("close", "model/sprunec/model.py", errno.EDQUOT, True),
    ("write", "model/sprunec/origin.json", errno.ENOSPC, True),
    ("write", "masks/head_mask.pt", errno.ENOSPC, True),
    ("write", "recipe.json", errno.EFBIG, True),
    ("write", "whole.pt", errno.ENOSPC, True),
    ("close", "whole.pt", errno.EIO, False),
    ("rename", "masks", errno.EIO, False),
    ("read", "model.safetensors", errno.EIO, False),
    ("read", "manifest.json", errno.ESTALE, False),
    ("write", ".report.json.PID", errno.ENOSPC, True),
    ("write", ".report.html.PID", errno.ENOSPC, True),
    ("replace", ".report.html.PID", errno.EACCES, False),
    ("write", ".heads.pt.PID", errno.ENOSPC, True),
    ("write", ".heads.pt.json.PID", errno.EROFS, False),
]


@pytest.mark.parametrize(("kind", "name", "error", "sized"), PUBLISHING, ids=str)
def test_the_disk_says_no_while_results_are_put_in_place(
    kind: str, name: str, error: int, sized: bool, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(done, tmp_path / "work", symlinks=True)
    out = tmp_path / "work/out"
    (out / "heads.pt").unlink()
    (out / "heads.pt.json").unlink()
    name = name.replace("PID", str(os.getpid()))  # not in the case's own name, which all workers must share
    _, said = told(["run", str(tmp_path / "work/plan.json"), "--out", str(out)], out, (kind, name, error), capsys)
    assert (NEEDED in said) == sized, said


@pytest.mark.parametrize(
    ("kind", "name", "error"),
    [
        ("write", "data_0", errno.ENOSPC),
        ("close", "data_0", errno.EDQUOT),
        ("write", "meta.bin", errno.ENOSPC),
        ("rename", "", errno.EROFS),
        ("read", "text.txt", errno.EIO),
        ("open", "vocab.txt", errno.EACCES),
    ],
    ids=str,
)
def test_the_disk_says_no_to_make_data(
    kind: str, name: str, error: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("some words of a text, one document a line, all of them long enough\n" * 9)
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL, *"abcdefghijklmnopqrstuvwxyz,"]) + "\n")
    arguments = ["make-data", str(tmp_path / "text.txt"), "--out", str(tmp_path / "set")]
    arguments += ["--vocab", str(tmp_path / "vocab.txt")]
    told(arguments, tmp_path, (kind, name, error), capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.txt", "vocab.txt"]


@pytest.mark.parametrize(
    ("kind", "error"),
    [("write", errno.ENOSPC), ("open", errno.EACCES), ("replace", errno.EROFS), ("os.fsync", errno.EIO)],
    ids=str,
)
def test_the_disk_says_no_to_a_converted_plan(
    kind: str, error: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path, count=9)
    converted(tmp_path, bmcook("fine-grained"), l0_pruning={"fine-grained": FINE})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "new").mkdir()
    name = f".plan.json.{os.getpid()}"
    arguments = ["convert", "bmcook.json", "-o", str(tmp_path / "new/plan.json"), *command()]
    code, _ = told(arguments, tmp_path / "new", (kind, name, error), capsys)
    assert code == 3
    assert not list((tmp_path / "new").iterdir())


MODELS = ("m.pt", "m.safetensors", "config.json")


@pytest.mark.parametrize(
    ("kind", "error"),
    [("open", errno.EACCES), ("read", errno.EIO), ("read", errno.ESTALE), ("open", errno.EMFILE)],
    ids=str,
)
@pytest.mark.parametrize(
    ("doing", "name"),
    [*(("inspect", name) for name in MODELS), *(("validate", name) for name in (*MODELS, "plan.json", "mask.pt"))],
)
def test_what_cannot_be_read_is_named(
    doing: str, kind: str, error: int, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_weights(tmp_path / "m.pt")
    save_tensors(torch.load(tmp_path / "m.pt"), tmp_path / "m.safetensors")
    torch.save({"heads_z": torch.ones(3, 8)}, tmp_path / "mask.pt")
    (tmp_path / "config.json").write_text(json.dumps(MODEL))
    checkpoint = name if name.startswith("m.") else "m.pt"
    content = plan({"pass": "load-mask", "path": "mask.pt"}, model={"config": "config.json", "checkpoint": checkpoint})
    write(tmp_path, content)
    target = str(tmp_path / (name if doing == "inspect" else "plan.json"))
    code, _ = told([doing, target], tmp_path, (kind, name, error), capsys)
    assert code == 3


@pytest.mark.parametrize("gone", ["m.pt", "mask.pt", "text.txt"])
def test_a_file_that_goes_between_the_check_and_its_pass_is_named(gone: str, done: Path, tmp_path: Path) -> None:
    """Its own name, and not that of a link in the store."""
    shutil.copy(done / "text.txt", tmp_path / "text.txt")
    save_weights(tmp_path / "m.pt")
    torch.save({"heads_z": torch.ones(3, 8)}, tmp_path / "mask.pt")
    look = {"pass": "score-mask", "criterion": "magnitude", "unit": "dim_ff", "target": {"dim_ff": 20}}
    model = {"config": MODEL, "checkpoint": "m.pt"}
    content = plan({"pass": "load-mask", "path": "mask.pt"}, look, EMIT, model=model, data=PLAN["data"])
    graph = sprunec.lower(sprunec.read_plan(write(tmp_path, content)))

    class Removes(Watcher):
        def node_started(self, index: int, total: int, name: str) -> None:
            passes = {"m.pt": "rewrite", "mask.pt": "load-mask", "text.txt": "data"}
            if passes[gone] in name:
                (tmp_path / gone).unlink(missing_ok=True)

    with pytest.raises((InputError, PassError), match=rf"{tmp_path / gone}: .*([Nn]o such file)"):
        sprunec.execute(graph, tmp_path / "out", Removes())


def test_what_cannot_be_removed_is_named(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(done / "out", tmp_path / "out", symlinks=True)
    (out / "store/damaged-1").mkdir()

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), str(path))

    monkeypatch.setattr("sprunec.durable.shutil.rmtree", refuse)
    monkeypatch.setattr("sys.argv", ["sprunec", "gc", str(out)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    assert f"{out}/store/damaged-1: Operation not permitted; change its permissions" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_real_disk_that_is_full_says_how_much_an_array_needs() -> None:
    """numpy writes past Python, and knows no reason."""
    import numpy as np

    from sprunec.data.saved import save_array

    for size in (10, 10**6):
        with pytest.raises(OSError, match="No space left on device: '/dev/full'") as caught:
            save_array(Path("/dev/full"), np.zeros(size, np.int32))
        assert caught.value.__notes__ == [f"{4 * size:,} bytes were to be written"]


def test_an_array_is_saved_as_numpy_saves_it(tmp_path: Path) -> None:
    import numpy as np

    from sprunec.data.saved import save_array

    rows = np.array([(1, 2.5), (3, 4.5)], dtype=[("a", np.int64), ("b", np.float32)])
    for number, array in enumerate([np.arange(7, dtype=np.int32), np.arange(8)[::2], np.zeros(0, np.int32), rows]):
        save_array(tmp_path / f"{number}.npy", array)
        np.save(tmp_path / "wanted.npy", array)
        assert (tmp_path / f"{number}.npy").read_bytes() == (tmp_path / "wanted.npy").read_bytes()
