"""Small tokenizers in the ways of well-known models, trained on Python's documentation, as Hugging Face directories."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from gguf import GGUFValueType, GGUFWriter
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from sprunec.families.gguf.pre_tokenizers import LLAMA3, QWEN2
from sprunec.families.gguf.tokenizers import Field

SPACE, SIZE = "\u2581", 1500
BYTES = [f"<0x{value:02X}>" for value in range(256)]
TEXTS = [topics[key] for key in sorted(topics)][:40]
MORE = (
    "Приве́т мир. Γειά σου. 你好世界，再见。 こんにちは。 안녕하세요 세계. مرحبا بالعالم. "
    "नमस्ते दुनिया. naïve café übung ñandú"
)


def _texts() -> list[str]:
    return [*TEXTS, *(MORE for _ in range(20))]


def byte_level(pattern: str | None, *, digits: bool = False, whole: bool = False, composed: bool = False) -> Tokenizer:
    """Train byte-level BPE; without a pattern GPT-2's parts a text."""
    made = Tokenizer(models.BPE(ignore_merges=whole))
    steps = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    if pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None))
    made.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    if composed:
        made.normalizer = normalizers.NFC()
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE, initial_alphabet=alphabet, special_tokens=specials, show_progress=False
    )
    made.train_from_iterator(_texts(), trainer)
    made.add_tokens([AddedToken("def  ", normalized=False)])
    return made


def pieces(*, prefix: str) -> Tokenizer:
    """Train BPE of pieces, with the merges that SentencePiece's vocabulary gives: all halves of every piece.

    Args:
        prefix: "always" with a normalizer, as Llama 2 had it first; "first" with a pre-tokenizer, as now; "" as Gemma.
    """
    learned = Tokenizer(models.BPE())
    learned.normalizer = normalizers.Replace(" ", SPACE)
    learned.pre_tokenizer = pre_tokenizers.Split(Regex(f"{SPACE}?[^{SPACE}\n]+|{SPACE}+|\n"), "isolated")
    learned.train_from_iterator(_texts(), trainers.BpeTrainer(vocab_size=SIZE, show_progress=False))
    order = [left + right for left, right in json.loads(learned.to_str())["model"]["merges"]]
    letters = [token for token in learned.get_vocab() if len(token) == 1]
    names = ["<unk>", "<s>", "</s>", *BYTES, *dict.fromkeys(order), *sorted({*letters, SPACE})]
    vocabulary = {name: row for row, name in enumerate(names)}
    merges = list(halves(dict.fromkeys(order), vocabulary))
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    replaced = normalizers.Replace(" ", SPACE)
    if prefix == "always":
        made.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replaced])
    elif prefix == "first":
        made.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=False)
    else:
        made.normalizer = replaced
        made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    return made


def halves(order: Iterable[str], vocabulary: dict[str, int]) -> Iterable[tuple[str, str]]:
    """List merges as transformers makes them of SentencePiece's pieces."""
    for piece in order:
        parts = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        known = [(left, right) for left, right in parts if left in vocabulary and right in vocabulary]
        yield from sorted(known, key=lambda pair: (len(pair[0]), len(pair[1])))


def unigram() -> Tokenizer:
    """Train a Unigram model, as T5 has it."""
    made = Tokenizer(models.Unigram())
    squeeze = normalizers.Replace(Regex(" {2,}"), SPACE)
    made.normalizer = normalizers.Sequence([normalizers.Strip(left=False, right=True), squeeze])
    made.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="always", split=True)
    made.decoder = decoders.Metaspace(SPACE, prepend_scheme="always", split=True)
    specials = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=SIZE, special_tokens=specials, unk_token="<unk>", show_progress=False, n_sub_iterations=1
    )
    made.train_from_iterator(_texts(), trainer)
    made.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 1)])
    content = json.loads(made.to_str())
    content["pre_tokenizer"]["split"] = False  # words alone or not: sums that are equal, but for rounding, would differ
    for piece in content["model"]["vocab"]:
        piece[1] = struct.unpack("f", struct.pack("f", piece[1]))[0]  # as SentencePiece stores it
    return Tokenizer.from_str(json.dumps(content))


MAKERS: dict[str, tuple[Callable[[], Tokenizer], dict[str, Any]]] = {
    "gpt2": (lambda: byte_level(None), {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}),
    "smollm": (lambda: byte_level(None, digits=True), {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}),
    "qwen2": (lambda: byte_level(QWEN2, composed=True), {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}),
    "llama3": (lambda: byte_level(LLAMA3, whole=True), {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}),
    "llama2": (lambda: pieces(prefix="always"), {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}),
    "mistral": (lambda: pieces(prefix="first"), {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}),
    "gemma": (lambda: pieces(prefix=""), {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}),
    "t5": (unigram, {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}),
}
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def write_tokenizer(folder: Path, way: str) -> Path:
    """Write a directory with a tokenizer, its settings and a chat template."""
    make, tokens = MAKERS[way]
    folder.mkdir(parents=True, exist_ok=True)
    make().save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE, **tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def write_vocabulary(path: Path, fields: Iterable[Field]) -> Path:
    """Write a file that has a tokenizer and nothing else."""
    writer = GGUFWriter(path, "llama")
    for field in fields:
        kind, of = GGUFValueType[field.kind], GGUFValueType[field.of] if field.of else None
        writer.add_key_value(field.key, field.value, kind, of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


SCRIPTS = (
    *("abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789", ".,;:!?()[]{}<>'\"`~@#$%^&*-_=+/\\|"),
    *(
        "абвгдежзийклмнопрстуфхцчшщъыьэюя",
        "αβγδεζηθικλμνξοπρστυφχψω",
        "你好世界再见中国人民日本語漢字",
        "ぁあぃいうえおカキクケコ",
    ),
    *(
        "안녕하세요세계가나다라마바사",
        "مرحبابالعالمسلام٠١٢٣",
        "नमस्तेदुनियाकखगघ१२३",
        "שלוםעולם",
        "ไทยภาษาสวัสดี",
        "àéîõüñçßøåæœ¿¡«»",
    ),
    *(
        "😀😂🥰👍🏽👩‍💻🇩🇪🏳️‍🌈🤷‍♀️",
        "\x00\x01\x02\x07\x08\x1b\x7f\x80\x9f\u200b\u200d\ufeff\u2028",
        " \t\n\r\x0b\x0c\u00a0\u3000\u2003",
    ),
    *("½¾²³⅓ⅧⅣ①②", "∑∏√∞≠≤≥±×÷€£¥", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢𐍈𒀀", "'s't're've'm'll'd'S'T'RE"),
)
WORDS = (
    "the",
    " of",
    "  ",
    "\n\n",
    "\n  ",
    "don't",
    " I'LL",
    "1234567",
    "def ",
    "return",
    " = ",
    "http://",
    "   x",
    "\r\n",
)


def random_texts(count: int, seed: int = 21) -> list[str]:
    """Make texts of several scripts, spaces, emoji and control characters."""
    pick = random.Random(seed)
    found = []
    for _ in range(count):
        parts = []
        for _ in range(pick.randint(1, 12)):
            way = pick.random()
            if way < 0.3:
                parts.append(pick.choice(WORDS))
            elif way < 0.4:
                text = pick.choice(TEXTS)
                first = pick.randrange(len(text))
                parts.append(text[first : first + pick.randint(1, 30)])
            else:
                script = pick.choice(SCRIPTS)
                parts.append("".join(pick.choice(script) for _ in range(pick.randint(1, 8))))
            parts.append(pick.choice(("", "", " ", "  ", "\n")))
        found.append("".join(parts))
    return found
