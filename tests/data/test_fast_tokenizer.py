"""A tokenizer.json and what stands beside it: broken ones are refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from sprunec.data.fast_tokenizer import read_fast_tokenizer
from sprunec.errors import InputError


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("tokenizer_config.json", '{"eos_token": ', r"tokenizer_config\.json:1:15: error: this is not"),
        ("tokenizer_config.json", "[1]", r"tokenizer_config\.json: error: is no JSON object"),
        ("tokenizer.json", "{", r"tokenizer\.json: error: is no tokenizer"),
        ("tokenizer.json", "[]", r"tokenizer\.json: error: is no tokenizer"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, text: str, said: str) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=said):
        read_fast_tokenizer(tmp_path / "tokenizer.json")
