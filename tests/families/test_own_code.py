"""Classes that a directory brings: refused, or run without a trace of them in the user's home."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from sprunec.compiler.inspect import inspect_model
from sprunec.compiler.lower import lower
from sprunec.errors import InputError
from sprunec.families.own_code import FLAG, adopt, brings_code, code_files, is_trusted, trusted
from sprunec.plan.plan import check_plan, read_plan
from tests.helpers.causal_lms import causal_lm
from tests.helpers.own_models import CLASSES, MODELING, copied, give_own_code
from tests.helpers.small_plans import plan, write

ROOT = Path(__file__).parents[2]
PASSES = ({"pass": "emit", "formats": ["huggingface"]},)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("llama") / "dense"
    causal_lm("llama").save_pretrained(directory)
    return directory


@pytest.fixture
def own(llama: Path, tmp_path: Path) -> Path:
    return give_own_code(copied(llama, tmp_path / "dense"))


def document(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "config.json").read_text())


def told(directory: Path) -> list[tuple[str, str, str]]:
    content = {"name": "n", "model": {"path": directory.name}, "passes": [*PASSES]}
    found = check_plan(write(directory.parent, content))[1]
    return [(each.severity, each.code, each.message) for each in found]


def test_a_directory_with_code_is_refused_until_it_is_trusted(own: Path) -> None:
    message = "the model's classes are Python files in its directory, which are not run unless you say so"
    assert told(own) == [("error", "remote-code", message)]
    with pytest.raises(InputError, match=f"read them, and give {FLAG}, which runs them as you"):
        inspect_model(own)
    with trusted():
        assert message not in [each[2] for each in told(own)]
        assert code_files(own) == (own / "configuration_own.py", own / "modeling_own.py")


def test_classes_are_found_by_their_type_once_they_are_registered(own: Path) -> None:
    with trusted():
        adopt(own, document(own))
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**document(own)))
    assert type(model).__name__ == "OwnForCausalLM"
    assert type(model.config).__name__ == "OwnConfig"
    assert model.factor == 2.0


def test_a_directory_of_the_same_name_has_classes_of_its_own(own: Path, tmp_path: Path) -> None:
    other = copied(own, tmp_path / "other/dense")
    (other / "modeling_own.py").write_text(MODELING.replace("2.0", "3.0"))
    found = []
    for directory in (own, other, own):
        with trusted():
            adopt(directory, document(directory))
            found.append(AutoModelForCausalLM.from_config(AutoConfig.for_model(**document(directory))).factor)
    assert found == [2.0, 3.0, 2.0]


def test_what_a_class_imports_late_is_found_without_a_path(own: Path) -> None:
    late = "    def say(self):\n        from .configuration_own import OwnConfig as late\n        return late\n"
    (own / "modeling_own.py").write_text(MODELING + late)
    before = [*sys.path]
    with trusted():
        adopt(own, document(own))
        assert sys.path == before
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**document(own)))
        assert model.say() is type(model.config)


def test_a_class_of_the_library_s_may_have_another_s_config(own: Path) -> None:
    changed = document(own) | {"model_type": "llama", "auto_map": {"AutoModelForCausalLM": "modeling_own.OfLlama"}}
    code = "from transformers import LlamaForCausalLM\nclass OfLlama(LlamaForCausalLM): ..."
    (own / "modeling_own.py").write_text(code)
    known = dict(AutoModelForCausalLM._model_mapping._extra_content)
    try:
        with trusted():
            adopt(own, changed)
            assert type(AutoModelForCausalLM.from_config(AutoConfig.for_model(**changed))).__name__ == "OfLlama"
    finally:
        AutoModelForCausalLM._model_mapping._extra_content = known


def test_nothing_is_left_behind(own: Path, tmp_path: Path) -> None:
    code = (
        "import os, sys, tempfile, pathlib, json\n"
        "from sprunec.families.own_code import *\n"
        "directory = pathlib.Path(sys.argv[1])\n"
        "before = list(sys.path)\n"
        "with trusted():\n"
        "    adopt(directory, json.loads((directory / 'config.json').read_text()))\n"
        "    assert len(os.listdir(tempfile.gettempdir())) == 1\n"
        "assert sys.path == before and not [name for name in sys.modules if 'transformers_modules' in name]\n"
    )
    (tmp_path / "tmp").mkdir()
    about = {"HF_HOME": str(tmp_path / "cached"), "HOME": str(tmp_path / "cached"), "TMPDIR": str(tmp_path / "tmp")}
    about = os.environ | about | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    about.pop("HF_MODULES_CACHE", None)
    done = subprocess.run([sys.executable, "-c", code, own], env=about, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "tmp").iterdir())
    assert not list((tmp_path / "cached").rglob("*modul*"))


@pytest.mark.parametrize("place", [0, 1, None], ids=["first", "behind one", "last"])
def test_code_in_the_user_s_own_cache_hides_no_other(place: int | None, own: Path, tmp_path: Path) -> None:
    """Wherever that cache is among the paths, and whether or not it has been imported from."""
    (tmp_path / "cache/transformers_modules").mkdir(parents=True)
    (tmp_path / "cache/transformers_modules/__init__.py").touch()
    before = [*sys.path]
    sys.path.insert(len(before) if place is None else place, str(tmp_path / "cache"))
    paths = [*sys.path]
    try:
        with trusted():
            adopt(own, document(own))
            assert AutoModelForCausalLM.from_config(AutoConfig.for_model(**document(own))).factor == 2.0
        assert sys.path == paths
    finally:
        sys.path[:] = before


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        (CLASSES | {"AutoModelForCausalLM": "modeling_gone.X"}, MODELING, "names modeling_gone.X as AutoModel"),
        (CLASSES | {"AutoConfig": "../x.OwnConfig"}, MODELING, r"its auto_map has \.\./x\.OwnConfig as AutoConfig"),
        (CLASSES | {"AutoConfig": "a/b--c.OwnConfig"}, MODELING, r"its auto_map has a/b--c\.OwnConfig as AutoConfig"),
        (CLASSES | {"AutoModelForCausalLM": 3}, MODELING, "its auto_map has 3 as AutoModelForCausalLM"),
        (CLASSES, "raise ValueError('no\\nway')", "the model's own code cannot be used: ValueError: no way"),
        (CLASSES, "import sys; sys.exit(4)", "the model's own code cannot be used: SystemExit: 4"),
        (CLASSES, "import no_such_package", "ImportError: .*no_such_package"),
        (CLASSES, "class Other: ...", "AttributeError: .*OwnForCausalLM"),
        (CLASSES, "x = (", "SyntaxError: '\\(' was never closed"),
        (CLASSES, "from .configuration_own import OwnConfig\nclass OwnForCausalLM: config_class = int", "ValueError"),
    ],
    ids=["missing", "elsewhere", "other model", "number", "raises", "exits", "needs", "lacks", "syntax", "no model"],
)
def test_code_that_cannot_be_used_is_one_error(own: Path, changes: dict[str, Any], code: str, said: str) -> None:
    (own / "modeling_own.py").write_text(code)
    give = document(own) | {"auto_map": changes}
    (own / "config.json").write_text(json.dumps(give))
    with trusted(), pytest.raises(InputError, match=said) as caught:
        inspect_model(own)
    assert len(caught.value.diagnostics) == 1
    assert caught.value.diagnostics[0].file == str(own / "config.json")
    assert not is_trusted()


def test_the_library_s_class_is_used_where_it_has_one(llama: Path, tmp_path: Path) -> None:
    both = give_own_code(copied(llama, tmp_path / "dense"), model_type="llama")
    assert brings_code(document(both))
    message = "the model brings classes of its own; those of transformers are used instead"
    assert told(both) == [("warning", "stock-class", message)]
    assert code_files(both) == ()
    model = read_plan(both.parent / "plan.json").model
    assert "auto_map" not in model.config.to_dict()["config"]


def test_code_counts_in_the_digest(own: Path) -> None:
    """Of the model that is loaded; here by a family that is known, since its graph can be made."""
    (own / "configuration_own.py").write_text("from transformers import LlamaConfig as OwnConfig")
    (own / "config.json").write_text(json.dumps(document(own) | {"model_type": "llama"}))
    path, digests = write(own.parent, plan(*PASSES, model={"path": "dense"})), []
    known = dict(AutoModelForCausalLM._model_mapping._extra_content)
    try:
        for factor in ("2.0", "3.0", "2.0"):
            (own / "modeling_own.py").write_text(MODELING.replace("2.0", factor))
            with trusted():
                nodes = lower(read_plan(path)).nodes
            assert {file.name for node in nodes for file in node.files.get("beside", ())} >= {"modeling_own.py"}
            digests.append([node.digest for node in nodes])
    finally:
        AutoModelForCausalLM._model_mapping._extra_content = known
        AutoConfig.register("llama", type(AutoConfig.for_model("llama")), exist_ok=True)
    assert digests[0] == digests[2]
    assert not set(digests[0]) & set(digests[1]) - {digests[0][0]}  # the data is the same


def test_the_command_line_alone_trusts(own: Path, tmp_path: Path) -> None:
    path = write(tmp_path, plan(*PASSES, model={"path": "dense"}))
    commands = (["validate", path], ["run", path, "--out", tmp_path / "out"], ["inspect", own])
    for command in (*commands, [*commands[0], FLAG], [*commands[2], FLAG]):
        about = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cached")}
        whole = [sys.executable, "-m", "sprunec", *map(str, command)]
        done = subprocess.run(whole, env=about, capture_output=True, text=True, check=False)
        assert ("which are not run unless you say so" in done.stderr) == (FLAG not in command), done.stderr
        assert "Traceback" not in done.stderr
        assert done.returncode == (0 if FLAG in command else 3), done.stderr
    assert not (tmp_path / "cached").exists() or not list((tmp_path / "cached").rglob("*modul*"))
