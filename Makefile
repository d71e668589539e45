# The one vocabulary of the project: people, CI and the README call the same targets.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUN := runs/demo
ONLY ?= deocc.*
LFW ?= data/lfw
JOBS ?= 1

.DEFAULT_GOAL := help
.PHONY: help install demo pretrained lfw-results test test-faults check coverage mutants audit soak bench ablation choices docs clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

install: $(STAMP) ## set up .venv with everything that demo, test and check need (nothing happens when it stands)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]" --constraint constraints.txt
	@touch $@

demo: install ## train both stages on real faces, test on people never seen, write runs/demo/report.html (an earlier run is kept beside it)
	@if [ -e $(RUN) ]; then mv $(RUN) $(RUN)-$$(date +%Y%m%d-%H%M%S); fi
	$(BIN)/deocc fit --config configs/inpaint.yaml --run $(RUN)/inpaint
	$(BIN)/deocc fit --config configs/distill.yaml --run $(RUN)/distill --model.init_args.inpainting_checkpoint $(RUN)/inpaint
	$(BIN)/deocc test --checkpoint $(RUN)/distill --run $(RUN) --data.test_seeds "[1]"

pretrained: install ## train the model that the package ships on LFW and install it in deocc/pretrained (LFW=folder, JOBS=2 trains side by side; resumes)
	$(BIN)/python -m bench.lfw --data $(LFW) --halves a --jobs $(JOBS)
	$(BIN)/python -m deocc.inference.model_folder runs/lfw/a/distill

lfw-results: install ## train and test on both halves of LFW and write docs/pages/lfw.md (LFW=folder, JOBS=2; resumes)
	$(BIN)/python -m bench.lfw --data $(LFW) --halves a b --jobs $(JOBS)
	$(BIN)/python -m bench.lfw_page --data $(LFW)

test: install ## run the tests
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

test-faults: install ## the slow tests: kills, full disks, lost connections, many random examples (under 20 minutes)
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal -m slow

check: install ## lint, types, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive deocc bench
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

coverage: install ## line coverage of losses, masking, evaluation and geometry by their own tests; below 95 % fails
	$(BIN)/python -m pytest -p no:xdist tests/losses tests/masking tests/evaluation tests/properties tests/test_geometry.py deocc/losses deocc/masking deocc/evaluation \
		--cov deocc.losses --cov deocc.masking --cov deocc.evaluation --cov deocc.geometry --cov-report term-missing:skip-covered --cov-fail-under 95

audit: install ## known weaknesses of the installed packages; needs a network
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/pip-audit --skip-editable

mutants: install ## mutate losses and evaluation and list what no test notices (over an hour; ONLY="deocc.losses.identity*" for a part; resumes)
	$(BIN)/python -m pip install --quiet "mutmut>=3.8"
	OMP_NUM_THREADS=1 $(BIN)/mutmut run --max-children 1 "$(ONLY)"
	$(BIN)/mutmut results

soak: install ## train for half an hour and watch memory and speed
	$(BIN)/python -m bench.soak

bench: install ## measure speed and memory against reference forms, in one run
	$(BIN)/python -m bench.bench

ablation: install bench/lfw_half_a.ckpt bench/lfw_half_b.ckpt ## the paper's claims on both halves of LFW in data/lfw: runs/lfw/ablation (hours; resumes)
	$(BIN)/deocc ablate --config configs/lfw/ablation.yaml

bench/lfw_half_%.ckpt:  # the de-occluder of a half
	$(BIN)/python -m bench.lfw --data $(LFW) --halves $* --stages segment inpaint --jobs $(JOBS)
	$(BIN)/python -m bench.lfw_deoccluder runs/lfw/$* $@

choices: install ## train the variants of configs/ablation/choices.yaml and compare them on the validation people (about half an hour; resumes)
	$(BIN)/deocc ablate --config configs/ablation/choices.yaml

docs: install ## build the how-to pages to build/site, and with npm the page that compares faces in a browser
	$(BIN)/mkdocs build --strict --config-file docs/mkdocs.yml
	$(BIN)/python -m bench.browser_page

clean: ## remove the virtual environment and caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache mutants *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
