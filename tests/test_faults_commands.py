"""Faults of what users write, in recipes and on the command line, and of the terminal that a command runs in."""

import ast
import io
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from dhmm_rl.cli import run_command
from dhmm_rl.errors import python_command

ROOT = Path(__file__).parents[1]


@dataclass
class Args:
    """A command without arguments."""


def test_text_files_are_utf_8_in_every_locale() -> None:
    """Every file that is opened as text names its encoding."""
    for path in [*(ROOT / "dhmm_rl").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute | ast.Name):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            mode = next((arg.value for arg in node.args if isinstance(arg, ast.Constant) and arg.value in MODES), "")
            if name in ("read_text", "write_text") or (name == "open" and mode):
                assert any(keyword.arg == "encoding" for keyword in node.keywords), f"{path}:{node.lineno}"


MODES = ("r", "w", "a", "x")


def test_terminals_without_a_character_get_an_escape(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "argv", ["command"])
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    run_command(lambda args: print("1.0 ± 0.1"), Args, "command")
    assert written.getvalue() == b"1.0 \\xb1 0.1\n"


def test_a_reader_that_goes_away_ends_a_command_without_a_word() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "dhmm_rl.recipes"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.parametrize("module", ["dhmm_rl.ppo", "benchmarks.run"])
def test_ctrl_c_while_a_command_is_imported_prints_one_line(module: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", module, "--help"], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        imported = iter(process.stderr.readline, "")
        next(line for line in imported if "dhmm_rl._interrupts" in line)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        said = [line for line in imported if not line.startswith("import time:")]
    assert said == ["interrupted\n"]
    assert process.returncode == 130


def test_hints_name_the_python_that_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(Path.cwd() / ".venv/bin/python"))
    assert python_command() == ".venv/bin/python"
    monkeypatch.setenv("PATH", str(tmp_path / ".venv/bin"))
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").touch(mode=0o755)
    assert python_command() == "python"
    monkeypatch.setattr(sys, "executable", "/opt/my python/bin/python")
    assert python_command() == "'/opt/my python/bin/python'"
