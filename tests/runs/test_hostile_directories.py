"""Files from anyone: nothing in them runs, no claim in them takes memory, each gives a result or one clear error."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sprunec.bmcook.masks.two_four_files import read_mask_file
from sprunec.checkpoint.reader import open_tensors, read_state
from sprunec.compiler.inspect import inspect_model
from sprunec.errors import InputError, PassError
from sprunec.execution import fits
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.mask_files import reading
from sprunec.models.loading import load
from tests.conftest import tiny_model
from tests.helpers.small_plans import MODEL, TINY, TRAIN, execute, plan

MEGABYTES = 300
SHORT = settings(max_examples=60, deadline=10_000, suppress_health_check=list(HealthCheck), derandomize=True)
LONG = settings(max_examples=700, deadline=10_000, suppress_health_check=list(HealthCheck), derandomize=True)
SIZES = st.one_of(st.integers(-3, 40), st.sampled_from([2**31, 2**60, 2**63, 2**64, 10**30, True, None, 1.5, "3"]))
LENGTHS = [pytest.param(SHORT, id="short"), pytest.param(LONG, id="long", marks=pytest.mark.slow)]


def used() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def either(path: Path, *uses: Callable[[Path], Any]) -> None:
    """Each use gives a result or an error that names the file, and takes little memory."""
    before = used()
    for use in uses:
        try:
            use(path)
        except InputError as error:
            told = str(error)
        else:
            continue
        assert path.name in told or path.parent.name in told
        assert len(told) < 2000
    assert used() - before < MEGABYTES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def emitted(finished: Path) -> Path:
    return finished / "model/sprunec"


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


@pytest.mark.parametrize("how", LENGTHS)
def test_headers_of_safetensors_that_lie(how: settings, emitted: Path, folder: Path) -> None:
    header, data = parts(emitted / "model.safetensors")
    names = [name for name in header if name != "__metadata__"]
    path = folder / "model.safetensors"
    (folder / "config.json").write_bytes((emitted / "config.json").read_bytes())
    (folder / "kept.json").write_bytes((emitted / "kept.json").read_bytes())

    @how
    @given(
        st.sampled_from(names),
        st.sampled_from(["shape", "data_offsets", "dtype"]),
        st.one_of(SIZES, st.lists(SIZES, max_size=4), st.sampled_from(["F64", "U64", "F8_E4M3", "x" * 3000, {}])),
        st.one_of(st.none(), st.integers(0, 2**64 - 1), st.integers(0, 200)),
    )
    def one(name: str, key: str, value: Any, length: int | None) -> None:
        changed = header | {name: header[name] | {key: value}}
        text = json.dumps(changed).encode()
        path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
        either(path, inspect_model, read_state)
        either(folder, load, inspect_model)

    one()


@pytest.mark.parametrize("how", LENGTHS)
@pytest.mark.parametrize("form", ["pt", "safetensors", "masks", "two_four"])
def test_files_with_other_bytes(how: settings, form: str, emitted: Path, folder: Path) -> None:
    model = tiny_model()
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    path = folder / {"pt": "a.pt", "safetensors": "a.safetensors"}.get(form, f"{form}.pt")
    if form == "pt":
        torch.save(model.state_dict(), path)
    elif form == "safetensors":
        path.write_bytes((emitted / "model.safetensors").read_bytes())
    elif form == "masks":
        torch.save({"heads_z": torch.ones(3, 4), "self_att_layer_z": torch.ones(3)}, path)
    else:
        torch.save({"encoder.layers.0": [(name, torch.ones(4, 4)) for name in ("a.weight", "b.weight")]}, path)
    whole = path.read_bytes()
    reads: dict[str, tuple[Callable[[Path], Any], ...]] = {
        "masks": (lambda p: [sheet.kept for sheet in reading.read_mask_file(p)],),
        "two_four": (lambda p: read_mask_file(p, "m4n2_1d", shapes, {}),),
    }
    place = st.one_of(st.integers(0, min(4000, len(whole) - 1)), st.integers(max(0, len(whole) - 4000), len(whole) - 1))

    @how
    @given(st.lists(st.tuples(place, st.integers(0, 255)), min_size=1, max_size=6), st.one_of(st.none(), place))
    def one(changes: list[tuple[int, int]], end: int | None) -> None:
        content = bytearray(whole)
        for at, value in changes:
            content[at] = value
        path.write_bytes(content if end is None else content[:end])
        either(path, *reads.get(form, (inspect_model, read_state)))

    one()


@pytest.mark.parametrize("how", LENGTHS)
def test_configs_of_any_size(how: settings, folder: Path) -> None:
    path = folder / "sizes.json"

    @how
    @given(st.dictionaries(st.sampled_from(sorted(TINY)), st.one_of(SIZES, st.sampled_from([4096, 2**20, 2**24]))))
    def one(changes: dict[str, Any]) -> None:
        path.write_text(json.dumps(TINY | {"num_layers": 1} | changes))
        if changes.get("num_layers", 1) not in (4096, 2**20, 2**24):  # many layers take their time, and little memory
            either(path, inspect_model)

    one()


class Runs:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


LARGE = 2**27
BOMB = f"""
import sys, zipfile, torch
tensor = torch.zeros({LARGE})
torch.save(dict.fromkeys(["input_embedding.weight", "heads_z", "input_embedding"], tensor), "whole")
with zipfile.ZipFile("whole") as whole, zipfile.ZipFile("bomb.pt", "w", zipfile.ZIP_DEFLATED) as packed:
    for record in whole.infolist():
        packed.writestr(record.filename, whole.read(record))
"""


@pytest.fixture(scope="module")
def bomb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What torch saves, deflated: half a megabyte that would be 512; made in a process of its own."""
    directory = tmp_path_factory.mktemp("bomb")
    subprocess.run([sys.executable, "-c", BOMB], cwd=directory, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    (directory / "whole").unlink()
    assert (directory / "bomb.pt").stat().st_size < 1_000_000
    return directory / "bomb.pt"


@pytest.mark.parametrize("what", ["a bomb", "an expanded tensor", "a command", "an old file's command"])
@pytest.mark.parametrize("read", ["checkpoint", "masks", "two_four"])
def test_files_of_torch_that_would_fill_memory_or_run(what: str, read: str, bomb: Path, tmp_path: Path) -> None:
    path = tmp_path / "hostile.pt"
    key = {"checkpoint": "input_embedding.weight", "masks": "heads_z", "two_four": "input_embedding"}[read]
    if what == "a bomb":
        shutil.copyfile(bomb, path)
    elif what == "an expanded tensor":
        torch.save({key: torch.ones(1, 1).expand(2**20, 2**20)}, path)
    elif what == "a command":
        torch.save({key: Runs(tmp_path / "ran")}, path)
    else:
        path.write_bytes(pickle.dumps({key: Runs(tmp_path / "ran")}))
    expected = ModelConfig.from_dict(MODEL).tensors()
    uses: dict[str, Callable[[], Any]] = {
        "checkpoint": lambda: load_in(path),
        "masks": lambda: [sheet.kept for sheet in reading.read_mask_file(path)],
        "two_four": lambda: read_mask_file(path, "m4n2_1d", expected, {"input_embedding.weight": (128, 32)}),
    }
    before = used()
    with pytest.raises(
        InputError, match=r"hostile\.pt: (error: |this is a Python pickle, |input_embedding\.weight is \[1048576, )"
    ):
        uses[read]()
    assert used() - before < MEGABYTES
    assert not (tmp_path / "ran").exists()


def load_in(path: Path) -> None:
    execute(plan(TRAIN, model={"config": dict(MODEL), "checkpoint": path.name}), path.parent)


def test_tensors_that_share_their_bytes_are_no_checkpoint(tmp_path: Path) -> None:
    """A file of a kilobyte could else be as large as its header has names."""
    entry = {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}
    text = json.dumps({f"t{number}": entry for number in range(10)}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(64))
    with pytest.raises(InputError, match=r"a\.safetensors.* overlap"):
        open_tensors(tmp_path / "a.safetensors")


def test_a_config_too_large_for_the_machine_is_an_error_and_no_allocation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fits, "physical_memory", lambda: 100_000)
    with pytest.raises(PassError, match=r"load needs a new model in memory, 0\.\d GB, and this machine has 0\.0 GB"):
        execute(plan(TRAIN), tmp_path)
    assert not list(tmp_path.glob("out/store/*/model.safetensors"))
