"""SB3's logger, as runs use it."""

import csv
from pathlib import Path

from stable_baselines3.common.logger import Logger, make_output_format


def make_logger(folder: Path, name: str) -> Logger:
    """
    A logger to CSV and TensorBoard.

    Each part of a run that was interrupted gets a CSV file of its own, so nothing is overwritten.

    :param folder: of the run
    :param name: of the phase, e.g. ``ppo``
    """
    part = len(list(folder.glob(f"progress_{name}*.csv")))
    suffix = f"_{name}_{part + 1}" if part else f"_{name}"
    return Logger(str(folder), [make_output_format(kind, str(folder), suffix) for kind in ("csv", "tensorboard")])


def read_log(folder: Path, name: str) -> list[dict[str, str]]:
    """The rows of a phase's CSV files, part after part, by column."""
    parts = sorted(folder.glob(f"progress_{name}*.csv"), key=lambda path: (len(path.name), path.name))
    return [row for part in parts for row in csv.DictReader(part.read_text().splitlines())]
