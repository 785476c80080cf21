"""The data pass on CPM-Live's sets and on texts: what it counts, keeps and refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sprunec.bmcook.data.set_writer import write_dataset
from sprunec.bmcook.data.sets import read_set
from sprunec.bmcook.data.stream import LiveData
from sprunec.compiler.lower import lower
from sprunec.data.saved import SavedIds
from sprunec.errors import InputError
from sprunec.passes.job import Job
from sprunec.passes.read_data import run
from sprunec.plan.plan import read_plan
from tests.conftest import AS_IT_IS, tiny_config
from tests.helpers.live_sets import some_records
from tests.helpers.naive import COLUMNS, PROMPT, ROWS, WORDS
from tests.helpers.small_plans import TRAIN, plan, write


def data_job(folder: Path, out: Path, **changes: Any) -> Job:
    out.mkdir()
    options = {"source": "cpm-live", "held_out": 0.25, "max_length": COLUMNS, "room": COLUMNS - PROMPT}
    options |= {"vocab_size": WORDS, "block_size": 1024}
    options["of_model"] = {"prompt_length": PROMPT, "prompt_types": 4, "segment_types": 6}
    options |= {"order": "shuffled", "packed_prompts": "text-table", "batch_size": ROWS, "seed": 3} | changes
    files = {"paths": (folder / "meta.bin", *read_set(folder, 1024).paths)}
    return Job(SimpleNamespace(**options), {"data": out}, files, out, "cpu", lambda event: None)


def test_the_data_pass_counts_what_it_leaves_out_and_copies_nothing(tmp_path: Path) -> None:
    long, short, silent = [2, 1, 60, 2, 1, *[10] * 60], [2, 1, 1, 2, 1, 10], [3, 1, 2, 1, 3, 10, 11]
    records = [long, *some_records(30), short, silent, *some_records(10, seed=5), long]
    write_dataset(tmp_path / "set", records, block_size=1024)
    job = data_job(tmp_path / "set", tmp_path / "out")
    metrics = run(job)
    used = some_records(30) + some_records(10, seed=5)
    tokens = [len(record) - 5 for record in used]
    assert metrics == {
        "records": 44,
        "dropped": 4,
        "too_long": 2,
        "short_segment": 1,
        "nothing_asked": 1,
        "training_tokens": sum(tokens[:30]),
        "held_out_tokens": sum(tokens[30:]),
    }
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["held_out.npy", "set.json", "train.npy"]
    data = job.data(tiny_config())
    assert isinstance(data, LiveData)
    assert [r.tokens.tolist() for r in (*data.train, *data.held_out)] == [record[5:] for record in used]
    assert data.sample(48) is None
    assert data.batch(2).targets.shape == (ROWS, COLUMNS)


def test_prompts_beyond_the_words_need_the_prompt_table(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", some_records(30, words=14), block_size=1024)
    with pytest.raises(InputError, match=r'looked up among 14 tokens; set data.packed_prompts to "prompt-table"'):
        run(data_job(tmp_path / "set", tmp_path / "out", vocab_size=14))
    assert run(data_job(tmp_path / "set", tmp_path / "b", vocab_size=14, packed_prompts="prompt-table"))["records"]


def test_a_part_without_a_record_is_an_input_error(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", [[2, 1, 1, 2, 1, 10]] * 3 + some_records(1), block_size=1024)
    with pytest.raises(InputError, match="none of the 0 records of the held_out part can be used"):
        run(data_job(tmp_path / "set", tmp_path / "out"))


@pytest.mark.parametrize(
    ("text", "rest", "told"),
    [
        ("", None, "a.txt: error: the training part has 0 tokens"),
        ("x", None, "a.txt: error: the training part has 1 tokens"),
        ("x" * 50, None, "a.txt: error: the held-out part has 0 tokens"),
        ("x" * 50, "y", "rest.txt: error: the held-out part has 1 tokens"),
        ("".join(map(chr, range(300, 400))), "yy", "a.txt: error: the text needs 102 tokens, vocab_size is 97"),
    ],
    ids=["nothing", "one character", "no share", "a file of one", "too many words"],
)
def test_too_little_text_or_too_much_in_it_names_the_file(
    tmp_path: Path, text: str, rest: str | None, told: str
) -> None:
    (tmp_path / "a.txt").write_text(text)
    files = {"paths": (tmp_path / "a.txt",)}
    if rest is not None:
        (tmp_path / "rest.txt").write_text(rest)
        files |= {"held_out": (tmp_path / "rest.txt",)}
    options = {"source": "text", "held_out": 0.001, "vocab_size": 97} | AS_IT_IS
    with pytest.raises(InputError) as caught:
        run(Job(SimpleNamespace(**options), {}, files, tmp_path, "cpu", lambda event: None))
    assert told in str(caught.value)


def test_text_shorter_than_a_window_names_the_option(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcdefgh" * 2)
    options = {"source": "text", "held_out": 0.2, "vocab_size": 97} | AS_IT_IS
    options |= {"max_length": 40, "batch_size": 2, "seed": 1}
    files = {"paths": (tmp_path / "a.txt",)}
    job = Job(SimpleNamespace(**options), {"data": tmp_path}, files, tmp_path, "cpu", lambda event: None)
    assert run(job)["training_tokens"] == 13
    with pytest.raises(
        InputError, match=r"/data/max_length: error: the training part has 13 tokens, one window needs 36"
    ):
        job.data(tiny_config())


def test_a_held_out_file_beside_the_documentation_counts_by_its_content(tmp_path: Path) -> None:
    assert data_digest(tmp_path, "held_out", "t.txt", "one text") != data_digest(tmp_path, "held_out", "t.txt", "two")


def test_a_vocabulary_counts_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text")
    files = {"source": "text", "path": "a.txt"}
    one = data_digest(tmp_path, "tokenizer", "vocab.txt", "a\nb", **files)
    assert one != data_digest(tmp_path, "tokenizer", "vocab.txt", "a\nc", **files)


def test_what_stands_beside_a_tokenizer_counts_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "a"}')
    files = {"source": "text", "path": "a.txt"}
    one = data_digest(tmp_path, "tokenizer", "tokenizer.json", "{}", **files)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "b"}')
    assert one != data_digest(tmp_path, "tokenizer", "tokenizer.json", "{}", **files)


def test_the_text_beside_a_held_out_file_counts_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "held-out.txt").write_text("held out")
    files = {"source": "text", "held_out": "held-out.txt"}
    assert data_digest(tmp_path, "path", "a.txt", "more", **files) != data_digest(
        tmp_path, "path", "a.txt", "less", **files
    )


LETTERS = {letter: number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyz \n")}
END = len(LETTERS)


def end_tokenizer(folder: Path, **about: Any) -> Path:
    """Write a tokenizer.json that gives each letter a token, and knows one that ends a text."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel(LETTERS, unk_token="z"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    made.add_special_tokens(["<|end|>"])
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"} | about))
    return folder / "tokenizer.json"


def ids_of(*documents: str) -> list[int]:
    """The tokens of documents, with the one that ends a text between them."""
    found: list[int] = []
    for document in documents:
        found += ([END] if found else []) + [LETTERS[letter] for letter in document]
    return found


def parts(folder: Path, source: str, *names: str, **data: Any) -> tuple[list[int], list[int]]:
    """What a plan's data pass makes of files, both parts."""
    content = plan(TRAIN)
    content["data"] |= {"source": source, "path": [*names], "tokenizer": "tokenizer.json"} | data
    (node,) = (node for node in lower(read_plan(write(folder, content))).nodes if node.pass_ == "data")
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    run(Job(node.options, {}, node.files, out, "cpu", lambda event: None))
    train, held_out = (SavedIds(out / f"{name}.npy") for name in ("train", "held_out"))
    return train[: train.size].tolist(), held_out[: held_out.size].tolist()


def sources(folder: Path, *documents: str) -> dict[str, tuple[str, ...]]:
    """Write the same documents for every source that has some."""
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": documents}), folder / "d.parquet")
    (folder / "d.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in documents))
    for number, document in enumerate(documents):
        (folder / f"{number}.txt").write_text(document)
    texts = tuple(f"{number}.txt" for number in range(len(documents)))
    return {"parquet": ("d.parquet",), "jsonl": ("d.jsonl",), "text": texts}


@pytest.mark.parametrize("source", ["parquet", "jsonl", "text"])
def test_a_model_s_own_end_token_stands_between_documents(source: str, tmp_path: Path) -> None:
    documents = ("first one", "", "second\none", "third", "a fourth one")
    files = sources(tmp_path, *documents)[source]
    end_tokenizer(tmp_path)
    # 9 + 10 + 5 + 12 characters, of which the last 14 are a share of 0.4
    train, held_out = parts(tmp_path, source, *files, held_out=0.4)
    assert train == ids_of("first one", "second\none", "thi")
    assert held_out == ids_of("rd", "a fourth one")
    train, held_out = parts(tmp_path, source, *files, held_out=files[-1])
    assert train == ids_of("first one", "second\none", "third", "a fourth one")
    assert held_out == (train if source != "text" else ids_of("a fourth one"))


def test_a_tokenizer_that_knows_no_end_has_newlines_between_documents(tmp_path: Path) -> None:
    end_tokenizer(tmp_path, eos_token=None)
    files = sources(tmp_path, "first one", "second", "third")["jsonl"]
    assert parts(tmp_path, "jsonl", *files, held_out=0.25)[0] == [LETTERS[x] for x in "first one\nsecond"]


def test_one_text_and_other_tokenizers_stay_as_they_were(tmp_path: Path) -> None:
    files = sources(tmp_path, "first one", "second", "third")
    end_tokenizer(tmp_path)
    assert parts(tmp_path, "text", "0.txt", held_out=0.4) == (ids_of("first"), ids_of(" one"))
    by_letters = {source: parts(tmp_path, source, *each, tokenizer="characters") for source, each in files.items()}
    assert by_letters["parquet"] == by_letters["jsonl"] == by_letters["text"]
    assert sum(map(len, by_letters["text"])) == len("first one\nsecond\nthird")


def test_only_where_documents_are_joined_anew_has_the_data_another_digest(tmp_path: Path) -> None:
    files = sources(tmp_path, "first one", "second", "third")
    end_tokenizer(tmp_path)
    (tmp_path / "vocab.txt").write_text("a\nb")

    def options(source: str, *names: str, **data: Any) -> dict[str, Any]:
        content = plan(TRAIN)
        content["data"] |= {"source": source, "path": [*names]} | data
        return lower(read_plan(write(tmp_path, content))).nodes[0].options.document()

    own = {"tokenizer": "tokenizer.json"}
    assert [options(source, *each, **own).get("between") for source, each in files.items()] == ["end token"] * 3
    assert "between" not in options("text", "0.txt", **own)
    assert "between" not in options("jsonl", *files["jsonl"])
    assert "between" not in options("jsonl", *files["jsonl"], tokenizer="vocab.txt")
    assert "column" not in options("jsonl", *files["jsonl"], **own)
    assert options("parquet", *files["parquet"])["column"] == "text"


def data_digest(folder: Path, key: str, name: str, text: str, **data: Any) -> str | None:
    """Give the digest of the data of a small plan whose `key` names a file with this text."""
    (folder / name).write_text(text)
    content = plan(TRAIN)
    content["data"] |= {key: name} | data
    return next(node.digest for node in lower(read_plan(write(folder, content))).nodes if node.pass_ == "data")
