"""Whole files with odd contents through the commands: a result or one message about a file, and never a traceback.

Bytes that are no file of their kind are test_fuzz's; here every file is one, and what it holds is odd. The long form is
marked slow.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sprunec.families.cpm_ant.huggingface_names import STOCK_PREFIX, Part, parts, stock_keys
from tests.conftest import tiny_config, tiny_model
from tests.families.test_vocabulary import SPECIAL
from tests.helpers.contents import (
    MASK_NUMBERS,
    changed_lines,
    changed_objects,
    changed_records,
    changed_tensors,
    some_text,
    write_pickled,
    write_safetensors,
    write_set,
)
from tests.helpers.live_sets import some_records
from tests.helpers.mutants import ends
from tests.helpers.small_plans import TINY

SMALL = TINY | {"num_layers": 2}
CASES = {"weights": (12, 140), "directories": (10, 90), "teachers": (8, 90), "masks": (14, 150), "data": (18, 170)}
Case = Callable[[Path, random.Random], tuple[list[str], set[str]]]
LOOK = {"source": "text", "path": "good.txt", "max_length": 20, "batch_size": 2, "held_out": 0.3}
EMIT = {"pass": "emit", "formats": ["sprunec"]}


def weights(folder: Path, draw: random.Random) -> tuple[list[str], set[str]]:
    """A checkpoint of the plan's config, looked at, checked, scored and cut."""
    named = changed_tensors(list(torch.load(folder / "state.pt").items()), draw)
    name = draw.choice(["odd.safetensors", "odd.pt", "odd.bin"])
    write(named, folder / name, draw)
    if draw.random() < 0.25:
        return spoken(["inspect", str(folder / name)], draw), {name}
    return command(folder, draw, {"config": SMALL, "checkpoint": name}, LOOK, [*scored(draw), EMIT]), {name}


def directories(folder: Path, draw: random.Random) -> tuple[list[str], set[str]]:
    """A directory with a config in it: as emitted, or as Hugging Face's class saves it."""
    kind = draw.choice(["native", "stock"])
    shutil.rmtree(folder / "odd", ignore_errors=True)
    (folder / "odd").mkdir()
    named = list(torch.load(folder / f"{kind}.pt").items())
    config = {"model_type": "cpmant"} | stock_keys(tiny_config(num_layers=2)) if kind == "stock" else SMALL
    (folder / "odd" / "config.json").write_text(json.dumps(config))
    write_safetensors(changed_tensors(named, draw), folder / "odd" / "model.safetensors")
    files = {"odd", "model.safetensors", "config.json"}
    if draw.random() < 0.4:
        return spoken(["inspect", str(folder / "odd")], draw), files
    model = {"config": "odd/config.json", "checkpoint": "odd"}
    return command(folder, draw, model, LOOK, [*scored(draw), EMIT]), files


def teachers(folder: Path, draw: random.Random) -> tuple[list[str], set[str]]:
    """A step toward the logits, and sometimes the states, of a model in an odd file."""
    name = draw.choice(["teacher.safetensors", "teacher.pt"])
    write(changed_tensors(list(torch.load(folder / "state.pt").items()), draw), folder / name, draw)
    distillation: dict[str, Any] = {"logits": 0.5, "teacher": name}
    if draw.random() < 0.4:
        last = "[post]encoder.output_layernorm"
        distillation |= {"hidden": 1, "pairs": [f"{last}:{last}"]}
    one = {"pass": "train", "steps": 1, "distillation": distillation}
    return command(folder, draw, {"config": SMALL, "checkpoint": "state.pt"}, LOOK, [one]), {name}


def masks(folder: Path, draw: random.Random) -> tuple[list[str], set[str]]:
    """Masks in all forms, of this model and of others, with numbers that keep nothing and cut nothing."""
    name = draw.choice(["mask.pt", "mask.pt", "modules.pt", "modules.json"])
    if name == "mask.pt":
        layers, heads, dims = draw.choice([*[(2, 4, 40)] * 8, (1, 4, 40), (3, 4, 40), (2, 64, 40), (2, 4, 41)])
        sizes = {"heads_z": (layers, heads), "dimff_z": (layers, dims), "self_att_layer_z": (layers,)}
        sizes |= {"ffn_layer_z": (layers,), "dim_head_z": (layers, 6)}
        plugin = {"num_heads": (layers, heads, 1), "dim_ff": (layers, dims), "att": (layers, 1)}
        chosen = draw.choice([sizes, sizes, plugin])
        some = draw.sample(sorted(chosen), draw.randint(1, len(chosen)))
        named = [(key, (torch.rand(chosen[key]) < 0.7).float()) for key in some]
        write_pickled(changed_tensors(named, draw, MASK_NUMBERS), folder / name, draw)
    else:
        write_modules(folder / name, draw)
    passes = [{"pass": "load-mask", "path": name}, EMIT][: draw.randint(1, 2)]
    return command(folder, draw, {"config": SMALL, "checkpoint": "state.pt"}, LOOK, passes), {name}


def write_modules(path: Path, draw: random.Random) -> None:
    """CPM-Live's list of pairs, some of which are none."""
    odd: list[Any] = [[True], [], [0, 2], [None, 0], ["a", "b"], [0.5, 1], True, {"a": 1}, [[0, 1], [1, 0]], "01"]
    pairs: Any = [[draw.random() < 0.3, draw.random() < 0.3] for _ in range(draw.choice([2, 2, 2, 1, 3, 0]))]
    if pairs and draw.random() < 0.5:
        pairs[draw.randrange(len(pairs))] = draw.choice(odd)
    whole = draw.choice([*[pairs] * 4, *[{"mask_modules": pairs}] * 2, {"mask_modules": None}, [pairs]])
    if path.suffix == ".json":
        path.write_text(
            draw.choice(["", "\ufeff"]) + json.dumps(whole).replace("2", draw.choice(["2", "NaN", "1e400"]))
        )
    else:
        torch.save(whole, path)


def data(folder: Path, draw: random.Random) -> tuple[list[str], set[str]]:
    """A step on odd texts, pairs, pieces and records."""
    kind = draw.choice(["text", "jsonl", "pairs", "vocabulary", "set", "set"])
    given: dict[str, Any] = {"max_length": draw.choice([12, 20]), "batch_size": 2, "held_out": draw.choice([0.1, 0.3])}
    given |= {"source": kind, "path": "odd.txt"}
    if kind == "text":
        (folder / "odd.txt").write_bytes(changed_lines(some_text(draw), draw))
    elif kind == "vocabulary":
        given |= {"source": "text", "path": "good.txt", "tokenizer": "odd.txt"}
        pieces = [piece.encode() for piece in [*SPECIAL, *"abcdefghijklmnopqrstuvwxyz.,"]]
        (folder / "odd.txt").write_bytes(changed_lines(pieces + [b"%d" % i for i in range(draw.choice([0, 90]))], draw))
    elif kind == "set":
        shutil.rmtree(folder / "set", ignore_errors=True)
        version = draw.choice([1, 2])
        write_set(folder / "set", changed_records(some_records(20, longest=12), draw), 512, version)
        given |= {"source": "cpm-live", "path": "set"} | ({"block_size": 512} if version == 1 else {})
    else:
        keys = ("text",) if kind == "jsonl" else ("input", "target")
        objects = [{key: "".join(draw.choices("abcdef ", k=9)) for key in keys} for _ in range(30)]
        lines = changed_objects(objects, draw)
        (folder / "odd.txt").write_bytes(changed_lines(lines, draw) if draw.random() < 0.3 else b"\n".join(lines))
    passes = draw.choice([[{"pass": "train", "steps": 1}], scored(draw)])
    files = {"odd.txt", "set", "data_0", "meta.bin", "/data/max_length"}
    return command(folder, draw, {"config": SMALL, "checkpoint": "state.pt"}, given, passes), files


def scored(draw: random.Random) -> list[dict[str, Any]]:
    unit, target = draw.choice(
        [("head", {"num_heads": 2}), ("dim_ff", {"sparsity": 0.4}), ("block", {"num_layers": 1})]
    )
    look = {"criterion": draw.choice(["magnitude", "magnitude", "taylor", "reconstruction"]), "batches": 1}
    look = look if look["criterion"] != "magnitude" else {"criterion": "magnitude"}
    return [{"pass": "score-mask", "unit": unit, "target": target, **look}]


def write(named: list[tuple[str, Tensor]], path: Path, draw: random.Random) -> None:
    if path.suffix == ".safetensors":
        write_safetensors(named, path)
    else:
        write_pickled(named, path, draw)


def command(
    folder: Path, draw: random.Random, model: dict[str, Any], look: dict[str, Any], passes: list[dict[str, Any]]
) -> list[str]:
    """`validate` or `run` of a plan, from nothing."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    plan = {"name": "odd", "model": model, "data": look, "passes": passes}
    plan |= {"evaluate": {"tokens": 40}} if draw.random() < 0.3 else {}
    (folder / "plan.json").write_text(json.dumps(plan))
    if draw.random() < 0.1:
        return spoken(["validate", str(folder / "plan.json")], draw)
    return spoken(["run", str(folder / "plan.json"), "--out", str(folder / "out")], draw)


def spoken(arguments: list[str], draw: random.Random) -> list[str]:
    return [*arguments, "--json"] if draw.random() < 0.4 else arguments


KINDS: dict[str, Case] = {
    "weights": weights,
    "directories": directories,
    "teachers": teachers,
    "masks": masks,
    "data": data,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The good files that the cases are made of, and those that stay good."""
    folder = tmp_path_factory.mktemp("contents")
    state = tiny_model(num_layers=2).state_dict()
    torch.save(state, folder / "state.pt")
    torch.save(state, folder / "native.pt")
    torch.save(stock(state), folder / "stock.pt")
    (folder / "good.txt").write_bytes(b"\n".join(some_text(random.Random(0))))
    return folder


def stock(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of Hugging Face's class that is this model."""
    found: dict[str, Tensor] = {}
    places: dict[str, Part] = parts(tiny_config(num_layers=2), [STOCK_PREFIX])
    for ours, place in sorted(places.items(), key=lambda item: item[1].rows or (0, 0)):
        part = state[ours] / place.factor
        found[place.name] = torch.cat([found[place.name], part]) if place.name in found else part
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("long", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["short", "long"])
def test_odd_contents_end_in_a_result_or_a_message(
    kind: str, long: bool, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = Counter[int]()
    for seed in range(CASES[kind][0] * long, CASES[kind][long]):  # the long form goes on where the short one ends
        torch.manual_seed(seed)
        arguments, files = KINDS[kind](folder, random.Random(seed))
        codes[ends(arguments, files, capsys, naming=(3,))] += 1
    assert min(codes[0] + codes[4], codes[1] + codes[3]) > sum(codes.values()) // 10, codes


def test_the_long_form_has_five_hundred_cases() -> None:
    assert sum(long - short for short, long in CASES.values()) >= 500
    assert sum(short for short, _ in CASES.values()) >= 60
