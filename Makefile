.DEFAULT_GOAL := help
OLDEST_PYTHON ?= python3.9

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

demo:  ## draw synthetic signs, learn to read them, evaluate (minutes on two cores)
	python train.py --config configs/demo.yaml

test:  ## the tests, on the CPU; `pytest -m slow` adds a simulated NPU and the Ascend scripts
	pytest

test-oldest:  ## all tests, slow ones too, with the oldest torch, torchvision and numpy, in .venv-oldest
	$(OLDEST_PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install -q torch==2.1.0 torchvision==0.16.0 numpy==1.26.4 -e '.[test]'
	.venv-oldest/bin/pytest -m "slow or not slow"

lint:  ## check format and style
	ruff format --check .
	ruff check .

bench:  ## seconds and memory of converting a 100 MB checkpoint
	python tests/interop/benchmark_convert.py

.PHONY: help demo test test-oldest lint bench
