"""``python -m benchmarks.child MODULE ARGUMENTS``: a command that ends when the process that started it is gone."""

import os
import runpy
import sys
import threading


def main() -> None:
    """Run the command while standard input is open: the operating system closes it when the parent dies."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _end_with_parent() -> None:
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    main()
