"""Task files of lm-eval as they are read: what they include, where their data is, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from sprunec.data.task_files import MOST_ITEMS, read_task_file
from sprunec.errors import InputError
from sprunec.families.own_code import trusted
from tests.helpers.task_files import write_tasks


def test_what_is_included_stands_below_and_data_is_beside_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tasks(tmp_path / "base")
    (tmp_path / "here").mkdir()
    for name in ("here/more.csv", "current.csv"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "here/mine.yaml"
    path.write_text("task: mine\ninclude: ../base/base.yaml\ntest_split: held_out\n")
    found = read_task_file(path)
    samples = tmp_path / "here/../base/samples.jsonl"
    assert found.config == {
        "task": "mine",
        "test_split": "held_out",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(samples.resolve())}},
    }
    assert [file.resolve() for file in found.files] == [path, tmp_path / "base/base.yaml", samples.resolve()]
    places = "['*.csv', current.csv, gone.csv, 'https://here/x.csv']"
    path.write_text(f"task: mine\ndataset_path: csv\ndataset_kwargs: {{data_files: {places}}}\n")
    found = read_task_file(path)
    names = ("here/more.csv", "current.csv", "here/gone.csv")
    local = [str(tmp_path / name) for name in names]
    assert found.config["dataset_kwargs"]["data_files"] == [*local, "https://here/x.csv"]
    assert found.lacking == (tmp_path / "here/gone.csv",)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("task: a\nx: !!python/object/apply:os.system [true]\n", "could not determine a constructor"),
        ("task: a\ndataset_path: words\n", '"dataset_path: words" may run code'),
        ("task: a\ndataset_kwargs: {trust_remote_code: true}\n", '"trust_remote_code" runs code'),
        ("group: a\ntask:\n- task: b\n  metric_list: [{metric: c, hf_evaluate: true}]\n", '"hf_evaluate" runs code'),
        ("task: a\ninclude: {b: c}\n", 'include is {"b": "c"}'),
        ("task: a\ninclude: gone.yaml\n", "there is no such file"),
        ("- task\n", "it holds no keys of a task"),
        ("task: 2026-99-99\n", "this is no YAML"),
        ("task: " + "[" * 5000, "this is no YAML"),
        ("task: \x00\n", ""),
    ],
)
def test_files_that_are_none_or_run_code_are_refused(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "words").mkdir()
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        read_task_file(tmp_path / "a.yaml")
    assert told in str(caught.value)


def test_aliases_do_not_multiply(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    (tmp_path / "a.yaml").write_text("task: a\n" + "\n".join(lines))
    with pytest.raises(InputError, match=f"more than {MOST_ITEMS:,} items"):
        read_task_file(tmp_path / "a.yaml")


def test_code_beside_a_trusted_file_is_a_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("task: a\nprocess_docs: !function words.process\n")
    (tmp_path / "words.py").write_text("raise SystemExit")
    with pytest.raises(InputError, match=r"a.yaml:2:15: error: !function words.process runs Python code"):
        read_task_file(tmp_path / "a.yaml")
    with trusted():
        found = read_task_file(tmp_path / "a.yaml")
    assert found.config["process_docs"] == "words.process"
    assert found.files == (tmp_path / "a.yaml", tmp_path / "words.py")
