"""Weights that are no floats: refused by name wherever a model comes in, and quantised checkpoints by that name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import sprunec
from sprunec.checkpoint.dtypes import dtype_refusal
from sprunec.checkpoint.header import Header
from sprunec.checkpoint.writer import write_state
from sprunec.cli import main
from sprunec.compiler.inspect import inspect_model
from sprunec.errors import InputError
from sprunec.families.fit import check_dtypes
from sprunec.passes import load
from sprunec.passes.job import Job
from sprunec.plan.plan import check_plan, read_plan
from tests.conftest import tiny_config, tiny_model
from tests.helpers.small_plans import EMIT, TINY, TRAIN, execute, plan, write

State = dict[str, Tensor]
HALF = {"pass": "score-mask", "criterion": "magnitude", "unit": "head", "target": {"num_heads": 2}}
PROJECTION = "encoder.layers.0.self_att.self_attention.project_q"
WEIGHT, TABLE = f"{PROJECTION}.weight", "position_bias.relative_attention_bias"
NORM = "encoder.output_layernorm.weight"
SAVE = "save it as float32, float16, bfloat16 or float64"
KINDS = {
    torch.int64: [".pt", ".safetensors"],
    torch.bool: [".pt", ".safetensors"],
    torch.uint8: [".pt", ".safetensors"],
    torch.int8: [".pt"],
    torch.int32: [".safetensors"],
    torch.float8_e4m3fn: [".pt", ".safetensors"],
    torch.float8_e5m2: [".pt", ".safetensors"],
    torch.complex64: [".pt", ".safetensors"],
}
# What stands there where the weight of one projection was (N, D): tensors by the ends of their names.
PACKED = torch.zeros(3, 24, dtype=torch.int32)
BYTES = torch.zeros(288, 1, dtype=torch.uint8)
QUANTISED: dict[str, State] = {
    "GPTQ, AWQ": {"qweight": PACKED, "qzeros": PACKED, "scales": torch.ones(1, 24).half()},
    "bitsandbytes": {
        "weight": BYTES,
        "weight.absmax": torch.ones(9),
        "weight.quant_map": torch.ones(16),
        "weight.quant_state.bitsandbytes__nf4": torch.zeros(80, dtype=torch.uint8),
    },
    "bitsandbytes ": {"weight": torch.zeros(24, 24, dtype=torch.int8), "SCB": torch.ones(24)},
    "compressed-tensors": {"weight_packed": PACKED, "weight_scale": torch.ones(24, 1), "weight_shape": PACKED[0, :2]},
    "whole numbers or float8, and their scales": {
        "weight": torch.zeros(24, 24, dtype=torch.int8),
        "weight_scale": torch.ones(24, 1),
    },
    "whole numbers or float8, and their scales ": {
        "weight_scale_inv": torch.ones(1, 1),
        "weight": torch.zeros(24, 24).to(torch.float8_e4m3fn),
    },
    "BMInf": {"weight_quant": torch.zeros(24, 24, dtype=torch.int8), "weight_scale": torch.ones(24, 1)},
    "quanto": {"weight._data": torch.zeros(24, 24, dtype=torch.int8), "weight._scale": torch.ones(24, 1)},
    "HQQ": {"W_q": BYTES, "meta": torch.ones(2)},
}


def saved(path: Path, state: State) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: tensor.clone() for name, tensor in state.items()}, path)
    else:
        torch.save(state, path)
    return path


def of_dtype(dtype: torch.dtype, *names: str) -> State:
    """TINY's weights, some of them in another dtype."""
    state = tiny_model().state_dict()
    return state | {name: state[name].to(dtype) for name in names}


def quantised(tensors: State) -> State:
    state = tiny_model().state_dict()
    del state[WEIGHT]
    return state | {f"{PROJECTION}.{name}": tensor for name, tensor in tensors.items()}


def content(name: str, **model: Any) -> dict[str, Any]:
    whole = plan(HALF, EMIT, model={"config": TINY, "checkpoint": name} | model)
    return {key: value for key, value in whole.items() if key not in ("data", "evaluate")}


def told(folder: Path, document: dict[str, Any]) -> list[tuple[str, str, str]]:
    found = check_plan(write(folder, document))[1]
    return [(each.pointer, each.code, f"{each.message}; {each.hint}".replace(str(folder), "~")) for each in found]


def loaded(folder: Path, name: str) -> None:
    """The pass alone, which sees what a plan cannot."""
    (folder / "loaded").mkdir(exist_ok=True)
    job = Job(
        load.LoadOptions(config=tiny_config().to_dict()),
        {},
        {"checkpoint": (folder / name,)},
        folder / "loaded",
        "cpu",
        print,
    )
    load.run(job)


@pytest.mark.parametrize(
    ("dtype", "suffix"), [(dtype, suffix) for dtype, suffixes in KINDS.items() for suffix in suffixes], ids=str
)
def test_a_weight_that_is_no_float_is_refused_everywhere(dtype: torch.dtype, suffix: str, tmp_path: Path) -> None:
    names = [WEIGHT, TABLE] if suffix == ".pt" else [NORM]
    saved(tmp_path / f"m{suffix}", of_dtype(dtype, *names))
    word, more = str(dtype).removeprefix("torch."), " (and 1 more)" if len(names) > 1 else ""
    message = f"{names[0]}{more} is {word}, and weights are floats; {SAVE}"
    only_torch = suffix == ".pt" and not (dtype == torch.bool or str(dtype).startswith(("torch.int", "torch.uint")))
    known = [("/model/checkpoint", "checkpoint-dtype", f"~/m{suffix}: {message}")]
    assert told(tmp_path, content(f"m{suffix}")) == ([] if only_torch else known)
    for read in (lambda: inspect_model(tmp_path / f"m{suffix}"), lambda: loaded(tmp_path, f"m{suffix}")):
        with pytest.raises(InputError) as caught:
            read()
        assert str(caught.value) == f"{tmp_path / f'm{suffix}'}: error: {message}"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_floats_of_any_width_are_read(dtype: torch.dtype, tmp_path: Path) -> None:
    saved(tmp_path / "m.pt", of_dtype(dtype, WEIGHT, NORM))
    assert told(tmp_path, content("m.pt")) == []
    loaded(tmp_path, "m.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kind", QUANTISED)
def test_a_quantised_checkpoint_is_called_one(kind: str, suffix: str, tmp_path: Path) -> None:
    state = quantised(QUANTISED[kind])
    saved(tmp_path / f"m{suffix}", state)
    start = f"this checkpoint is quantised: it has {PROJECTION}."
    end = f" ({kind.strip()}); give what it was made of, or dequantise it and save that as float32"
    readers = [lambda: inspect_model(tmp_path / f"m{suffix}"), lambda: loaded(tmp_path, f"m{suffix}")]
    if not (kind.endswith("scales ") and suffix == ".pt"):
        ((pointer, _, message),) = told(tmp_path, content(f"m{suffix}"))
        assert pointer == "/model/checkpoint"
        assert start in message and end in message
    for read in readers:
        with pytest.raises(InputError) as caught:
            read()
        assert start in str(caught.value) and end in str(caught.value)


def test_scales_beside_floats_and_other_families_are_told_as_such() -> None:
    floats = {WEIGHT: "float32", f"{PROJECTION}.weight_scale": "float32", "encoder.scale": "float32"}
    assert dtype_refusal(floats, [WEIGHT]) is None
    assert dtype_refusal({"encoder.scale": "int64", "encoder.steps": "int64"}, [WEIGHT]) is None
    llama = Header({"model.layers.0.self_attn.q_proj.qweight": PACKED})
    words = "these are Llama's tensors (model.layers.0.self_attn.q_proj.qweight)"
    with pytest.raises(InputError) as caught:
        check_dtypes(llama, Path("llama.pt"))
    assert str(caught.value).startswith(f"llama.pt: error: {words}; sprunec prunes CPM-Ant")


def test_a_teacher_follows_the_same_rule(tmp_path: Path) -> None:
    saved(tmp_path / "teacher.safetensors", of_dtype(torch.int64, NORM))
    tune = TRAIN | {"distillation": {"logits": 1.0, "teacher": "teacher.safetensors"}}
    ((pointer, code, message),) = told(tmp_path, plan(tune, EMIT, model={"config": TINY}))
    assert (pointer, code) == ("/passes/0/distillation/teacher", "checkpoint-dtype")
    assert message == f"~/teacher.safetensors: {NORM} is int64, and weights are floats; {SAVE}"


def test_a_head_and_hugging_face_names_follow_the_same_rule(tmp_path: Path) -> None:
    config = TINY | {"tie_word_embeddings": False}
    state = tiny_model(tie_word_embeddings=False).state_dict()
    saved(tmp_path / "m.pt", state | {"lm_head.weight": state["lm_head.weight"].to(torch.int64)})
    ((_, _, message),) = told(tmp_path, content("m.pt", config=config))
    assert message.startswith("~/m.pt: lm_head.weight is int64")
    own = {f"model.{name}": tensor for name, tensor in of_dtype(torch.bool, NORM).items()}
    saved(tmp_path / "own.safetensors", own)
    ((_, _, message),) = told(tmp_path, content("own.safetensors"))
    assert message.startswith(f"~/own.safetensors: model.{NORM} is bool")


def test_a_directory_follows_the_same_rule_and_so_does_load(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_config().to_dict()))
    write_state(of_dtype(torch.uint8, TABLE), tmp_path, shard_bytes=20_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    message = rf"{TABLE} is uint8, and weights are floats; {SAVE}"
    for read in (inspect_model, sprunec.load):
        with pytest.raises(InputError, match=message):
            read(tmp_path)
    found = told(tmp_path, plan(HALF, EMIT, model={"path": "."}))
    assert [(pointer, code) for pointer, code, _ in found] == [("/model/path", "checkpoint-dtype")]


def test_a_run_ends_with_3_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, dtype in (("m.safetensors", torch.int64), ("m.pt", torch.float8_e4m3fn), ("m.bin", torch.complex64)):
        saved(tmp_path / name, of_dtype(dtype, WEIGHT))
        out = tmp_path / f"out-{dtype}"
        monkeypatch.setattr("sys.argv", ["sprunec", "run", str(write(tmp_path, content(name))), "--out", str(out)])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 3
        assert f"{name}: " in (said := capsys.readouterr().err) and f"{WEIGHT} is {str(dtype)[6:]}," in said
        assert not list(out.glob("store/*/manifest.json"))


def test_whole_numbers_beside_the_model_are_no_weights(tmp_path: Path) -> None:
    extra = {"encoder.steps": torch.arange(3), "position_ids": torch.ones(3, dtype=torch.uint8)}
    saved(tmp_path / "m.pt", tiny_model().state_dict() | extra)
    assert told(tmp_path, content("m.pt")) == []
    saved(
        tmp_path / "m.pt",
        tiny_model().state_dict() | {"encoder.phases": torch.ones(3, dtype=torch.complex64)},
    )
    with pytest.raises(InputError, match=r"may change what it computes: encoder\.phases"):
        loaded(tmp_path, "m.pt")
    assert read_plan(write(tmp_path, content("m.pt"))).name == "small"


def test_a_refused_run_can_be_mended(tmp_path: Path) -> None:
    saved(tmp_path / "m.pt", of_dtype(torch.float8_e5m2, NORM))
    with pytest.raises(InputError, match=f"{NORM} is float8_e5m2"):
        execute(content("m.pt"), tmp_path)
    saved(tmp_path / "m.pt", tiny_model().state_dict())
    assert execute(content("m.pt"), tmp_path)["status"] == "done"
