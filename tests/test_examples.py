"""Every script under examples/ runs, with a budget so small that nothing is learned."""

import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
BUDGETS = {"STEPS, EPISODES, GRADIENT_STEPS": "1_024, 3, 10", "STEPS": "1_024"}
"""What takes the place of an example's own budget, by the names of its constants."""
SMALLER = {"dict_and_images": "64", "own_language": "5", "tiger_belief": "4_096"}
"""The same for examples with dearer steps, or with larger rollouts."""


def with_small_budget(path: Path) -> str:
    """The script's source with a small budget in place of its own."""
    source = path.read_text(encoding="utf-8")
    names = next(names for names in BUDGETS if re.search(rf"^{names} = ", source, re.MULTILINE))
    small, replaced = re.subn(
        rf"^{names} = .*$", f"{names} = {SMALLER.get(path.stem, BUDGETS[names])}", source, flags=re.MULTILINE
    )
    assert replaced == 1
    return small


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("PYTHONPATH", str(path.parents[1]))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    script = tmp_path / path.name
    script.write_text(with_small_budget(path), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", [str(script)])
    runpy.run_path(str(script), run_name="__main__")
    assert re.search(r"\d", capsys.readouterr().out)  # every example ends by printing what it measured


def test_there_are_at_least_eight_short_examples() -> None:
    assert len(EXAMPLES) >= 8
    for path in EXAMPLES:
        _docstring, code = re.fullmatch(r'"""\n(.*?)"""\n(.*)', path.read_text(encoding="utf-8"), re.DOTALL).groups()  # type: ignore[union-attr]
        lines = [line for line in code.splitlines() if line.strip() and not line.startswith("#")]
        assert 15 <= len(lines) <= 40, f"{path.name} has {len(lines)} lines of code"
