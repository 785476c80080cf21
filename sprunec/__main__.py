"""`sprunec`, and `python -m sprunec`."""

import os
import sys
from contextlib import suppress

from sprunec.interrupts import INTERRUPTED


def command() -> None:
    """Run the command; an interrupted one ends here and now.

    What torch still has to tear down takes a second, and Python would end by SIGINT where one met code in a string.
    """
    try:
        from sprunec.cli import main  # in here, for a signal may come while it is being imported

        main()
    except (KeyboardInterrupt, SystemExit) as end:
        if getattr(end, "code", INTERRUPTED) == INTERRUPTED:
            with suppress(OSError):  # nobody reads any more
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(INTERRUPTED)
        if isinstance(end, SystemExit):
            raise


if __name__ == "__main__":
    command()
