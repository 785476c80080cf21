"""Answer Ctrl-C and SIGTERM within two seconds, whatever is running.

The first signal raises KeyboardInterrupt at once, but for the steps of a training pass: there it waits for the step in
hand, which is then saved. A second one waits for nothing. Python runs its handlers between bytecodes only, and one
product of large matrices may take minutes; so a thread watches whether the main thread answers, and ends the process
where it does not. Whatever is on disk is whole at any moment, so that loses no more than the pass in hand.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
PATIENCE = 1.2  # seconds that the main thread is given to unwind
SIGNALS = (signal.SIGINT, signal.SIGTERM)
_postponed: list[None] = []  # one for each block that postpones


@contextmanager
def postponed() -> Iterator[None]:
    """Let the first signal only be noted: who is in here asks after each step whether to stop, and saves."""
    _postponed.append(None)
    try:
        yield
    finally:
        _postponed.pop()


def was_interrupted(error: BaseException | None) -> bool:
    """Say whether an error has come of a KeyboardInterrupt: torch's writer, for one, fails when it is interrupted."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


class Interrupts:
    """What the signals of a run have asked for; called, it says whether to stop.

    Args:
        tell: takes a line for the user.
        at_once: whether the first signal may raise outside of training steps, too.
        alone: whether a process that does not answer is ended; one of several may wait for another, and says so.

    Attributes:
        abandon: what to do last, in another thread, before the process is ended.
    """

    def __init__(self, tell: Callable[[str], None], at_once: bool, alone: bool) -> None:
        self._tell, self._at_once, self._alone = tell, at_once, alone
        self.abandon: Callable[[], None] = lambda: None
        self._asked = False
        self._left = threading.Event()

    def __call__(self) -> bool:
        return self._asked

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Take a signal, in the main thread; raises KeyboardInterrupt where the run stops here."""
        again, self._asked = self._asked, True
        if again or not (self._waits() or self._left.is_set()):
            raise KeyboardInterrupt

    def watch(self, pipe: int) -> None:
        """Read the signals' numbers as they arrive, until the pipe is closed."""
        first = True
        while number := os.read(pipe, 1):
            if number[0] not in SIGNALS:
                continue
            if first and self._waits():
                self._tell("stopping after this step, which is saved; once more stops at once")
            else:
                self._tell("stopping")
                if self._alone and not self._left.wait(PATIENCE):
                    self.abandon()
                    os._exit(INTERRUPTED)
            first = False

    def leave(self) -> None:
        """Say that the main thread has answered, and needs no watching any more."""
        self._left.set()

    def _waits(self) -> bool:
        return bool(_postponed) or not self._at_once


@contextmanager
def interrupts(tell: Callable[[str], None], *, at_once: bool = True, alone: bool = True) -> Iterator[Interrupts]:
    """Answer signals as `Interrupts` says while the block runs; for the main thread."""
    found = Interrupts(tell, at_once, alone)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    thread = threading.Thread(target=found.watch, args=(reading,), daemon=True)
    thread.start()
    pipe_before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    before = {number: signal.signal(number, found.handle) for number in SIGNALS}
    try:
        yield found
    finally:
        found.leave()
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(pipe_before)
        os.close(writing)
        thread.join()
        os.close(reading)
