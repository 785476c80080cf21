"""The README.md beside an emitted model: what is in it is what the run knows, and it is the same when run again."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import PreTrainedModel

from sprunec.checkpoint.provenance import describe_origin
from sprunec.compiler.lower import lower
from sprunec.execution.execute import execute
from sprunec.execution.model_card import read_licence, written_plan
from sprunec.plan.plan import read_plan
from tests.helpers.small_plans import TRAIN, mask_pass, plan, write
from tests.helpers.small_plans import execute as run_plan
from tests.runs.test_causal_lms import SCORED, directory

THEIRS = "---\nlanguage: en\nlicense: apache-2.0\nbase_model: other/one\n---\n\n# Their own words\n"
GROUPS = SCORED | {"unit": "kv_group", "target": {"num_kv_groups": 1}}
BLOCKS = SCORED | {"unit": "block", "target": {"num_layers": 2}, "budget": "global"}
EMIT = {"pass": "emit", "formats": ["huggingface", "deci"]}


@pytest.fixture(scope="module")
def emitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a Llama with a card of its own has been cut, and emitted in both forms."""
    folder = tmp_path_factory.mktemp("card")
    given = directory(folder, "llama", num_hidden_layers=3, attention_bias=False)
    (given / "README.md").write_text(THEIRS)
    content = plan(GROUPS, BLOCKS, EMIT, name="small", model={"path": "dense"}, compare={"tokens": 100})
    assert execute(lower(read_plan(write(folder, content))), folder / "out").status == "done"
    return folder


def card(folder: Path, form: str = "huggingface") -> str:
    return (folder / "out/model" / form / "README.md").read_text(encoding="utf-8")


def report(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "out/report.json").read_text()))


def front_matter(text: str) -> dict[str, Any]:
    return dict(yaml.safe_load(text.split("---\n")[1]))


def rows(text: str) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.split("\n") if line[:1] == "|"]
    return {first: rest for first, *rest in cells}


def test_the_front_matter_names_base_and_licence(emitted: Path) -> None:
    tags = {"tags": ["pruned", "sprunec"], "base_model": "dense", "license": "apache-2.0"}
    assert front_matter(card(emitted)) == tags | {"library_name": "transformers"}
    assert front_matter(card(emitted, "deci")) == tags | {"library_name": "vllm"}
    assert "Their own words" not in card(emitted)


def test_sizes_losses_and_proof_are_the_run_s(emitted: Path) -> None:
    found, told = rows(card(emitted)), report(emitted)
    models, form = told["models"], told["formats"]["huggingface"]
    assert found["parameters"] == [f"{models[role]['parameters']:,}" for role in ("dense", "small")]
    assert (found["layers"], found["key-value groups"], found["heads"]) == (["3", "2"], ["2", "1"], ["6", "3"])
    assert found["key-value cache, bytes a token"] == ["480", "160"]
    for role in ("dense", "masked", "small"):
        sizes = f"{models[role]['parameters']:,}", f"{models[role]['loss']:.4f}", f"{models[role]['perplexity']:.2f}"
        assert found[role] == list(sizes)
    apart, limit = (f"{form[key]:.2g}" for key in ("max_abs_difference", "tolerance"))
    assert found["this directory, opened again, and the cut model"] == [apart, limit, str(form["tokens"])]
    gone = [layer for layer, heads in told["kept"]["attention"].items() if heads is None]
    assert [layer for layer in "012" if found[layer] == ["absent"] * 4] == gone
    assert "stored in float32" in card(emitted)


def test_the_code_opens_the_directory(emitted: Path) -> None:
    code = re.findall(r"```python\n(.*?)```", card(emitted), re.DOTALL)[0]
    names: dict[str, Any] = {}
    exec(code.replace("path/to/this/directory", str(emitted / "out/model/huggingface")), names)
    assert isinstance(names["model"], PreTrainedModel)
    assert names["tokenizer"]("The for")["input_ids"]
    assert "trust_remote_code" not in code
    assert 'LLM("path/to/this/directory", trust_remote_code=True)' in card(emitted, "deci")


def test_the_plan_in_it_is_the_plan(emitted: Path, tmp_path: Path) -> None:
    (text,) = re.findall(r"```json\n(.*?)```", card(emitted), re.DOTALL)
    shutil.copytree(emitted / "dense", tmp_path / "dense")
    shutil.copy(emitted / "dense/tokenizer.json", tmp_path)
    again, before = read_plan(write(tmp_path, json.loads(text))), read_plan(emitted / "plan.json")
    assert [(spec.name, spec.options) for spec in again.passes] == [(spec.name, spec.options) for spec in before.passes]
    assert (again.seed, again.evaluate_tokens, again.compare_tokens, again.name) == (7, 300, 100, "small")
    assert again.data is not None and before.data is not None
    assert (again.data.source, again.data.batch_size) == (before.data.source, before.data.batch_size)
    assert str(emitted) not in card(emitted)


def test_it_is_the_same_when_run_again_and_part_of_what_was_emitted(emitted: Path, tmp_path: Path) -> None:
    shutil.copytree(emitted, tmp_path / "copy")
    folder = tmp_path / "copy"
    before = {path.relative_to(folder): path.read_bytes() for path in (folder / "out/model").rglob("*.md")}
    shutil.rmtree(folder / "out/model")
    assert execute(lower(read_plan(folder / "plan.json")), folder / "out").status == "done"
    assert {path.relative_to(folder): path.read_bytes() for path in (folder / "out/model").rglob("*.md")} == before
    assert all(entry["cached"] for entry in report(folder)["passes"])
    about = describe_origin(folder / "out/model/huggingface")
    assert about is not None and about["files"] == "as emitted"


def test_cpm_ant_has_one_too_and_says_whose_code_runs(tmp_path: Path) -> None:
    heads = mask_pass("head", {"num_heads": 3})
    run_plan(plan(TRAIN, heads, {"pass": "emit", "formats": ["sprunec", "huggingface"]}), tmp_path)
    text = card(tmp_path)
    assert front_matter(text) == {"library_name": "transformers", "tags": ["pruned", "sprunec"]}
    assert "# small, pruned" in text and "trust_remote_code=True" in text
    assert "It brings its own code, since no class of transformers can be it: " in text
    assert not (tmp_path / "out/model/sprunec/README.md").exists()


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("", {}),
        ("# A model\nlicense: mit\n", {}),
        ("---\nlicense: mit\n---\ntext", {"license": "mit"}),
        ("---\r\nlicense: 'mit'\r\n---\r\n", {"license": "mit"}),
        ("---\nlicense: [mit, bsd]\n---\n", {}),
        ("---\ntags:\n  license: mit\n---\n", {}),
        (
            "---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE\n---\n",
            {"license": "other", "license_name": "own"},
        ),
        (
            "---\nlicense: other\nlicense_link: https://a.b/c\n---\n",
            {"license": "other", "license_link": "https://a.b/c"},
        ),
        ("---\nlicense: mit\n", {}),
        ("---\nlicense: \udcff\n---\nlicense: mit\n", {"license": "\ufffd"}),
    ],
)
def test_a_licence_is_read_from_front_matter_alone(text: str, licence: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert read_licence(tmp_path) == licence


def test_a_directory_without_a_card_has_no_licence(tmp_path: Path) -> None:
    assert read_licence(tmp_path) == read_licence(tmp_path / "nowhere") == {}
    (tmp_path / "README.md").mkdir()
    assert read_licence(tmp_path) == {}


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (
            {"source": "datasets", "name": "org/books", "subset": "old", "split": "train", "paths": ["/cache/books"]},
            {"source": "datasets", "path": "org/books", "subset": "old"},
        ),
        (
            {"source": "jsonl", "name": "", "column": "content", "packing": "documents", "paths": ["/data/a.jsonl"]},
            {"source": "jsonl", "path": ["a.jsonl"], "column": "content", "packing": "documents"},
        ),
        (
            {"source": "pairs", "name": "", "template": "chat", "paths": ["/data/chats.jsonl"], "held_out": "/b/c"},
            {"source": "pairs", "path": ["chats.jsonl"], "template": "chat", "held_out": "c"},
        ),
    ],
    ids=["a data set by its name", "packed documents", "chats"],
)
def test_every_source_of_data_is_written_as_users_write_it(data: dict[str, Any], wanted: dict[str, Any]) -> None:
    resolved: dict[str, Any] = {
        "name": "n",
        "seed": 1,
        "model": {"config": {}},
        "data": data,
        "engine": {"precision": "fp32"},
        "passes": [],
    } | dict.fromkeys(("evaluate_tokens", "compare_tokens", "checkpoint_name"))
    assert written_plan(resolved, "base")["data"] == wanted
