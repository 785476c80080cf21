"""What a run prints while it works, and how findings about a plan look."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from sprunec.errors import Diagnostic
from sprunec.show import console as show
from sprunec.show.console import Progress, print_diagnostics


class Clock:
    """A clock that the test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(show, "monotonic", clock)
    return clock


def log() -> Console:
    return Console(file=io.StringIO(), width=80)


def terminal() -> Console:
    environ = {"TERM": "xterm-256color"}
    return Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None, _environ=environ)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def event(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "steps": 100, "loss": 2.0 + step / 1000, "tokens_per_second": 12345.6, **more}


def run_steps(progress: Progress, clock: Clock, seconds: float) -> None:
    for step in range(1, 101):
        clock.now += seconds
        progress.step(event(step))


def test_plain_lines_come_every_tenth_of_the_steps_when_steps_are_slow(clock: Clock) -> None:
    console = log()
    progress = Progress(console=console)
    progress.node_started(3, 9, "3-train")
    run_steps(progress, clock, seconds=1.0)
    progress.node_finished(3, 9, "3-train", cached=False, seconds=100.0, metrics={"loss": 1.80251, "tokens": 409600})
    lines = printed(console).splitlines()
    assert lines[0] == "[3/9] 3-train"
    assert lines[1] == "[3/9] 3-train: step 1/100, loss 2.001, 12,346 tokens/s"
    assert lines[2] == "[3/9] 3-train: step 11/100, loss 2.011, 12,346 tokens/s, 1:29 left"
    assert lines[-2].startswith("[3/9] 3-train: step 100/100, loss 2.100")
    assert lines[-1] == "[3/9] 3-train: done in 1:40, loss 1.803, tokens 409,600"
    assert len(lines) == 1 + 11 + 1


def test_plain_lines_come_every_two_seconds_when_steps_are_fast(clock: Clock) -> None:
    console = log()
    progress = Progress(console=console)
    progress.node_started(1, 1, "fast")
    run_steps(progress, clock, seconds=0.0625)
    steps = [line.split("step ")[1].split("/")[0] for line in printed(console).splitlines() if "step " in line]
    assert steps == ["1", "33", "65", "97", "100"]


@pytest.mark.parametrize("quiet", [False, True])
@pytest.mark.parametrize("cached", [False, True])
def test_notes_are_printed_whole_quiet_or_cached(cached: bool, quiet: bool) -> None:
    console = log()
    metrics = {
        "files": ["coarse.pt"],
        "notes": ["coarse.pt was applied already: [it] keeps 25 and 21 of 37 and 32 " * 3],
    }
    Progress(console=console, quiet=quiet).node_finished(
        1, 1, "1-load-mask", cached=cached, seconds=1.0, metrics=metrics
    )
    assert printed(console).splitlines()[-1].strip() == f"note: {metrics['notes'][0]}".strip()
    assert len(printed(console).splitlines()) == (1 if quiet else 2)


def test_the_first_step_of_every_node_has_a_line(clock: Clock) -> None:
    console = log()
    progress = Progress(console=console)
    for index in (1, 2):
        progress.node_started(index, 2, f"node{index}")
        progress.step(event(40))  # as after a resume
        progress.step(event(41))
    assert [line for line in printed(console).splitlines() if "step " in line] == [
        "[1/2] node1: step 40/100, loss 2.040, 12,346 tokens/s",
        "[2/2] node2: step 40/100, loss 2.040, 12,346 tokens/s",
    ]


@pytest.mark.parametrize("of", ["block", "batch"])
def test_what_is_no_training_step_has_its_own_word(of: str) -> None:
    console = log()
    progress = Progress(console=console)
    progress.node_started(5, 9, "5-score-mask-head")
    progress.step({"of": of, "step": 1, "steps": 4})
    assert printed(console).splitlines()[-1] == f"[5/9] 5-score-mask-head: {of} 1/4"


def test_the_budget_furthest_from_its_target_is_shown() -> None:
    console = log()
    near, far = {"name": "layer 0", "expected": 4.5, "target": 4.0}, {"name": "layer 1", "expected": 9.8, "target": 4.0}
    Progress(console=console).step(event(1, budgets=[near, far], undecided=7))
    assert "size 9.8 -> 4.0 (layer 1), 7 undecided" in printed(console)


def test_a_warning_of_a_step_is_told_at_once() -> None:
    console = log()
    Progress(console=console).step(event(1, warning="it will not settle"))
    assert "note: it will not settle" in printed(console)


def test_a_distillation_loss_stands_beside_the_loss() -> None:
    console = log()
    Progress(console=console).step(event(1, distillation=1.25))
    assert "distillation 1.250, " in printed(console).partition("loss ")[2]


def test_a_diverged_run_is_shown_as_it_is() -> None:
    console = log()
    Progress(console=console).step({**event(1), "loss": float("nan"), "tokens_per_second": float("nan")})
    assert printed(console) == ": step 1/100, loss not finite\n"


def test_a_cached_node_says_so() -> None:
    console = log()
    Progress(console=console).node_finished(1, 4, "1-load", cached=True, seconds=0.0, metrics={"names": ["a"]})
    assert printed(console) == "[1/4] 1-load: already in the store\n"


def test_quiet_prints_nothing() -> None:
    for console in (log(), terminal()):
        progress = Progress(quiet=True, console=console)
        progress.node_started(1, 1, "node")
        progress.step(event(1))
        progress.message("hello")
        progress.node_finished(1, 1, "node", cached=False, seconds=1.0, metrics={})
        progress.close()
        assert printed(console) == ""


def test_messages_are_neither_markup_nor_wrapped() -> None:
    console = log()
    Progress(console=console).message("[bold]left as it is[/bold] " + "x" * 100)
    assert printed(console) == "[bold]left as it is[/bold] " + "x" * 100 + "\n"


def test_a_terminal_gets_a_live_line_and_keeps_the_result() -> None:
    console = terminal()
    progress = Progress(console=console)
    progress.node_started(4, 9, "4-train-mask-head")
    progress.step(event(50, budgets=[{"name": "all", "expected": 30.0, "target": 16.0}]))
    progress.message("checkpoint written")
    progress.node_finished(4, 9, "4-train-mask-head", cached=False, seconds=12.34, metrics={"loss": 2.0})
    progress.close()
    shown = printed(console)
    assert "50/100" in shown
    assert "loss 2.050  size 30.0 -> 16.0  12,346 tokens/s" in shown
    assert "checkpoint written" in shown
    assert shown.rstrip("\x1b[?25h").endswith("[4/9] 4-train-mask-head: done in 12.3 s, loss 2\n")


def test_without_a_console_all_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    Progress().message("hello")
    print_diagnostics([Diagnostic("code", "wrong")])
    out, err = capsys.readouterr()
    assert (out, err) == ("", "hello\nerror: wrong\n1 error\n")


def test_diagnostics_lead_with_the_place_and_end_with_the_sum() -> None:
    console = log()
    found = [
        Diagnostic("range", "1.4 is above 1", "give a share, e.g. 0.6", "error", "p.json", "/passes/0", 14, 32),
        Diagnostic("missing", "no such file", "", "error", "p.json", "/model", 3, 5),
        Diagnostic("short", "300 steps\x1b[2J", "use more", "warning", "p.json"),
    ]
    print_diagnostics(found, console)
    assert printed(console).splitlines() == [
        "p.json:14:32: error: /passes/0: 1.4 is above 1",
        "    give a share, e.g. 0.6",
        "p.json:3:5: error: /model: no such file",
        "p.json: warning: 300 steps\ufffd[2J",
        "    use more",
        "2 errors, 1 warning",
    ]


def test_errors_are_red_and_warnings_yellow() -> None:
    assert show.diagnostic_text(Diagnostic("c", "m")).spans[0].style == "bold red"
    assert show.diagnostic_text(Diagnostic("c", "m", severity="warning")).spans[0].style == "bold yellow"


def test_no_diagnostics_print_nothing() -> None:
    console = log()
    print_diagnostics([], console)
    assert printed(console) == ""


@pytest.mark.parametrize(("seconds", "words"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (61, "1:01"), (3725, "1:02:05")])
def test_durations_read_like_a_clock(seconds: float, words: str) -> None:
    assert show.duration(seconds) == words


def test_a_held_out_loss_stays_in_sight_until_the_next(clock: Clock) -> None:
    console = log()
    progress = Progress(console=console)
    progress.node_started(3, 9, "3-train")
    for step in (1, 50, 100):
        clock.now += 10
        progress.step(event(step, memory=1_500_000_000, **({"held_out": 2.5} if step == 50 else {})))
    first, second, last = (line.partition(", ")[2] for line in printed(console).splitlines()[1:])
    assert first == "loss 2.001, 12,346 tokens/s, 1.5 GB"
    assert second.startswith("loss 2.050, held-out 2.500, 12,346 tokens/s, 1.5 GB")
    assert last.startswith("loss 2.100, held-out 2.500, ")
    progress.node_started(4, 9, "4-train")
    progress.step(event(1))
    assert "held-out" not in printed(console).splitlines()[-1]


def test_a_pass_that_tells_of_no_steps_shows_how_long_it_works_and_what_it_holds(clock: Clock) -> None:
    console = terminal()
    progress = Progress(console=console)
    progress.node_started(2, 9, "2-load")
    clock.now += 75
    progress.close()
    assert re.search(r"\[2/9\] 2-load  1:15  [\d.]+ [MG]B", printed(console))
