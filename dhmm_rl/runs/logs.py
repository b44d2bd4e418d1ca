"""Loggers of runs: SB3's logger with files that survive an interruption."""

import csv
import re
import time
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import CSVOutputFormat, Logger, TensorBoardOutputFormat
from torch.utils.tensorboard import SummaryWriter

from dhmm_rl.files import atomic_write

STEP_COLUMNS = ("time/total_timesteps", "pretrain/steps")
"""Columns with the step of a row, in the logs of PPO and of language models."""
EVENT_FILE = "events.out.tfevents."
"""Beginning of the names of TensorBoard's files. Ten digits with the second when the file was created come next."""


class QuotedCSV(CSVOutputFormat):
    """SB3's CSV format in UTF-8. The header quotes names that contain commas or quotation marks, e.g. ``bits/pixels[3,4]``."""

    def __init__(self, filename: str) -> None:
        super().__init__(filename)
        self.file.reconfigure(encoding="utf-8")

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """
        Add a row.

        :param key_values: values of the row by name
        :param key_excluded: formats that leave out a name, by name
        :param step: step of the row, which is not written
        :raises FileNotFoundError: when the file was removed, for example together with the folder of a run that is not over
        """
        if not Path(self.file.name).exists():
            raise FileNotFoundError(f"the log {self.file.name} was removed while it was being written")
        quoted = {_quoted(name): value for name, value in key_values.items()}
        super().write(quoted, {_quoted(name): formats for name, formats in key_excluded.items()}, step)


class RestartableTensorBoard(TensorBoardOutputFormat):
    """
    SB3's TensorBoard format for a resumed run. TensorBoard then ignores later steps in earlier files of the folder.

    Which files are earlier depends only on the order in which the files were created, whatever the system's clock says.

    :param folder: folder of the event files
    :param first_step: first step that is logged from now on
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        _name_before_now(folder)
        self.writer = SummaryWriter(str(folder), purge_step=first_step)
        self.writer.flush()  # a later write in the writer's thread would fail if the folder were removed
        self._is_closed = False


def _name_before_now(folder: Path) -> None:
    """
    Make the names of a folder's event files sort before the name of a file that is created now.

    TensorBoard reads files in the order of their names. A file of this second could come after the new file, or be
    overwritten by it; a file of a later second, from before the clock was set back, would come after it.
    """
    files = sorted(folder.glob(f"{EVENT_FILE}*"))
    if files and files[-1].name >= f"{EVENT_FILE}{int(time.time()):010}":
        for number, path in enumerate(files):
            path.rename(path.with_name(re.sub(r"\d{10}", f"{number:010}", path.name, count=1)))


def _quoted(name: str) -> str:
    name = " ".join(name.split())  # SB3 reads the file line by line: a name must not contain a line break
    return '"' + name.replace('"', '""') + '"' if {",", '"'} & {*name} else name


def make_logger(folder: Path, name: str, step: int = 0) -> Logger:
    """
    Create a logger that writes CSV and TensorBoard files.

    Each part of an interrupted run gets its own CSV file. Rows after the checkpoint that the run resumes from are removed from
    the CSV files of earlier parts, because they are logged again. TensorBoard ignores them when it reads its files.

    TensorBoard ignores later steps of everything in a folder. So the pretraining at the beginning of an agent's run has its own
    folder, ``pretrain``.

    :param folder: folder of the run
    :param name: name of the phase, e.g. ``ppo``
    :param step: step at which this part of the run starts
    """
    folder.mkdir(parents=True, exist_ok=True)
    for part in _parts(folder, name):
        _drop_rows(part, step)
    number = max((_number(part) for part in _parts(folder, name)), default=0) + 1
    table = QuotedCSV(str(folder / (f"progress_{name}.csv" if number == 1 else f"progress_{name}_{number}.csv")))
    board = RestartableTensorBoard(folder / name if name == "pretrain" else folder, step + 1)
    return Logger(str(folder), [table, board])


def read_log(folder: Path, name: str) -> list[dict[str, str]]:
    """Read the rows of a phase's CSV files, each as values by column. Damaged rows are left out."""
    return [row for part in _parts(folder, name) for row in _read_rows(part)]


def _parts(folder: Path, name: str) -> list[Path]:
    parts = [path for path in folder.glob(f"progress_{name}*.csv") if re.fullmatch(rf"progress_{name}(_\d+)?", path.stem)]
    return sorted(parts, key=_number)


def _number(part: Path) -> int:
    last = part.stem.rpartition("_")[2]
    return int(last) if last.isdecimal() else 1


def _read_rows(part: Path) -> list[dict[str, str]]:
    lines = part.read_text(encoding="utf-8", errors="replace").replace("\0", "").splitlines()
    try:
        rows = list(csv.reader(lines))
    except csv.Error:
        return []
    header = rows.pop(0) if rows else []
    return [dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header) > 0]


def _drop_rows(part: Path, step: int) -> None:
    """Remove the rows of a CSV file that come after a step, and the whole file when no row is left."""
    rows = _read_rows(part)
    steps = [next((row[column] for column in STEP_COLUMNS if column in row), "") for row in rows]
    later = (number for number, value in enumerate(steps) if value.isdecimal() and int(value) > step)
    kept = rows[: next(later, len(rows))]
    if not kept:
        part.unlink()
    else:  # this also removes damaged rows
        with atomic_write(part) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(kept)
