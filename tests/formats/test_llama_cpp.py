"""What the released llama.cpp makes of GGUF files, opened as the format opens them: pip install 'sprunec[llamacpp]'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sprunec.compiler.lower import lower
from sprunec.errors import FormatError
from sprunec.execution.execute import execute
from sprunec.formats.gguf import SCRIPT
from sprunec.formats.huggingface import opened_apart
from sprunec.plan.plan import read_plan
from sprunec.units import Kept
from tests.formats.test_deci import GROUPED
from tests.formats.test_gguf import PLAIN, RAGGED, SCALED, WHOLE, said
from tests.formats.test_gguf_runs import DIMS, planned
from tests.helpers.causal_lms import causal_lm, token_ids
from tests.helpers.decilm import masked_logits
from tests.helpers.gguf_files import exported
from tests.runs.test_causal_lms import SCORED, directory

pytestmark = pytest.mark.slow
# Of logits: float32 rounds; gelu is looked up in a table of float16.
EXACT, LOOKED_UP = 2e-5, 5e-3
GELU = ("gemma2", "gemma3_text", "gpt2", "gpt_neox")


def by_llama_cpp(file: Path, ids: Tensor, steps: int = 0) -> Any:
    return opened_apart("gguf", SCRIPT, file, [ids], str(steps), library="llama.cpp")


@torch.no_grad()
def going_on(model: Any, ids: Tensor, steps: int) -> list[int]:
    """What transformers adds greedily."""
    found = model.generate(ids[None], do_sample=False, max_new_tokens=steps, min_new_tokens=steps)
    return [int(token) for token in found[0, len(ids) :]]


@pytest.mark.parametrize(("name", "architecture", "changes"), WHOLE, ids=lambda each: str(each)[:40])
def test_models_of_all_architectures_say_what_their_class_says(
    name: str, architecture: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    model, ids = causal_lm(name, **changes), token_ids(1, 30)[0]
    file, _ = exported(model, tmp_path)
    found = by_llama_cpp(file, ids, 16)
    wanted = said(model, ids)
    limit = (LOOKED_UP if name in GELU else EXACT) * wanted.abs().max()
    assert (found["logits"][0] - wanted).abs().max() < limit
    ahead = torch.tensor([*found["before"], *found["ids"]])
    best = said(model, ahead)[len(found["before"]) - 1 : -1]
    chosen = best.gather(1, torch.tensor(found["ids"])[:, None])[:, 0]
    assert (best.max(dim=1).values - chosen).max() < 2 * limit  # greedy, but for what is as likely


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("case", RAGGED)
def test_layers_may_be_unlike(name: str, case: str, tmp_path: Path) -> None:
    kept, ids = RAGGED[case], token_ids(1, 30)[0]
    sizes = {key: size for key, size in GROUPED.items() if name != "qwen2" or key != "head_dim"}
    model = causal_lm(name, **sizes, **PLAIN[name])
    file, _ = exported(model, tmp_path, kept)
    model.config.head_dim = 6
    model.config.save_pretrained(tmp_path / "dense")
    wanted = masked_logits(tmp_path / "dense", kept, ids)
    assert (by_llama_cpp(file, ids)["logits"][0] - wanted).abs().max() < EXACT * wanted.abs().max()


@pytest.mark.parametrize(("name", "scaling"), SCALED, ids=lambda each: str(each)[:24])
def test_scaled_positions_are_those_of_the_class(name: str, scaling: dict[str, Any], tmp_path: Path) -> None:
    trained = {"original_max_position_embeddings": 16} if scaling["rope_type"] != "linear" else {}
    changes: dict[str, Any] = {"rope_theta": 1000.0, "rope_scaling": scaling | trained}
    if name == "gemma3_text":
        changes |= {"num_hidden_layers": 6, "rope_local_base_freq": 500.0}
    model, ids = causal_lm(name, **changes, **({} if name == "gemma3_text" else trained)), token_ids(1, 40)[0]
    file, _ = exported(model, tmp_path)
    wanted = said(model, ids)
    limit = (LOOKED_UP if name in GELU else EXACT) * wanted.abs().max()
    assert (by_llama_cpp(file, ids)["logits"][0] - wanted).abs().max() < limit


def test_a_damaged_file_is_told_with_llama_cpp_s_own_words(tmp_path: Path) -> None:
    file, _ = exported(causal_lm("qwen2"), tmp_path)
    file.write_bytes(file.read_bytes().replace(b"qwen2.block_count", b"qwen2.block_cOunt"))
    with pytest.raises(FormatError, match="llama.cpp cannot open the format gguf: .*block_count"):
        by_llama_cpp(file, token_ids(1, 9)[0])


@pytest.mark.parametrize("kind", ["keep", "f16", "bf16", "q8_0"])
def test_a_run_has_llama_cpp_open_it(kind: str, tmp_path: Path) -> None:
    directory(tmp_path, "llama", **(GROUPED | PLAIN["llama"] | {"hidden_size": 64, "intermediate_size": 96}))
    whole = SCORED | {"unit": "layer", "target": {"num_attention": 2, "num_feed_forward": 2}, "budget": "global"}
    plan = planned(tmp_path, DIMS | {"multiple_of": {"dim_ff": 32}}, whole, gguf={"type": kind})
    report = execute(lower(read_plan(plan)), tmp_path / "out")
    assert report.status == "done", report.data["error"]
    form = report.data["formats"]["gguf"]
    assert form["runtime"] == "llama.cpp" and form["max_abs_difference"] <= form["tolerance"]
    greedy = form["greedy"]
    assert greedy["text"].startswith(greedy["small"]) and greedy["same"] <= greedy["tokens"] == 32
    assert kind != "keep" or greedy["same"] == 32


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the real model."""
    made = tmp_path_factory.mktemp("smollm2")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        import smollm2 as benchmark

        assert benchmark.make_directory(made / "given") == 0.0
    return made / "given"


# Of each layer: key-value groups of three, and feed-forward dims of 1,536.
REAL: dict[str, list[tuple[int, int]]] = {
    "dense": [(3, 1536)] * 30,
    "uniform": [(3, 1024)] * 30,
    "ragged": [([3, 3, 2, 3][i % 4] if i != 20 else 0, [1408, 1280, 1344, 1152][i % 4]) for i in range(30)],
}


@torch.no_grad()
def liveliest(model: Any, ids: Tensor, sizes: list[tuple[int, int]]) -> Kept:
    """Of each layer, the groups and dims whose activations are largest on a text."""
    inputs = dict[Any, Tensor]()

    def look(module: Any, given: tuple[Tensor, ...]) -> None:
        inputs[module] = given[0][0].square().sum(0)

    handles = [
        each.register_forward_pre_hook(look)
        for layer in model.model.layers
        for each in (layer.self_attn.o_proj, layer.mlp.down_proj)
    ]
    model(input_ids=ids[None])
    for handle in handles:
        handle.remove()
    found = []
    for layer, (groups, dims) in zip(model.model.layers, sizes, strict=True):
        down, squares = layer.mlp.down_proj, inputs[layer.self_attn.o_proj].view(3, -1).sum(1)
        chosen = sorted(squares.topk(groups).indices.tolist())
        heads = tuple(3 * group + place for group in chosen for place in range(3))
        attention = {"kv_group": tuple(chosen), "head": heads, "dim_head": tuple(range(64))} if groups else {}
        best = (inputs[down] * down.weight.square().sum(0)).topk(dims).indices
        found.append(attention | {"dim_ff": tuple(sorted(best.tolist()))})
    return Kept(found)


@pytest.mark.real
def test_a_real_model_and_its_cuts_are_as_close_as_the_whole_one(smollm2: Path, tmp_path: Path) -> None:
    """Of 64 tokens, at most 4 times as far as the dense file; and the same 32 follow."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = AutoTokenizer.from_pretrained(smollm2)("The capital of France is a city that " * 12, return_tensors="pt")
    ids, gaps = text.input_ids[0, :64], dict[str, float]()
    for name, sizes in REAL.items():
        (folder := tmp_path / name).mkdir()
        model: Any = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
        kept = liveliest(model, text.input_ids[0], sizes)
        file, about = exported(model, folder, kept)
        for layer, left in zip(model.model.layers, kept, strict=True):
            heads, dims = torch.zeros(9), torch.zeros(1536)
            heads[list(left.get("head", ()))], dims[list(left["dim_ff"])] = 1.0, 1.0
            layer.self_attn.o_proj.weight.data *= heads.repeat_interleave(64)
            layer.mlp.down_proj.weight.data *= dims
        found = by_llama_cpp(file, ids, 32)
        greedy = going_on(model, torch.tensor(found["before"]), 32)
        gaps[name] = float((found["logits"][0] - said(model, ids)).abs().max())
        print(name, about["architecture"], gaps[name])
        assert found["ids"] == greedy, name
    assert gaps["dense"] < 6e-5 and max(gaps["uniform"], gaps["ragged"]) < 4 * gaps["dense"]
