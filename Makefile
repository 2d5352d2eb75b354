# Every target works as the first command on a fresh machine: it builds .venv from pyproject.toml when needed.
# pip's own settings apply. Without a GPU, set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU builds to avoid several GB of
# CUDA libraries (for test-oldest: UV_TORCH_BACKEND=cpu).

NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(or $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p $(NEW_ENOUGH) 2>/dev/null && echo $$p && break; done),python3)
INSTALLED := .venv/.installed

.PHONY: help demo app test test-slow docs lint format notebooks lock audit clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

demo: $(INSTALLED) ## distill a small student, compare it with its teacher, write runs/demo/report.html
	.venv/bin/dlip demo

app: $(INSTALLED) ## serve teacher and student side by side and print the address; PORT=8000 sets the port
	.venv/bin/dlip app $(if $(PORT),--port $(PORT))

PYTEST := OMP_NUM_THREADS=1 .venv/bin/pytest -n 2 --dist worksteal

test: lint ## lint, check the import order, run the tests on two cores, except the slow ones
	$(PYTEST) -m "not slow"

test-slow: $(INSTALLED) ## run the slow tests: large sizes, more windows and signals, notebooks of records, benchmarks
	.venv/bin/python -m pip install --quiet --editable ".[test,bench]"
	$(PYTEST) -m slow

docs: $(INSTALLED) ## build the documentation site in build/site; warnings are errors
	.venv/bin/python -m pip install --quiet --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

lint: $(INSTALLED) ## check style, formatting, the import order and the lines of each package
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports
	.venv/bin/python .ci/lines

format: $(INSTALLED) ## fix style and formatting
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

notebooks: $(INSTALLED) ## execute every notebook in place (chart images need Chrome or Chromium)
	.venv/bin/python -m pip install --quiet --editable ".[notebooks]"
	.venv/bin/python -m dlip.notebook.execute notebooks/*.ipynb

lock: $(INSTALLED) ## write requirements.lock and docs/licenses.csv from the releases in .venv
	.venv/bin/python -m pip install --quiet uv pip-licenses
	.venv/bin/python -m pip freeze --exclude-editable | sed 's/+[a-z0-9]*$$//' > .venv/tested.txt
	.venv/bin/uv pip compile pyproject.toml --all-extras --constraint .venv/tested.txt --quiet --python-version 3.11.5 \
		--no-annotate --no-header --no-emit-index-url --output-file requirements.lock
	.venv/bin/pip-licenses --from=mixed --format=csv --output-file docs/licenses.csv --with-system \
		--ignore-packages dlip pip pip-licenses prettytable uv

audit: $(INSTALLED) ## check requirements.lock for known vulnerabilities
	.venv/bin/python -m pip install --quiet pip-audit
	.venv/bin/pip-audit --no-deps --disable-pip --strict --requirement requirements.lock

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
