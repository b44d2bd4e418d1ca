# `make demo` and `make test` do all set-up themselves: an environment in .venv with the exact versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-slow kills fuzz check docs clean

demo: $(INSTALLED)  ## pretrain, train by PPO until CartPole-v1 is solved, and show it
	$(BIN)/python -m dhmm_rl.ppo --env CartPole-v1 --pretrained new --runs runs/demo
	@run=$$(ls -td runs/demo/CartPole-v1/dhmm-gpt2/* | head -n 1) && \
	$(BIN)/python -m dhmm_rl.play $$run --episodes 100 --video $$run/play.mp4 && echo "plot:  $$run/curve.png"

test: $(INSTALLED)  ## everything but the slow tests, two files at a time
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

test-slow: $(INSTALLED)  ## the slow tests: learning at full length
	$(BIN)/python -m pytest -m slow

kills: $(INSTALLED)  ## kill the commands and a benchmark 60 times at random moments, and resume them; about 15 minutes
	folder=$$(mktemp -d) && OMP_NUM_THREADS=1 $(BIN)/python -m tests.killing moments $$folder 60 && rm -r $$folder

fuzz: $(INSTALLED)  ## every file format, damaged in 200 ways
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz

check: $(INSTALLED)  ## format, lint, types, and what the wheel holds
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy dhmm_rl benchmarks tests
	$(BIN)/python -m pytest -q tests/test_package.py -k holds

docs: $(INSTALLED)  ## the documentation, into docs/_build; warnings are errors, links inside it are checked
	OMP_NUM_THREADS=1 $(BIN)/sphinx-build --fail-on-warning --keep-going --quiet docs docs/_build
	@echo "docs:  docs/_build/index.html"

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:  ## remove the environment and what tools left
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist docs/_build
