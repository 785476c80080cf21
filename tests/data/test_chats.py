"""Chats by a template: what is written, and that replies alone are asked for."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sprunec.compiler.lower import lower
from sprunec.data.batches import IGNORED, Packer
from sprunec.data.pairs import PairData, load_pair_data
from sprunec.errors import InputError
from sprunec.families.cards import read_config
from sprunec.passes.job import Job
from sprunec.passes.read_data import run
from sprunec.plan.plan import read_plan
from tests.conftest import AS_IT_IS
from tests.helpers.small_plans import MODEL, TRAIN, plan, write

ROLES = "{% for m in messages %}<{{ m['role'][0] }}>{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
TEMPLATE = ROLES + "{% if add_generation_prompt %}<a>{% endif %}"
LETTERS = "abcdefghijklmnopqrstuvwxyz <>\n"
QUESTION = {"role": "user", "content": "how is it"}
TURNS = [{"role": "system", "content": "be nice"}, QUESTION, {"role": "assistant", "content": "fine"}]
TURNS += [{"role": "user", "content": "why"}, {"role": "assistant", "content": "so"}, {"role": "user", "content": "x"}]


def tokenizer(folder: Path, template: Any = TEMPLATE, *, apart: bool = False) -> Path:
    """A token a letter, and one that ends a message."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({letter: number for number, letter in enumerate(LETTERS)}, unk_token="z"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    made.add_special_tokens(["|"])
    made.save(str(folder / "tokenizer.json"))
    about = {"eos_token": {"content": "|"}} | ({} if apart or template is None else {"chat_template": template})
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    if apart:
        (folder / "chat_template.jinja").write_text(template)
    return folder / "tokenizer.json"


def chats(folder: Path, *lines: Any, width: int = 90, **data: Any) -> tuple[PairData, dict[str, Any]]:
    """Read both parts from the same lines."""
    (folder / "c.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = folder / f"out{len(list(folder.iterdir()))}"
    out.mkdir()
    options = {"source": "pairs", "held_out": 0.5, "max_length": width, "room": width - 2, "vocab_size": 97}
    files = {"paths": (folder / "c.jsonl",), "held_out": (folder / "c.jsonl",)}
    files["tokenizer"] = (folder / "tokenizer.json", folder / "tokenizer_config.json")
    options |= AS_IT_IS | {"template": "chat"} | data
    metrics = run(Job(SimpleNamespace(**options), {}, files, out, "cpu", lambda event: None))
    return load_pair_data(out, Packer(read_config(MODEL), width, 97), batch_size=2, seed=3), metrics


def said(data: PairData, number: int = 0) -> tuple[str, str]:
    """A chat as it is written, and of it what is asked for, one place on."""
    document = data.held_out.document(number)
    text = "".join((LETTERS + "|")[i] for i in document.tokens.tolist())
    asked = "".join("." if target == IGNORED else (LETTERS + "|")[target] for target in document.targets.tolist())
    return text, asked


@pytest.mark.parametrize("apart", [False, True])
def test_a_pair_is_a_question_and_its_reply(apart: bool, tmp_path: Path) -> None:
    tokenizer(tmp_path, apart=apart)
    data, metrics = chats(tmp_path, {"input": "how is it", "target": "fine"})
    text, asked = said(data)
    assert text == "<u>how is it|\n<a>fine|\n"
    assert asked == "." * 16 + "fine|\n" + "."
    assert data.sample(99).document.tokens.size == len("<u>how is it|\n<a>")
    assert metrics["tokens"] == len(text)


def test_every_reply_is_asked_for_and_nothing_else(tmp_path: Path) -> None:
    tokenizer(tmp_path)
    data, _ = chats(tmp_path, {"messages": TURNS})
    text, asked = said(data)
    assert text == "<s>be nice|\n<u>how is it|\n<a>fine|\n<u>why|\n<a>so|\n"
    assert [part for part in asked.split(".") if part] == ["fine|\n", "so|\n"]
    assert all(target in (".", text[place + 1 : place + 2]) for place, target in enumerate(asked))
    # what may be seen from anywhere ends where the first reply begins
    assert int(data.held_out.document(0).context.sum()) == text.index("fine")
    assert data.held_out.target_counts.tolist() == [6 + 4]


def test_the_named_default_of_several_templates_is_taken(tmp_path: Path) -> None:
    tokenizer(tmp_path, [{"name": "tool_use", "template": "x"}, {"name": "default", "template": TEMPLATE}])
    assert said(chats(tmp_path, {"messages": TURNS[:3]})[0])[0].endswith("<a>fine|\n")


def test_what_is_longer_than_a_row_is_left_out(tmp_path: Path) -> None:
    tokenizer(tmp_path)
    data, metrics = chats(tmp_path, {"messages": TURNS}, {"input": "a", "target": "b"}, width=30)
    assert (metrics["pairs"], metrics["dropped"]) == (1, 2)
    assert said(data)[0] == "<u>a|\n<a>b|\n"


def test_chats_share_rows(tmp_path: Path) -> None:
    tokenizer(tmp_path)
    lines = [{"input": "a" * number, "target": "b"} for number in range(10)]
    _, plain = chats(tmp_path, *lines)
    data, dense = chats(tmp_path, *lines, packing="documents")
    assert (plain["rows"], dense["rows"]) == (10, 3)
    assert int(data.batch(0).inputs["span"].max()) > 2


STRIPS = "{% for m in messages %}<{{ m['role'][0] }}>{{ m['content'] if loop.last else '' }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "line", "why"),
    [
        (TEMPLATE, {"messages": [QUESTION]}, "has no message of the role assistant"),
        (TEMPLATE, {"messages": [QUESTION, {"role": "assistant"}]}, "has no `content` string in message 2"),
        (TEMPLATE, {"messages": ["a"]}, "has no `role` string in message 1"),
        (TEMPLATE, {"text": "a"}, "has neither a list of `messages` nor an `input` and a `target`"),
        (TEMPLATE, {"input": "a", "target": 3}, "has no `content` string in message 2"),
        (STRIPS, {"messages": TURNS}, "comes out of the chat template with another beginning once message 3 is known"),
        ("{{ raise_exception('no system') }}", {"messages": TURNS}, "is refused by the chat template: no system"),
        ("{{ ''.__class__.__mro__ }}", {"messages": TURNS}, "is refused by the chat template: .*unsafe"),
        ("{% for", {"messages": TURNS}, "is refused by the chat template"),
    ],
)
def test_a_line_that_is_no_chat_is_told_by_its_number(template: str, line: Any, why: str, tmp_path: Path) -> None:
    tokenizer(tmp_path, template)
    with pytest.raises(InputError, match=why) as told:
        chats(tmp_path, line)
    assert (told.value.diagnostics[0].line, told.value.diagnostics[0].file) == (1, str(tmp_path / "c.jsonl"))


def test_a_tokenizer_without_a_template_is_told(tmp_path: Path) -> None:
    tokenizer(tmp_path, None)
    with pytest.raises(
        InputError, match=r"/data/template: error: neither chat_template.jinja nor tokenizer_config.json"
    ):
        chats(tmp_path, {"messages": TURNS})


def test_a_template_counts_by_its_content_where_it_is_used(tmp_path: Path) -> None:
    tokenizer(tmp_path)
    (tmp_path / "c.jsonl").write_text(json.dumps({"input": "a", "target": "b"}) + "\n")

    def digest(**data: Any) -> str | None:
        content = plan(TRAIN)
        content["data"] |= {"source": "pairs", "path": "c.jsonl", "tokenizer": "tokenizer.json"} | data
        return next(node.digest for node in lower(read_plan(write(tmp_path, content))).nodes if node.pass_ == "data")

    plain, chat = digest(), digest(template="chat")
    assert plain != chat and plain == digest(template="plain", packing="concatenated")
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    assert digest() == plain
    one = digest(template="chat")
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE + " ")
    assert len({chat, one, digest(template="chat")}) == 3
