# Every target works as the first command on a fresh machine: it builds .venv from pyproject.toml when needed.
# pip's own settings apply. Without a GPU, set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU builds to avoid several GB of
# CUDA libraries (for test-oldest: UV_TORCH_BACKEND=cpu).

NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(or $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p $(NEW_ENOUGH) 2>/dev/null && echo $$p && break; done),python3)
INSTALLED := .venv/.installed

.PHONY: help demo app test test-slow docs lint format notebooks weights photos drills test-oldest lock audit clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

demo: $(INSTALLED) ## distill a small student, compare it with its teacher, write runs/demo/report.html
	.venv/bin/dlip demo

app: $(INSTALLED) ## open teacher and student side by side in the browser; PORT=8000 sets the port
	.venv/bin/dlip app $(if $(PORT),--port $(PORT))

PYTEST := OMP_NUM_THREADS=1 .venv/bin/pytest -n 2 --dist worksteal

test: lint ## lint, check the import order, run the tests on two cores, save the slow ones
	$(PYTEST) -m "not slow"

test-slow: $(INSTALLED) ## run the slow tests: large sizes, more windows and signals, notebooks of records, benchmarks
	$(PYTEST) -m slow

docs: $(INSTALLED) ## build the documentation site in build/site; warnings are errors
	.venv/bin/python -m pip install --quiet --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

lint: $(INSTALLED) ## check style, formatting and the import order
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports

format: $(INSTALLED) ## fix style and formatting
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

notebooks: $(INSTALLED) ## execute every notebook in place (chart images need Chrome or Chromium)
	.venv/bin/python -m pip install --quiet --editable ".[notebooks]"
	.venv/bin/python -m dlip.notebook.execute notebooks/*.ipynb

SCENES := --label-smoothing 0 --batch-size 64 --results runs/records.jsonl
TEACHER := train --size scenes-teacher --split train-large --role teacher --lr 2e-3 $(SCENES)

STUDENT := --size scenes-student --limit 1000 --questions 3 --lr 3e-3 --schedule cosine --warmup 100 --precision bf16 \
	$(SCENES)

weights: $(INSTALLED) ## train the shipped models again (85 minutes on two cores for the teacher alone)
	.venv/bin/dlip $(TEACHER) --weights tags --steps 4500 --schedule cosine --warmup 100 --out runs/scenes-teacher-labels
	.venv/bin/dlip $(TEACHER) --init-from runs/scenes-teacher-labels --weights itc,lm=2,vqa=4,tags --questions 3 \
		--steps 2400 --schedule epoch --warmup 100 --out runs/scenes-teacher-words
	.venv/bin/dlip $(TEACHER) --init-from runs/scenes-teacher-words --weights itc,itm,lm=2,vqa=4,tags --questions 3 \
		--steps 1600 --schedule cosine --warmup 50 --out runs/scenes-teacher
	.venv/bin/dlip distill --teacher runs/scenes-teacher --fixed-teacher-space --center-states --cache $(STUDENT) \
		--weights vlp,vqa=2,hr=5,at,kd,kd.vqa=2 --steps 5000 --out runs/scenes-student \
		--joins vlp=400,hr=400,hr.image=0,at=400,kd=400,itm=800,kd.itm=800,kd.vqa=800
	.venv/bin/dlip train --tokenizer runs/scenes-teacher $(STUDENT) --weights vlp --steps 16000 --weight-decay 0.1 \
		--out runs/scenes-student-undistilled

PHOTO := --data $(PHOTOS)/flickr8k+$(PHOTOS)/coco_vqa --on-error skip --precision bf16 --batch-size 64 --schedule cosine \
	--questions 2 --augment --flip --weight-decay 0.05 --candidates 16 --results runs/records.jsonl
PHOTO_STUDENT := --size photos-student --steps 800 --lr 1e-3 --warmup 100

photos: $(INSTALLED) ## train the photo models; PHOTOS=FOLDER holds flickr8k, coco_vqa and minilm
	.venv/bin/dlip train --size photos-teacher --role teacher --init-from text=$(PHOTOS)/minilm --weights itc,lm,vqa \
		--steps 1600 --lr 5e-4 --warmup 200 $(PHOTO) --out runs/photos-teacher-words
	.venv/bin/dlip train --size photos-teacher --role teacher --init-from runs/photos-teacher-words --weights itc,itm,lm,vqa \
		--steps 300 --lr 2e-4 --warmup 30 $(PHOTO) --out runs/photos-teacher
	.venv/bin/dlip train --tokenizer runs/photos-teacher $(PHOTO_STUDENT) --weights vlp --joins itm=500 $(PHOTO) \
		--out runs/photos-student-undistilled
	.venv/bin/dlip distill --teacher runs/photos-teacher $(PHOTO_STUDENT) --weights vlp,hr,at,kd \
		--joins itm=500,kd.itm=500 --fixed-teacher-space --center-states $(PHOTO) --out runs/photos-student

drills: $(INSTALLED) ## inject faults many times: kills, bad inputs, full disks, 50 app users (hours)
	.venv/bin/python -m pip install --quiet uv
	.venv/bin/python -m drills

test-oldest: $(INSTALLED) ## run the tests with the oldest and the newest releases that pyproject.toml allows
	.venv/bin/python -m pip install --quiet uv
	.venv/bin/python -m drills bounds

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
