"""The wheel: it holds dhmm_rl alone, and works in an environment with nothing but its requirements."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_the_wheel_holds_dhmm_rl_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"dhmm_rl"}
    assert "dhmm_rl/py.typed" in names
    for kind in ("agents", "envs"):
        shipped = {Path(name).name for name in names if name.startswith(f"dhmm_rl/recipes/shipped/{kind}/")}
        assert shipped == {path.name for path in (ROOT / kind).glob("*.toml")}


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv/bin/python")

    def run(*command: str) -> str:
        done = subprocess.run([python, "-m", *command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt"), str(wheel))
    recipes = run("dhmm_rl.recipes")
    for kind in ("agents", "envs"):
        for path in (ROOT / kind).glob("*.toml"):
            assert path.stem in recipes
    assert str(ROOT) not in recipes
    run("dhmm_rl.ppo", "--env", "CartPole-v1", "--steps", "512", "--quiet")
    assert (tmp_path / "runs/CartPole-v1/dhmm-gpt2/1/best_model.zip").is_file()


def test_names_are_imported_when_they_are_used_and_the_policy_is_registered_with_them() -> None:
    code = """
import sys
import gymnasium, dhmm_rl
assert "dhmm_rl/Tiger-v0" in gymnasium.registry
assert set(dhmm_rl.__all__) <= set(dir(dhmm_rl))
dhmm_rl.Tokenizer, dhmm_rl.InputError
assert not {"torch", "stable_baselines3"} & set(sys.modules)
from dhmm_rl import TokenStream
from stable_baselines3 import A2C, PPO
assert "DHMMPolicy" in PPO.policy_aliases and "DHMMPolicy" in A2C.policy_aliases
for name in dhmm_rl.__all__:
    assert getattr(dhmm_rl, name).__name__ == name
assert not hasattr(dhmm_rl, "Nothing")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
