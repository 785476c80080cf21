"""What a run says while it works, and what is wrong with a plan; everything here goes to stderr."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from time import monotonic
from typing import Any

from rich.cells import cell_len
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Column, Table
from rich.text import Text

from sprunec.errors import Diagnostic
from sprunec.execution.progress import Watcher
from sprunec.show.fitted import Line
from sprunec.show.numbers import UNKNOWN, is_finite, number, plural, printable

SECONDS_BETWEEN_LINES = 2.0
SHARE_BETWEEN_LINES = 0.1
MOST_METRICS = 4
LEAST_BAR = 12
COLOURS = {"error": "bold red", "warning": "bold yellow"}


class Progress(Watcher):
    """Follows one run: a live display on a terminal, plain lines otherwise; `index` counts nodes from 1."""

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self._console, self._quiet = console or Console(stderr=True), quiet
        self._live: Live | None = None
        self._head = ""
        self._first: tuple[int, float] | None = None  # this node's first step seen here, and when
        self._printed: tuple[int, float] = (0, 0.0)  # the last step that got a plain line, and when

    def node_started(self, index: int, total: int, name: str) -> None:
        self._head, self._first = f"[{index}/{total}] {name}", None
        if self._quiet:
            return
        if not self._console.is_terminal or self._console.is_dumb_terminal:
            self.message(self._head)
            return
        spinner = Spinner("dots", Text(printable(self._head)))
        if self._live is None:
            # Stdout carries the result, perhaps as JSON into a pipe: Live must not catch it.
            self._live = Live(spinner, console=self._console, transient=True, redirect_stdout=False)
            self._live.start()
        else:
            self._live.update(spinner)

    def node_finished(
        self, index: int, total: int, name: str, *, cached: bool, seconds: float, metrics: Mapping[str, Any]
    ) -> None:
        done = "already in the store" if cached else f"done in {duration(seconds)}"
        words = ", ".join([done, *metric_words(metrics)[:MOST_METRICS]])
        self.close()
        self.message(f"[{index}/{total}] {name}: {words}", "dim" if cached else "")
        for note in metrics.get("notes", ()):
            self._print(f"note: {note}", "yellow")

    def node_failed(self, index: int, total: int, name: str, error: str) -> None:
        self.close()
        self._print(f"[{index}/{total}] {name}: {error}", "red")

    def step(self, event: Mapping[str, Any]) -> None:
        """Tell of one training step; cheap enough to be called at every one."""
        if self._quiet:
            return
        if event.get("warning"):
            self._print(f"note: {event['warning']}", "yellow")
        now = monotonic()
        is_first = self._first is None
        self._first = self._first or (event["step"], now)
        left = time_left(event, self._first, now)
        if self._live is not None:
            self._live.update(live_lines(self._head, event, left))
        elif is_first or self._is_due(event, now):
            self._printed = (event["step"], now)
            words = [f"step {event['step']}/{event['steps']}", *step_words(event), left]
            self.message(f"{self._head}: " + ", ".join(word for word in words if word))

    def message(self, text: str, style: str = "") -> None:
        if not self._quiet:
            self._print(text, style)

    def close(self) -> None:
        """Give the terminal back; harmless when nothing is shown, or twice."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _is_due(self, event: Mapping[str, Any], now: float) -> bool:
        """Wait for both some steps and some time since the last line; the last step always has one."""
        step, when = self._printed
        enough = event["step"] - step >= SHARE_BETWEEN_LINES * event["steps"]
        return event["step"] == event["steps"] or (enough and now - when >= SECONDS_BETWEEN_LINES)

    def _print(self, text: str, style: str) -> None:
        self._console.print(Text(printable(text), style=style), soft_wrap=True, highlight=False)


def live_lines(head: str, event: Mapping[str, Any], left: str) -> Group:
    """Draw a bar with the place in the pass above, the numbers below: in 80 columns no word is cut."""
    place = f"{event['step']:,}/{event['steps']:,}" + (f"  {left}" if left else "")
    bar = Table.grid(Column(no_wrap=True), Column(ratio=1), Column(no_wrap=True), padding=(0, 1), expand=True)
    roomy = cell_len(head) + cell_len(place) + LEAST_BAR <= 80
    progress = ProgressBar(total=event["steps"], completed=event["step"])
    bar.add_row(Text(printable(head) if roomy else "     "), progress, Text(place))
    words = Line("      " + "  ".join(step_words(event)), "dim")
    return Group(bar, words) if roomy else Group(Line(head), bar, words)


def step_words(event: Mapping[str, Any]) -> list[str]:
    words = [f"loss {number(event.get('loss'), '.3f')}"]
    words += [f"distillation {number(event['distillation'], '.3f')}"] if "distillation" in event else []
    if budgets := event.get("budgets"):
        worst = max(budgets, key=distance)
        name = f" ({worst['name']})" if len(budgets) > 1 else ""
        expected, target = (number(worst.get(which), ".1f") for which in ("expected", "target"))
        words.append(f"size {expected} -> {target}{name}")
    words += [f"{number(event['undecided'])} undecided"] if event.get("undecided") else []
    words += ["skipped"] if event.get("skipped") else []
    rate = event.get("tokens_per_second")
    return [*words, f"{rate:,.0f} tokens/s"] if is_finite(rate) else words


def distance(budget: Mapping[str, Any]) -> float:
    """Measure how far a budget is from its target, relative to the target, so that budgets of unlike units compare.

    Infinitely far where it is not known: that is what people should see.
    """
    expected, target = budget.get("expected"), budget.get("target")
    if not is_finite(expected) or not is_finite(target):
        return inf
    return abs(expected - target) / max(abs(target), 1.0)


def metric_words(metrics: Mapping[str, Any]) -> list[str]:
    """Name the metrics that are one number or word."""
    plain = {name: value for name, value in metrics.items() if isinstance(value, (int, float, str))}
    return [f"{name.replace('_', ' ')} {number(value)}" for name, value in plain.items()]


def time_left(event: Mapping[str, Any], first: tuple[int, float], now: float) -> str:
    """Go by the pace since the first step seen here: a resumed pass doesn't start at step 1."""
    steps, seconds = event["step"] - first[0], now - first[1]
    return f"{duration(seconds / steps * (event['steps'] - event['step']))} left" if steps > 0 else ""


def duration(seconds: Any) -> str:
    if not is_finite(seconds):
        return f"{number(seconds, nothing=UNKNOWN)} time"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def print_diagnostics(diagnostics: Sequence[Diagnostic], console: Console | None = None) -> None:
    """Print each finding with its place first, so that terminals and editors link it, then the remedy, then the sum."""
    console = console or Console(stderr=True)
    for diagnostic in diagnostics:
        console.print(diagnostic_text(diagnostic), soft_wrap=True, highlight=False)
    if diagnostics:
        amounts = {kind: sum(each.severity == kind for each in diagnostics) for kind in COLOURS}
        summary = ", ".join(plural(amount, kind) for kind, amount in amounts.items() if amount)
        console.print(Text(summary, style="bold"), soft_wrap=True, highlight=False)


def diagnostic_text(diagnostic: Diagnostic) -> Text:
    """Write `file:line:col: error: /pointer: message`, and the hint on a line of its own."""
    place = ":".join(printable(part) for part in (diagnostic.file, diagnostic.line, diagnostic.column) if part)
    text = Text(f"{place}: " if place else "", style="")
    text.append(f"{diagnostic.severity}: ", style=COLOURS.get(diagnostic.severity, "bold"))
    if diagnostic.pointer:
        text.append(f"{printable(diagnostic.pointer)}: ", style="cyan")
    text.append(printable(diagnostic.message))
    if diagnostic.hint:
        text.append("\n    " + printable(diagnostic.hint).replace("\n", "\n    "), style="dim")
    return text
