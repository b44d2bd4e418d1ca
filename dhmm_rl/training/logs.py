"""SB3's logger, as runs use it."""

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
