"""What a run says while it works, and what is wrong with a plan; everything here goes to stderr."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from time import monotonic
from typing import Any

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Column, Table
from rich.text import Text

from sprunec.errors import Diagnostic
from sprunec.execution.progress import Watcher
from sprunec.machine import resident_memory
from sprunec.show.fitted import Line
from sprunec.show.numbers import UNKNOWN, byte_words, is_finite, number, plural, printable

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
        self._spinner = Spinner("dots")
        self._head, self._started = "", 0.0
        self._event: dict[str, Any] | None = None  # this node's last step, and how much time is left
        self._left = ""
        self._first: tuple[int, float] | None = None  # this node's first step seen here, and when
        self._printed: tuple[int, float] = (0, 0.0)  # the last step that got a plain line, and when

    def node_started(self, index: int, total: int, name: str) -> None:
        self._head, self._first, self._event, self._started = f"[{index}/{total}] {name}", None, None, monotonic()
        if self._quiet or not self._console.is_terminal or self._console.is_dumb_terminal:
            self.message(self._head)
            return
        # Stdout carries the result, perhaps as JSON into a pipe: Live must not catch it.
        self._live = self._live or Live(
            console=self._console, transient=True, redirect_stdout=False, get_renderable=self._shown
        )
        self._live.start()

    def _shown(self) -> RenderableType:
        """Draw what is going on: the last step, or of a pass that tells of none how long it has been at work."""
        if self._event is not None:
            return live_lines(self._head, self._event, self._left)
        words = f"{self._head}  {duration(monotonic() - self._started)}  {byte_words(resident_memory())}"
        self._spinner.update(text=Text(printable(words)))
        return self._spinner

    def node_finished(
        self, index: int, total: int, name: str, *, cached: bool, seconds: float, metrics: Mapping[str, Any]
    ) -> None:
        done = "already in the store" if cached else f"done in {duration(seconds)}"
        words = ", ".join([done, *metric_words(metrics)[:MOST_METRICS]])
        self.close()
        self.message(f"[{index}/{total}] {name}: {words}", "dim" if cached else "")
        for note in metrics.get("notes", ()):
            say(f"note: {note}", self._console, "yellow")

    def node_failed(self, index: int, total: int, name: str, error: str) -> None:
        self.close()
        say(f"[{index}/{total}] {name}: {error}", self._console, "red")

    def step(self, event: Mapping[str, Any]) -> None:
        """Tell of one training step, or of what else a pass counts; cheap enough to be called at every one.

        A plain line waits for both some steps and some time since the last one; the first and the last step have one.
        """
        if self._quiet:
            return
        if event.get("warning"):
            say(f"note: {event['warning']}", self._console, "yellow")
        now, step, steps = monotonic(), event["step"], event["steps"]
        last_step, last_time = self._printed
        waited = step - last_step >= SHARE_BETWEEN_LINES * steps and now - last_time >= SECONDS_BETWEEN_LINES
        is_due = waited or self._first is None or step == steps
        # By the pace since the first step seen here: a resumed pass doesn't start at step 1.
        first, since = self._first = self._first or (step, now)
        self._left = f"{duration((now - since) / (step - first) * (steps - step))} left" if step > first else ""
        held_out = {key: self._event[key] for key in ("held_out",) if self._event and key in self._event}
        self._event = held_out | {**event}
        if self._live is not None:
            self._event.setdefault("memory", resident_memory())
        elif is_due:
            self._printed = (step, now)
            words = [f"{event.get('of', 'step')} {step}/{steps}", *step_words(self._event), self._left]
            self.message(f"{self._head}: " + ", ".join(word for word in words if word))

    def message(self, text: str, style: str = "") -> None:
        if not self._quiet:
            say(text, self._console, style)

    def close(self) -> None:
        """Give the terminal back; harmless when nothing is shown, or twice."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def say(words: str | Text, console: Console, style: str = "") -> None:
    """Print a stranger's words, each line as one, whatever the width, so that paths in it can be copied."""
    console.print(words if isinstance(words, Text) else Text(printable(words), style), soft_wrap=True, highlight=False)


def live_lines(head: str, event: Mapping[str, Any], left: str) -> Group:
    """Draw a bar with the place in the pass above, the numbers below: in 80 columns no word is cut."""
    place = f"{event['step']:,}/{event['steps']:,}" + (f"  {left}" if left else "")
    bar = Table.grid(Column(no_wrap=True), Column(ratio=1), Column(no_wrap=True), padding=(0, 1), expand=True)
    roomy = cell_len(head) + cell_len(place) + LEAST_BAR <= 80
    lead = Text(printable(head) if roomy else "     ")
    bar.add_row(lead, ProgressBar(total=event["steps"], completed=event["step"]), Text(place))
    words = Line("      " + "  ".join(step_words(event)), "dim")
    return Group(bar, words) if roomy else Group(Line(head), bar, words)


def step_words(event: Mapping[str, Any]) -> list[str]:
    words = [f"loss {number(event['loss'], '.3f')}"] if "loss" in event else []
    words += [f"held-out {number(event['held_out'], '.3f')}"] if "held_out" in event else []
    words += [f"distillation {number(event['distillation'], '.3f')}"] if "distillation" in event else []
    if budgets := event.get("budgets"):
        worst = max(budgets, key=distance)
        name = f" ({worst['name']})" if len(budgets) > 1 else ""
        expected, target = (number(worst.get(which), ".1f") for which in ("expected", "target"))
        words.append(f"size {expected} -> {target}{name}")
    words += [f"{number(event['undecided'])} undecided"] if event.get("undecided") else []
    words += ["skipped"] if event.get("skipped") else []
    rate = event.get("tokens_per_second")
    words += [f"{rate:,.0f} tokens/s"] if is_finite(rate) else []
    return [*words, byte_words(event["memory"])] if is_finite(event.get("memory")) else words


def distance(budget: Mapping[str, Any]) -> float:
    """Measure how far a budget is from its target, relative to the target, so that budgets of unlike units compare.

    Infinitely far where it is not known: that is what people should see.
    """
    expected, target = budget.get("expected"), budget.get("target")
    return abs(expected - target) / max(abs(target), 1.0) if is_finite(expected) and is_finite(target) else inf


def metric_words(metrics: Mapping[str, Any]) -> list[str]:
    """Name the metrics that are one number or word."""
    plain = [(name, value) for name, value in metrics.items() if isinstance(value, (int, float, str))]
    return [f"{name.replace('_', ' ')} {number(value)}" for name, value in plain]


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
        say(diagnostic_text(diagnostic), console)
    amounts = {kind: sum(each.severity == kind for each in diagnostics) for kind in COLOURS}
    if diagnostics:
        say(", ".join(plural(amount, kind) for kind, amount in amounts.items() if amount), console, "bold")


def diagnostic_text(diagnostic: Diagnostic) -> Text:
    """Write `file:line:col: error: /pointer: message`, and the hint on a line of its own."""
    place, pointer = (f"{part}: " if part else "" for part in (diagnostic.place, diagnostic.pointer))
    hint = f"\n{diagnostic.hint}".replace("\n", "\n    ") if diagnostic.hint else ""
    severity = (f"{diagnostic.severity}: ", COLOURS.get(diagnostic.severity, "bold"))
    parts = ((place, ""), severity, (pointer, "cyan"), (diagnostic.message, ""), (hint, "dim"))
    return Text.assemble(*((printable(words), style) for words, style in parts))
