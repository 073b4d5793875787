.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

demo:  ## draw synthetic signs, learn to read them, evaluate (minutes on two cores)
	python train.py --config configs/demo.yaml

test:  ## the tests, on the CPU; `pytest -m slow` adds a simulated NPU and the Ascend scripts
	pytest

lint:  ## check format and style
	ruff format --check .
	ruff check .

bench:  ## seconds and memory of converting a 100 MB checkpoint
	python tests/interop/benchmark_convert.py

.PHONY: help demo test lint bench
