"""Benchmarks as commands, ``python -m benchmarks.…``."""

import dhmm_rl  # noqa: F401 because it handles Ctrl-C while a command is imported
