"""What a class of transformers has against a config.json is one error that names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sprunec.compiler.inspect import inspect_model
from sprunec.errors import InputError
from sprunec.families.own_code import trusted
from tests.helpers.causal_lms import causal_lm
from tests.helpers.own_models import MODELING, give_own_code


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("llama")
    causal_lm("llama").save_pretrained(directory)
    return json.loads((directory / "config.json").read_text())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_act": "nonesuch"}, "KeyError: 'nonesuch'"),
        ({"rope_parameters": {"rope_type": "what"}}, "KeyError: 'what'"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps"),
        ({"layer_types": ["full"]}, "layer_type"),
        ({"pad_token_id": 4000}, "Padding_idx must be within num_embeddings"),
    ],
)
def test_a_config_that_the_class_refuses_is_an_input_error(
    saved: dict[str, Any], changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(saved | changes))
    with pytest.raises(InputError, match=f"its class cannot be built from its config.json: .*{said}"):
        inspect_model(tmp_path / "config.json")


def test_code_that_fails_once_it_is_built_is_an_input_error(saved: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(saved))
    give_own_code(tmp_path)
    fails = "    def __init__(self, config):\n        raise OSError('no\\nway')\n"
    (tmp_path / "modeling_own.py").write_text(MODELING + fails)
    with (
        trusted(),
        pytest.raises(InputError, match=r"its class cannot be built from its config\.json: OSError: no way"),
    ):
        inspect_model(tmp_path / "config.json")
