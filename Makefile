# make demo | quickstart | test | setup | lint | format | franka-test | clean | clean-venv
# ARGS are handed on: make quickstart ARGS="fresh=true out_dir=outputs/again", make test ARGS="tests/data"
.DEFAULT_GOAL := help
.PHONY: help setup demo quickstart test lint format franka-setup franka-test clean clean-venv

PY := .venv/bin/python
export PYTHON TORCH_INDEX

help: ## print these lines
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

setup: ## make .venv: torch (CPU), the package, the software-GL libraries
	@bash .ci/setup.sh

demo: setup ## a pretrained policy obeys five sentences: a film, a page, a table (a minute on two cores)
	$(PY) -m experiments.demo $(ARGS)

quickstart: setup ## record, train, evaluate and export a small policy (14 to 20 minutes on two cores)
	$(PY) -m experiments.quickstart $(ARGS)

test: lint ## set-up, ruff, pyright and the tests, a process per core; a file's tests share one
	$(PY) -m pytest -n auto --dist loadfile $(ARGS)

lint: setup ## ruff check, ruff format --check, pyright
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright --project pyproject.toml --pythonpath $(PY)

franka-setup: ## make .venv-franka: franky and its simulator, for robot=franka and franka-test
	@bash .ci/franka_setup.sh

franka-test: franka-setup ## drive a simulated Franka; with BUNDLE=path ten trials and faults (policies/README.md)
	.venv-franka/bin/python -m pytest -m franka tests/robots
	$(if $(BUNDLE),.venv-franka/bin/python -m experiments.franka_trials bundle=$(BUNDLE) $(ARGS),@echo "no BUNDLE=path given: the scripted expert was driven, no policy")

format: setup ## let ruff fix and format
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean: ## remove caches and run outputs
	rm -rf outputs multirun build .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

clean-venv: clean ## remove .venv and .venv-franka too
	rm -rf .venv .venv-franka
