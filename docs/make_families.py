"""Write docs/families.md, the families and what can be cut in each, from their cards: python docs/make_families.py"""

from __future__ import annotations

from pathlib import Path

from sprunec.families.huggingface.model_types import LAYOUTS
from sprunec.families.huggingface.tensor_layouts import Layout

HEAD = """# Families

Made from the cards in `sprunec/families/` by `python docs/make_families.py`. A model is told by the `model_type` of its
`config.json`; its blocks are traced as they are in `transformers`, its own code, so that a family needs a card of a few
lines and no code. For each one a tiny random model is cut in the tests: the graphs compute what the class computes; the
masked and the cut model are equal in float64, at once and token by token; and the directory that comes out is opened
again, in float32 and bfloat16, with layers that are alike and unlike.

**CPM-Ant** is pruned in all its units (`block`, `layer`, `attention`, `feed_forward`, `head`, `dim_head`, `dim_ff`) and
in every format. Of the families below, `block`, `attention`, `feed_forward`, `dim_ff` and, but where the table says why
not, `head` and `kv_group` are cut; `head` counts query heads, as many in each key-value group.

| family | `model_type` | key-value groups | what cannot be cut | what its stock class does not open |
|---|---|---|---|---|
"""
TAIL = """
## What comes out

- Layers of one size that the stock class can have: **the stock class**. `config.json` is edited in place, tokenizer,
  chat template and generation config go along.
- Anything else (layers of unlike sizes, layers without one of their sublayers, what the last column says): **the same
  class, its layers built one by one** by sizes that stand in `config.json` under `pruned`. The directory brings
  `modeling_pruned.py`, some sixty lines to be read, and opens with `trust_remote_code=True`.
- Llama and Mistral with one number of query heads: the format `deci`, as vLLM's loader of DeciLM reads it.

Whatever is written is opened again by `transformers` in the same run and compared with the cut model, within the noise
that the model's own arithmetic has; its last positions are also decoded one by one with past keys and values, and
compared with the same text in one go.

## Families without a card

A causal language model of `transformers` that the table does not list is read as it is: its blocks are traced, their
graphs say which dims of which tensors are heads, groups and feed-forward dims, and which key of the config counts them
is tried out on a copy without memory. It takes `torch` and `transformers` also for `validate`. What comes out has its
layers built one by one, as above. The same goes for classes that a directory brings (`--trust-remote-code`). For all
families of the table, what is found so is in the tests equal to what the card says.

## Releases and types

These models need transformers 4.57 or newer: MiniCPM3 its release 5, and so does a `config.json` that release 5 has
written, whose rotary positions (`rope_parameters`) 4.57 would pass over. Weights in float32, bfloat16 or float16 stay
what they are.

Not yet: mixtures of experts, models of text and more, scoring models larger than memory, and pruning a directory again
whose layers are unlike; training on several processes is untried.
"""


def families() -> str:
    """Give the whole page."""
    return HEAD + "".join(row(name, layout) for name, layout in LAYOUTS.items()) + TAIL


def row(name: str, layout: Layout) -> str:
    grouped = any("G" in size for size in (*layout.attention.values(), *layout.attention))
    fixed = "; ".join(f"`{unit}`: {why}" for unit, why in layout.fixed.items())
    cells = (layout.title, f"`{name}`", "yes" if grouped else "", fixed, "; ".join(refused(name, layout)))
    return f"| {' | '.join(cells)} |\n"


def refused(name: str, layout: Layout) -> list[str]:
    found = [] if layout.uneven_heads else ["fewer heads"]
    if layout.heads_divide_width:
        opens = ", then it is written as Mistral, which computes the same" if name == "llama" else ""
        found.append(f"heads that do not divide the width{opens}")
    return found + ([] if layout.uneven_dims else ["fewer feed-forward dims"])


if __name__ == "__main__":
    Path(__file__).with_name("families.md").write_text(families(), encoding="utf-8")
