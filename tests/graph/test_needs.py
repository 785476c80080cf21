"""What a run is said to need: counted by hand, against what it takes, and refused where there is less."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import sprunec
from sprunec.compiler.lower import lower
from sprunec.compiler.speeds import Speeds
from sprunec.errors import PassError
from sprunec.execution import fits
from sprunec.families.base_config import unit_cost
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.graph.graph import Graph, Node
from sprunec.graph.needs import LIBRARIES, Needs, in_all
from sprunec.plan.plan import read_plan
from sprunec.plan.scale import Setting, cost
from tests.helpers.small_plans import EMIT, MODEL, TRAIN, execute, mask_pass, plan, save_weights, write

CONFIG = ModelConfig.from_dict(MODEL)
BLOCK = unit_cost(CONFIG, 0, "block")
SCORED = {"pass": "score-mask", "unit": "dim_ff", "target": {"dim_ff": 20}, "budget": "per-layer", "batches": 3}
WEIGHTS = {"config": MODEL, "checkpoint": "weights.pt"}


def graph(folder: Path, *passes: dict[str, Any], **changes: Any) -> Graph:
    return lower(read_plan(write(folder, plan(*passes, **changes))))


def node(found: Graph, pass_: str) -> Node:
    return next(node for node in found.nodes if node.pass_ == pass_)


def scored(folder: Path, criterion: str, **more: Any) -> Graph:
    save_weights(folder / "weights.pt")
    return graph(folder, SCORED | {"criterion": criterion} | more, EMIT, model=WEIGHTS)


def test_block_by_block_is_two_blocks_and_the_hidden_states(tmp_path: Path) -> None:
    found = scored(tmp_path, "reconstruction", compensate="least-squares")
    score, refit, rewrite = (node(found, name).needs for name in ("score-mask", "compensate", "rewrite"))
    states = 3 * 4 * 34 * CONFIG.width * 4  # batches, sequences, positions, float32
    assert score.memory["blocks"] == refit.memory["blocks"] == 2 * 4 * BLOCK
    assert score.memory["states"] == refit.memory["states"] == states
    assert score.scratch == 2 * states
    assert score.memory["moments"] == 4 * (2 * 48**2 + 2 * 48 * CONFIG.width)
    unseen = 2 * 34  # positions of the sequences that a ridge is chosen by
    assert refit.memory["moments"] == 4 * 48**2 + 8 * (48**2 + 2 * 48 * CONFIG.width) + 4 * unseen * 48  # in float64
    assert score.reads == 4 * CONFIG.parameters()
    assert (score.disk, refit.disk) == (0, 4 * 3 * 48 * CONFIG.width)
    assert rewrite.disk == rewrite.least_disk == 4 * (CONFIG.parameters() - 3 * 28 * unit_cost(CONFIG, 0, "dim_ff"))
    assert score.whole is refit.whole is rewrite.whole is None
    assert 3 * score.operations["float32"] > refit.operations["float32"] > score.operations["float32"]
    assert refit.operations["float64"] == 5 * 3 * (48**3 / 3 + 2 * 48**2 * CONFIG.width)
    given = node(scored(tmp_path, "reconstruction", compensate="least-squares", ridge=0.1), "compensate").needs
    assert given.memory["moments"] == refit.memory["moments"] - 4 * unseen * 48
    assert given.operations["float64"] == refit.operations["float64"] / 5


def test_squares_take_no_matrices(tmp_path: Path) -> None:
    energy, products = (scored(tmp_path, name) for name in ("activation", "reconstruction"))
    assert "moments" not in node(energy, "score-mask").needs.memory
    assert (
        node(energy, "score-mask").needs.operations["float32"]
        < node(products, "score-mask").needs.operations["float32"]
    )


def test_what_has_the_model_in_memory_says_so(tmp_path: Path) -> None:
    taylor = node(scored(tmp_path, "taylor"), "score-mask").needs.whole
    assert taylor is not None
    assert (taylor.host, taylor.device) == (4 * CONFIG.parameters(), 4 * CONFIG.parameters())
    assert taylor.remedy == "activation and reconstruction go block by block"
    train = node(graph(tmp_path, TRAIN, EMIT), "train").needs
    wanted = cost(CONFIG, Setting(sequences=4, positions=34))
    assert sum(train.memory.values()) == pytest.approx(wanted.memory)
    assert train.whole is not None
    assert train.whole.device == wanted.state
    assert node(graph(tmp_path, TRAIN, EMIT), "load").needs.least_disk == 4 * CONFIG.parameters()


@pytest.mark.parametrize(("target", "certain"), [({"sparsity": 0.5}, False), ({"dim_ff": 20}, True)])
def test_where_layers_may_come_out_differently_the_largest_counts(
    tmp_path: Path, target: dict[str, Any], certain: bool
) -> None:
    save_weights(tmp_path / "weights.pt")
    passes = SCORED | {"criterion": "random", "target": target, "budget": "global"}, EMIT
    found = graph(tmp_path, *passes, model=WEIGHTS)
    rewrite, small = node(found, "rewrite").needs, found.nodes[-2].needs
    assert rewrite.least_disk == (rewrite.disk if certain else 0)
    assert found.nodes[-2].name.endswith("evaluate-small")
    assert small.memory["blocks"] == 2 * 4 * BLOCK


def test_in_all_is_the_worst_of_memory_and_the_sum_of_the_rest() -> None:
    one = Needs(
        {"blocks": 7.0}, 3.0, 5.0, 1.0, {"float32": 2.0, "decoding": 3.0, "training": 6.0}, least_disk=3.0, opened=2
    )
    two = Needs({"blocks": 2.0, "states": 4.0}, 1.0, 8.0, 1.0, {"float64": 1.0}, traced=True, opened=1, lasts=4.0)
    found = in_all([one, two], 100.0)
    assert (found.peak, found.disk, found.scratch, found.reads) == (LIBRARIES + 7, 104, 8, 102)
    assert (found.operations, found.least_disk) == (
        {"float32": 2.0, "float64": 1.0, "training": 6.0, "decoding": 3.0},
        3,
    )
    assert (found.traced, found.opened, found.lasts) == (True, 3, 4.0)
    speeds = Speeds("cpu", 0.5, 0.1, 0.3, 0.2, None, 7.0, 0.25)
    assert speeds.seconds(found) == pytest.approx(speeds.seconds(one) + speeds.seconds(two))
    assert speeds.seconds(two) == pytest.approx(10 + 7 + 0.25 + 4)
    assert speeds.seconds(one) == pytest.approx(4 + 15 + 20 + 0.5)


@pytest.mark.parametrize("memory", [1e12, 1e3])
def test_writing_samples_is_counted_where_it_is_done(
    memory: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sprunec.passes.measuring.evaluate.physical_memory", lambda: memory)
    found = graph(tmp_path, TRAIN, mask_pass("head", {"num_heads": 4}), EMIT)
    counted = {n.name: n.needs.operations.get("decoding", 0) > 0 for n in found.nodes if n.pass_ == "evaluate"}
    writes = memory > 1e6
    assert counted == {name: writes and not name.endswith("masked") for name in counted}
    assert len(counted) == 3


def test_models_that_a_pass_makes_are_counted(tmp_path: Path) -> None:
    save_weights(tmp_path / "weights.pt")
    target = {"parameters": int(0.8 * CONFIG.parameters())}
    search = {"pass": "search", "units": ["head", "dim_ff"], "target": target, "finalists": 3, "refine": 1}
    found = graph(tmp_path, search, EMIT, model=WEIGHTS)
    opened = {each.pass_: each.needs.opened for each in found.nodes}
    assert (opened["measure-finalists"], opened["score-exchanges"], opened["score-choices"]) == (4, 2, 1)


def test_what_masks_leave_is_not_certain(tmp_path: Path) -> None:
    save_weights(tmp_path / "weights.pt")
    torch.save({"heads_z": torch.ones(3, 8)}, tmp_path / "heads.pt")
    found = graph(
        tmp_path, {"pass": "load-mask", "path": "heads.pt"}, TRAIN | {"pass": "finetune"}, EMIT, model=WEIGHTS
    )
    assert node(found, "rewrite").needs.disk == 4 * CONFIG.parameters()
    assert found.needed({}).least_disk == 4 * CONFIG.parameters()  # back in the input's shape
    finetune = node(found, "finetune").needs
    assert finetune.whole is not None
    assert (finetune.whole.host, finetune.whole.device) == (0, 0)
    assert finetune.document()["in_one_piece"]["bytes"] == cost(CONFIG, Setting()).state


def test_formats_take_what_they_cannot_share_with_the_small_model(tmp_path: Path) -> None:
    size = 4 * CONFIG.parameters()
    for formats, written, held in (
        (["sprunec"], 0, 0),
        (["sprunec", "cpm-live"], size, 0),
        (["sprunec", "huggingface", "cpm-live"], 2 * size, 0),
        (["pt2"], size, 2 * size),
    ):
        found = graph(tmp_path, TRAIN, EMIT | {"formats": formats})
        emit = node(found, "emit").needs
        assert (emit.disk, emit.memory["model"], emit.least_disk) == (written, held, 0)
        assert found.needed({}).disk == sum(each.needs.disk for each in found.nodes)  # OUT has second names
        assert emit.whole is None if not held else emit.whole is not None and emit.whole.host == held
    save_weights(tmp_path / "weights.pt")  # the user's own file is not shared
    assert node(graph(tmp_path, EMIT, model=WEIGHTS), "emit").needs.disk == size


# ---- refusals


def test_a_model_too_large_to_be_exported_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fits, "physical_memory", lambda: 100_000)
    save_weights(tmp_path / "weights.pt")
    words = r"emit needs the model in memory, to export it, 0\.0 GB, and this machine has 0\.0 GB; emit no pt2"
    with pytest.raises(PassError, match=words):
        execute(plan(EMIT | {"formats": ["sprunec", "pt2"]}, model=WEIGHTS), tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_model_that_does_not_fit_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fits, "physical_memory", lambda: 100_000)
    save_weights(tmp_path / "weights.pt")
    trained = plan(TRAIN, EMIT, model=WEIGHTS)
    words = r"2?.*train needs weights, gradients and moments in memory, 0\.0 GB, and this machine has 0\.0 GB; train on"
    with pytest.raises(PassError, match=words):
        execute(trained, tmp_path)
    assert not (tmp_path / "out").exists()
    report = execute(plan(SCORED | {"criterion": "activation"}, EMIT, model=WEIGHTS), tmp_path)  # block by block
    assert report["status"] == "done"


def test_what_the_store_has_is_not_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    execute(plan(TRAIN, EMIT), tmp_path)
    monkeypatch.setattr(fits, "physical_memory", lambda: 100_000)
    assert execute(plan(TRAIN, EMIT), tmp_path)["status"] == "done"


def test_a_disk_without_room_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = plan(TRAIN, EMIT)
    needed = graph(tmp_path, TRAIN, EMIT).needed({}).least_disk
    assert needed >= 2 * 4 * CONFIG.parameters()  # the new model and the trained one
    monkeypatch.setattr(fits.shutil, "disk_usage", lambda path: SimpleNamespace(free=needed - 1))
    with pytest.raises(PassError, match=r"this run writes 0\.0 GB at least, and the disk of .* has 0\.0 GB left; make"):
        execute(content, tmp_path)
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    execute(content, tmp_path)
    monkeypatch.setattr(fits.shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    found = lower(read_plan(write(tmp_path, content)))
    assert not list(fits.misfits(found, sprunec.execution.store.Store(tmp_path / "out" / "store"), "cpu", 1e12))


def test_remains_of_earlier_runs_count_as_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, store = graph(tmp_path, TRAIN, EMIT), sprunec.execution.store.Store(tmp_path / "store")
    needed = found.needed({}).least_disk
    monkeypatch.setattr(fits.shutil, "disk_usage", lambda path: SimpleNamespace(free=needed - 4096))
    assert [each.code for each in fits.misfits(found, store, "cpu", 1e12)] == ["too-little-disk"]
    (tmp_path / "store" / "writing-x").mkdir(parents=True)
    (tmp_path / "store" / "writing-x" / "part").write_bytes(b"x" * 8192)
    assert not list(fits.misfits(found, store, "cpu", 1e12))


@pytest.mark.parametrize(
    ("device", "memory", "processes", "offload", "told"),
    [
        ("cuda:0", 0.9, 1, False, True),
        ("cuda:0", 0.9, 1, True, False),  # weights and moments are in the machine's memory
        ("cuda:0", 1.1, 1, False, False),
        ("cpu", 0.9, 1, False, True),
        ("cpu", 0.9, 4, False, False),  # each may hold a part
    ],
)
def test_the_devices_memory_is_what_counts(
    tmp_path: Path, device: str, memory: float, processes: int, offload: bool, told: bool
) -> None:
    engine = {"offload": True} if offload else {}
    found, store = graph(tmp_path, TRAIN, EMIT, engine=engine), sprunec.execution.store.Store(tmp_path / "store")
    state = cost(CONFIG, Setting()).state
    messages = [each.message for each in fits.misfits(found, store, device, memory * state, processes)]
    assert bool(messages) == told, messages
    assert all(("cuda:0" if device != "cpu" else "this machine") in message for message in messages)


# ---- against what is taken

PEAKS = """
import json, sys
import torch, transformers
import sprunec
from sprunec.execution.progress import Watcher

class Peaks(Watcher):
    peaks = {}
    def node_started(self, index, total, name):
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    def node_finished(self, index, total, name, *, cached, seconds, metrics):
        status = open("/proc/self/status").read()
        self.peaks[name] = 1024 * int(status.split("VmHWM:")[1].split()[0])

graph, peaks = sprunec.lower(sprunec.read_plan(sys.argv[1])), Peaks()
sprunec.execute(graph, sys.argv[2], peaks)
print(json.dumps({node.name: [peaks.peaks[node.name], node.needs.peak] for node in graph.nodes}))
"""


def wide_plan(folder: Path) -> Path:
    """A model that takes and works more than libraries do, scored, refitted, cut and compared."""
    wide = MODEL | {"dim_model": 512, "num_heads": 8, "dim_head": 64, "dim_ff": 2048, "num_layers": 3}
    save_weights(folder / "weights.pt", **wide)
    passes = [SCORED | {"criterion": "activation", "target": {"dim_ff": 512}, "compensate": "least-squares"}, EMIT]
    content = plan(*passes, model={"config": wide, "checkpoint": "weights.pt"})
    content["data"] |= {"max_length": 256}
    return write(folder, content)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux forgets a peak")
def test_peaks_are_at_most_what_is_said(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PEAKS, wide_plan(tmp_path), tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    for name, (taken, said) in json.loads(done.stdout.splitlines()[-1]).items():
        words = f"{name} takes {taken / 1e6:.0f} MB, and is said to take {said / 1e6:.0f}"
        assert said / 3 < taken < 1.05 * said, words


@pytest.mark.slow
def test_a_run_takes_about_as_long_as_was_said(tmp_path: Path) -> None:
    command, path = [sys.executable, "-m", "sprunec", "run"], wide_plan(tmp_path)
    said, report = (
        json.loads(
            subprocess.run([*command, path, *more, "--json"], capture_output=True, check=True, timeout=600).stdout
        )
        for more in (["--dry-run", "--measure"], ["--out", tmp_path / "out"])
    )
    wanted, took = said["needs"]["seconds"], sum(entry["seconds"] for entry in report["passes"])
    assert wanted / 2 < took < 2 * wanted
