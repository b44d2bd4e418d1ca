"""SB3's logger, as runs use it."""

import csv
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import CSVOutputFormat, Logger, TensorBoardOutputFormat


class QuotedCSV(CSVOutputFormat):
    """SB3's CSV format, in UTF-8, with a header that quotes names with commas or quotation marks, e.g. ``bits/pixels[3,4]``."""

    def __init__(self, filename: str) -> None:
        super().__init__(filename)
        self.file.reconfigure(encoding="utf-8")

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """
        Add a row.

        :param key_values: the row's values by name
        :param key_excluded: for each name, the formats that leave it out
        :param step: not written
        """
        quoted = {_quoted(name): value for name, value in key_values.items()}
        super().write(quoted, {_quoted(name): formats for name, formats in key_excluded.items()}, step)


def _quoted(name: str) -> str:
    name = " ".join(name.split())  # SB3 reads the file line by line: a name must not contain a line break
    return '"' + name.replace('"', '""') + '"' if {",", '"'} & {*name} else name


def make_logger(folder: Path, name: str) -> Logger:
    """
    A logger to CSV and TensorBoard.

    Each part of a run that was interrupted gets a CSV file of its own, so nothing is overwritten.

    :param folder: of the run
    :param name: of the phase, e.g. ``ppo``
    """
    part = len(list(folder.glob(f"progress_{name}*.csv")))
    suffix = f"_{name}_{part + 1}" if part else f"_{name}"
    folder.mkdir(parents=True, exist_ok=True)
    table = QuotedCSV(str(folder / f"progress{suffix}.csv"))
    return Logger(str(folder), [table, TensorBoardOutputFormat(str(folder))])


def read_log(folder: Path, name: str) -> list[dict[str, str]]:
    """The rows of a phase's CSV files, part after part, by column."""
    parts = sorted(folder.glob(f"progress_{name}*.csv"), key=lambda path: (len(path.name), path.name))
    return [row for part in parts for row in csv.DictReader(part.read_text(encoding="utf-8").splitlines())]
