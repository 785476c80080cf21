"""Pairs to fine-tune on: what of a row is seen, what is asked, and how pairs come in batches."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sprunec.data.batches import IGNORED, TextData
from sprunec.data.pairs import PairData
from sprunec.data.tokenizer import Characters
from sprunec.errors import InputError
from sprunec.families.cpm_ant.inputs import proceed
from sprunec.passes.job import Job
from sprunec.passes.read_data import run
from tests.conftest import AS_IT_IS, TINY, tiny_config
from tests.data.test_batches import same
from tests.families.test_vocabulary import PIECES, SPECIAL, file_of

PROMPT, COLUMNS = TINY["prompt_length"], 17
PAIRS = [("abc", "de"), ("a", ""), ("", "edc"), ("abcdeabcdeabcde", "ab"), ("b", "abcdeabcde")]


def pair_file(folder: Path, pairs: list[tuple[str, str]], name: str = "pairs.jsonl") -> Path:
    path = folder / name
    lines = [json.dumps({"input": before, "target": after}, ensure_ascii=False) + "\n" for before, after in pairs]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def job_of(path: Path, files: dict[str, tuple[Path, ...]] | None = None, **changes: Any) -> Job:
    out = path.parent / f"out{len(list(path.parent.iterdir()))}"
    out.mkdir()
    options = {"source": "pairs", "held_out": 0.2, "max_length": COLUMNS, "room": COLUMNS - PROMPT}
    options |= {"vocab_size": TINY["vocab_size"], "batch_size": 3, "seed": 5} | AS_IT_IS | changes
    files = {"paths": (path,)} | (files or {})
    return Job(SimpleNamespace(**options), {"data": out}, files, out, "cpu", lambda event: None)


def pair_data(job: Job) -> PairData:
    run(job)
    data = job.data(tiny_config())
    assert isinstance(data, PairData)
    return data


def rows_of(data: PairData, batches: Any) -> list[str]:
    """Each row in words: what is seen, what is asked, with the marks written ^ and $."""
    said = []
    for batch in batches:
        for ids, context, target, length in zip(
            batch.inputs["input"], batch.inputs["context"], batch.targets, batch.inputs["length"], strict=True
        ):
            text = range(PROMPT, int(length))
            word = {data.tokenizer.begin: "^", data.tokenizer.end: "$"}
            seen = "".join(word.get(int(ids[i])) or data.tokenizer.decode([int(ids[i])]) for i in text if context[i])
            asked = [int(t) for t in target if t != IGNORED]
            said.append(seen + ">" + "".join(word.get(i) or data.tokenizer.decode([i]) for i in asked))
    return said


def test_an_input_is_seen_and_a_target_is_asked_with_its_end(tmp_path: Path) -> None:
    data = pair_data(job_of(pair_file(tmp_path, PAIRS[:3]), {"held_out": (pair_file(tmp_path, PAIRS[:3], "h"),)}))
    (batch,) = data.held_out_batches()
    assert rows_of(data, [batch]) == ["^abc>de$", "^a>$", "^>edc$"]
    inputs = batch.inputs
    assert inputs["input"][:, :PROMPT].tolist() == [[PROMPT + k for k in range(PROMPT)]] * 3
    assert inputs["segment"][0].tolist() == [0] * PROMPT + [2] * 7 + [0] * (COLUMNS - PROMPT - 7)
    assert inputs["context"][0].tolist() == [True] * (PROMPT + 4) + [False] * (COLUMNS - PROMPT - 4)
    assert inputs["length"].tolist() == [PROMPT + 7, PROMPT + 3, PROMPT + 5]
    assert batch.targets[1].tolist() == [IGNORED] * (PROMPT + 1) + [data.tokenizer.end] + [IGNORED] * 10
    assert inputs["input"][0, PROMPT + 7 :].tolist() == [0] * (COLUMNS - PROMPT - 7)


def test_long_inputs_lose_their_beginning_and_long_targets_are_left_out(tmp_path: Path) -> None:
    job = job_of(pair_file(tmp_path, PAIRS), {"held_out": (pair_file(tmp_path, [*PAIRS, ("a", "b" * 11)], "h"),)})
    metrics = run(job)
    assert (metrics["pairs"], metrics["held_out_pairs"]) == (5, 5)
    assert (metrics["dropped"], metrics["shortened"]) == (1, 4)
    data = job.data(tiny_config())
    assert isinstance(data, PairData)
    rows = rows_of(data, data.held_out_batches())
    assert rows[3] == "^cdeabcde>ab$" and rows[4] == "^>abcdeabcde$"
    assert max(int(batch.inputs["length"].max()) for batch in data.held_out_batches()) == COLUMNS


def test_every_epoch_shows_every_pair_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    pairs = [(chr(97 + i), chr(97 + i)) for i in range(15)]
    data = pair_data(job_of(pair_file(tmp_path, pairs)))
    assert (len(data.train), len(data.held_out)) == (12, 3)
    rows = rows_of(data, map(data.batch, range(12)))
    epochs = [rows[start : start + 12] for start in range(0, 36, 12)]
    assert all(sorted(epoch) == [f"^{c}>{c}$" for c in "abcdefghijkl"] for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != sorted(epochs[2])
    assert same(data.batch(7), PairData(data.train, data.held_out, data.tokenizer, data.packer, 3, 5).batch(7))


def test_an_epoch_shorter_than_a_batch_goes_round(tmp_path: Path) -> None:
    data = pair_data(job_of(pair_file(tmp_path, [("a", "b"), ("c", "d"), ("a", "d")]), held_out=0.3, batch_size=7))
    assert sorted(rows_of(data, [data.batch(0)])) in (["^a>b$"] * 4 + ["^c>d$"] * 3, ["^a>b$"] * 3 + ["^c>d$"] * 4)


def test_held_out_tokens_stop_at_a_pair(tmp_path: Path) -> None:
    data = pair_data(job_of(pair_file(tmp_path, [("a", "bcd")] * 20), held_out=0.5))
    counts = [sum(batch.target_count for batch in data.held_out_batches(n)) for n in (1, 4, 5, 12, 39, 40, 99)]
    assert counts == [4, 4, 8, 12, 40, 40, 40]


def test_marks_leave_the_ids_of_characters_alone(tmp_path: Path) -> None:
    data = pair_data(job_of(pair_file(tmp_path, PAIRS)))
    assert isinstance(data.tokenizer, Characters)
    assert data.tokenizer == Characters.build("abcde")
    assert (data.tokenizer.begin, data.tokenizer.end) == (7, 8)
    with pytest.raises(InputError, match="the text needs 9 tokens, vocab_size is 8"):
        run(job_of(tmp_path / "pairs.jsonl", vocab_size=8))


def test_a_vocabulary_file_gives_its_own_marks(tmp_path: Path) -> None:
    path = pair_file(tmp_path, [("北京", "大学")] * 5)
    job = job_of(path, {"tokenizer": (file_of(tmp_path, *SPECIAL, *PIECES),)})
    data = pair_data(job)
    row = data.batch(0).inputs["input"][0, PROMPT:].tolist()
    assert row[:5] == [6, 10, 11, 10 + PIECES.index("大学"), 7]
    sample = data.sample(48)
    given = proceed(tiny_config(), sample.document)
    assert (given["task"], given["context"], sample.stop) == (1, True, 7)
    assert data.decode([*given["input"][0].tolist(), 7]) == "北京"
    with pytest.raises(InputError, match=f"the vocabulary has {10 + len(PIECES)} tokens, vocab_size is 40"):
        run(job_of(path, {"tokenizer": (tmp_path / "vocab.txt",)}, vocab_size=40))


def test_text_too_is_cut_by_a_vocabulary_file(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("北京大学的学生在图书馆里读书。" * 20, encoding="utf-8")
    job = job_of(path, {"tokenizer": (file_of(tmp_path, *SPECIAL, *PIECES),)}, source="text", batch_size=2)
    metrics = run(job)
    assert metrics["vocabulary"] == len(SPECIAL) + len(PIECES)
    assert metrics["unknown_share"] == 0.0
    data = job.data(tiny_config())
    assert isinstance(data, TextData)
    assert "大学" in data.decode(data.train[:20].tolist())
    assert int(data.batch(0).targets.max()) > 10


@pytest.mark.parametrize("line", ['{"input": "a"}', '{"input": "a", "target": 3}', "[]", '{"text": "a"}'])
def test_a_line_that_is_no_pair_is_told_by_its_number(tmp_path: Path, line: str) -> None:
    path = pair_file(tmp_path, PAIRS)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(InputError, match=r'has no `(input|target)` string.*\{"input": "...", ') as told:
        run(job_of(path))
    assert told.value.diagnostics[0].line == len(PAIRS) + 1


def test_a_part_without_a_pair_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"pairs\.jsonl: error: the held-out part has no pair"):
        run(job_of(pair_file(tmp_path, PAIRS), held_out=0.01))
    with pytest.raises(InputError, match=r"pairs\.jsonl: error: the training part has no pair"):
        run(job_of(pair_file(tmp_path, [("a", "b" * 99)] * 5)))
    rest = pair_file(tmp_path, [], "rest.jsonl")
    with pytest.raises(InputError, match=r"rest\.jsonl: error: the held-out part has no pair"):
        run(job_of(pair_file(tmp_path, PAIRS), {"held_out": (rest,)}))


def test_what_follows_a_target_is_not_seen(tmp_path: Path) -> None:
    """Asked tokens must not see later ones: changing the last target changes no logit before it."""
    from tests.conftest import tiny_model

    data, model = pair_data(job_of(pair_file(tmp_path, [("abc", "de")] * 5))), tiny_model()
    inputs = data.batch(0).inputs
    changed = {name: tensor.clone() for name, tensor in inputs.items()}
    changed["input"][:, PROMPT + 5] = 3
    with torch.no_grad():
        before, after = model(**inputs)[0], model(**changed)[0]
    assert torch.equal(before[:, : PROMPT + 5], after[:, : PROMPT + 5])
    assert not torch.equal(before[:, PROMPT + 5], after[:, PROMPT + 5])
