"""Task files of lm-eval with a few samples, one of each kind of request to a model."""

from __future__ import annotations

import json
from pathlib import Path

TEXT = "The for statement is used to iterate over the elements of a sequence. "
BASE = """dataset_path: json
dataset_kwargs:
  data_files:
    test: samples.jsonl
test_split: test
"""
CHOICE = """task: choice
include: base.yaml
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{answers}}"
doc_to_target: "{{right}}"
metric_list:
  - metric: acc
  - metric: acc_norm
"""
ROLLING = """task: rolling
include: base.yaml
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: bits_per_byte
"""
GOING_ON = """task: going-on
include: base.yaml
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answers[0]}}"
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 6
metric_list:
  - metric: exact_match
  - metric: chrf
"""
FILES = {"choice.yaml": CHOICE, "rolling.yaml": ROLLING, "going-on.yaml": GOING_ON}


def write_tasks(folder: Path, samples: int = 12) -> list[str]:
    """Write the files and their samples -> their names, as a plan beside the folder has them."""
    folder.mkdir(parents=True, exist_ok=True)
    answers = ["true and false", "a loop", "what is\nbetween", "an object of any class"]
    rows = [
        {
            "question": f"The statement number {number} of a block is",
            "answers": answers[number % 2 :],
            "right": number % 3 % 2,
            "text": TEXT * (1 + number % 4),
        }
        for number in range(samples)
    ]
    (folder / "samples.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "base.yaml").write_text(BASE)
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return [f"{folder.name}/{name}" for name in FILES]
