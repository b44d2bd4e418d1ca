"""What the README shows is what runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines() if "python -m" in line
]


@pytest.mark.parametrize("code", PYTHON)
@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_every_python_example_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace("50_000", "1_024"), "README.md", "exec"), {})


def test_every_command_is_one_that_exists() -> None:
    assert len(COMMANDS) > 5
    for module in {re.findall(r"-m (\S+)", command)[0] for command in COMMANDS}:
        if module in ("dhmm_rl.recipes",):
            continue
        known = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True).stdout
        for command in COMMANDS:
            words = shlex.split(command, comments=True)
            if module in words:
                for option in (word for word in words if word.startswith("--")):
                    assert option in known, f"{module} has no {option}"
