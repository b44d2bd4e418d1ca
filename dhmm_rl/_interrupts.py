"""
Handles Ctrl-C while a command is still importing: prints one line instead of the traceback of some import.

The package imports this module first, because the other imports take seconds.
"""

import os
import signal
import sys
from typing import Any


def _end(signal_number: int, frame: Any) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)  # nothing is open yet, and an exception could be caught by the module that is being imported


def expect_interruptions() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again, once a command is imported and handles it."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # python -m imports this package
    signal.signal(signal.SIGINT, _end)
