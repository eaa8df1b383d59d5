# The developers' front door. `make help` lists what there is.
PYTHON ?= python3

.PHONY: help install check format test demo bench wheel ci

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/ -/'

install:  ## install the package and everything that developers need
	$(PYTHON) -m pip install -e '.[dev]'

check:  ## lint, formatting, types
	$(PYTHON) -m ruff check vecstore tests benchmarks models
	$(PYTHON) -m ruff format --check vecstore tests benchmarks models
	$(PYTHON) -m mypy

format:  ## format everything and mend what can be mended
	$(PYTHON) -m ruff format vecstore tests benchmarks models
	$(PYTHON) -m ruff check --fix vecstore tests benchmarks models

test:  ## run the tests
	$(PYTHON) -m pytest -n 2

demo:  ## index the standard library's documentation and ask it questions
	$(PYTHON) -m vecstore demo

bench:  ## compare with other stores; needs what benchmarks/compare.py names
	$(PYTHON) benchmarks/compare.py

wheel:  ## build the wheel
	$(PYTHON) -m build --wheel

ci:  ## what has to pass before a change lands
	.ci/run
