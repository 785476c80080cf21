"""A command in several processes: start them, lead them, follow. torchrun's environment says which one this is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sprunec.graph.team import follow, launched
from sprunec.interrupts import interrupts

if TYPE_CHECKING:
    from sprunec.engines.team import Team


def must_launch(devices: int) -> bool:
    """Whether more than one process is wanted, and none of them runs yet."""
    return devices > 1 and launched() == (0, 1)


def launch_all(devices: int) -> int:
    """This command line again, in so many processes; the exit code."""
    from sprunec.engines.launch import launch

    return launch(devices, sys.argv[1:])


def leads() -> bool:
    return launched()[0] == 0


@contextmanager
def at_the_head() -> Iterator[Team | None]:
    """The team that this process leads, let go in the end, however it comes; None where it is alone."""
    if launched()[1] == 1:
        yield None
        return
    from sprunec.engines.team import Team

    team = Team()
    try:
        yield team
    finally:
        team.end()
    team.close()


def follow_lead() -> int:
    """What the other processes do: the exit code."""
    from sprunec.engines.team import Team

    with interrupts(lambda text: None, at_once=False, alone=False) as stop:  # the lead lets this one go
        return follow(Team(), stop)
