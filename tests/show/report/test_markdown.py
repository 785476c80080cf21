"""report.md: tables as GitHub shows them, and nothing of a stranger's text that it would obey."""

from __future__ import annotations

from sprunec.show.report.markdown import markdown_text
from sprunec.show.report.runs import Run
from tests.helpers.fake_runs import fake_report


def cells(text: str, first: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.split(" | ")]


def test_a_run_is_a_table_of_dense_and_small() -> None:
    text = markdown_text([Run("quickstart", fake_report())])
    assert cells(text, "parameters")[1:] == ["1,062,400", "412,672", "38.8 % |"]
    assert cells(text, "held-out loss")[1:] == ["1.7984", "1.8427", "+0.0443 |"]
    assert cells(text, "tokens/s")[1:] == ["21,430", "49,870", "2.33 x |"]
    assert "- masked against small: max \\|delta logit\\| 2.4e-06, within the tolerance 0.0001" in text
    assert "| 2 | absent | 96 |" in text and "| 3 | 4 | absent |" in text
    assert "<sub>sprunec 0.1.0, torch 2.5.1, cpu: a processor</sub>" in text


def test_every_row_of_a_table_has_as_many_cells() -> None:
    report = fake_report()
    report["models"]["dense"]["tasks"] = {"a|b": {"acc": {"value": 0.5, "stderr": 0.1, "samples": 10}}}
    report["models"]["small"]["tasks"] = {"a|b": {"acc": {"value": 0.4, "stderr": 0.1, "samples": 10}}}
    for runs in ([Run("one", report)], [Run("one", report), Run("two|", report, (), 1)]):
        for table in markdown_text(runs).split("\n\n"):
            lines = [line.replace("\\|", "") for line in table.splitlines() if line.startswith("|")]
            assert len({line.count("|") for line in lines}) <= 1
    assert "| a\\|b, acc | 0.5000 ± 0.1000 | 0.4000 ± 0.1000 | -0.1000 |" in markdown_text([Run("one", report)])


def test_several_runs_are_a_row_each() -> None:
    text = markdown_text([Run("one", fake_report()), Run("two", fake_report() | {"status": "failed"}, (), 1)])
    assert cells(text, "one")[1:4] == ["target-missed", "412,672", "38.8 %"]
    assert cells(text, "two")[1] == "failed"


def test_a_strangers_words_are_neither_markdown_nor_html() -> None:
    evil = "<img src=x>[a](b)`c`*d*\n# e | f"
    text = markdown_text([Run(evil, fake_report() | {"error": evil})])
    assert "<img" not in text and "[a]" not in text and "`c`" not in text and "\n# e" not in text
