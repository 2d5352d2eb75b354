# Each target works as the first command on a fresh machine: .venv is built from pyproject.toml, once.
# pip's own settings hold: on a machine without a GPU, set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU builds
# and the CUDA libraries (several GB) are not downloaded.

NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(or $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p $(NEW_ENOUGH) 2>/dev/null && echo $$p && break; done),python3)
INSTALLED := .venv/.installed

.PHONY: help demo test lint format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' Makefile

demo: $(INSTALLED) ## train a small student here, compare it with its teacher, write the report
	.venv/bin/dlip demo

test: lint ## lint, then run every test
	.venv/bin/pytest

lint: $(INSTALLED) ## check style and formatting
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

format: $(INSTALLED) ## mend style and formatting
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

clean: ## remove .venv, builds and caches
	rm -rf .venv build dist .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml | .venv/bin/pip
	.venv/bin/python -m pip install --editable ".[test]"
	@touch $@

.venv/bin/pip:
	@$(PYTHON) $(NEW_ENOUGH) 2>/dev/null || { echo "$(PYTHON) is not Python 3.11 or newer:" \
		"install one, or name it, as in 'make test PYTHON=/path/to/python3.12'." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments:" \
		"install its venv module ('sudo apt install python3-venv' on Debian and Ubuntu)." >&2; exit 1; }
	$(PYTHON) -m venv .venv
