# make demo    the whole pipeline on embedded synthetic X-rays, in minutes: no network, account or GPU.
#              EXPERIMENTS=all trains every experiment of params.yaml, not only the preset's four
# make serve   a Prefect server, a worker and the retrain deployment, until Ctrl-C: [NAME=...] (docs/how-to/server.md)
# make worker  a worker of a pool: POOL=gpu SERVER=http://HOST:4200 [NAME=...] [LIMIT=N]
# make test    the tests
# make soak    tests that take minutes each: weekly, and before a release
# make check   lint and types
# Each sets up .venv first, with the locked versions and the command cxr; make install does that alone.

PYTHON ?= python3
BIN := .venv/bin

# More than two cores, since many tests wait.
TEST_PROCESSES ?= 4

.PHONY: install demo serve worker test soak check lock clean

install: $(BIN)/cxr

demo: $(BIN)/cxr
	@env -u PREFECT_API_URL PREFECT_PROFILE=ephemeral $(BIN)/cxr retrain --preset demo \
		$(if $(EXPERIMENTS),--experiments $(EXPERIMENTS))

serve: $(BIN)/cxr
	@exec $(BIN)/cxr serve $(if $(NAME),--name "$(NAME)") \
		$(if $(REPORTS_HOST),--reports-host $(REPORTS_HOST))

worker: $(BIN)/cxr
	@exec $(BIN)/cxr worker --pool "$(POOL)" $(if $(SERVER),--server "$(SERVER)") \
		$(if $(NAME),--name "$(NAME)") $(if $(LIMIT),--limit "$(LIMIT)")

test: $(BIN)/cxr
	$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder --durations 10

soak: $(BIN)/cxr
	$(BIN)/python -m pytest -m soak

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Importing compiles just the modules that are used; pip would take a minute longer, over all of them.
.venv/installed: requirements.lock
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed; set PYTHON=python3.11 or the like")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --requirement requirements.lock
	@$(BIN)/python -c 'import dvc.cli, dvc.commands.repro, dvc_s3, pandas, prefect.main, prefect.server.api.server, scipy.ndimage, torch'
	@touch $@

# The shell becomes Python, whose path may be too long, or have blanks, for a script's first line.
$(BIN)/cxr: .venv/installed flows/commands/launcher.py
	@bin=$$(cd $(BIN) && pwd -P) && { \
		printf '%s\n' '#!/bin/sh' "'''exec' \"$$bin/python\" \"\$$0\" \"\$$@\"" "' '''"; \
		cat flows/commands/launcher.py; } > $@.part
	@chmod +x $@.part && mv $@.part $@

# The versions that pyproject.toml's ranges give today, without torch's CUDA packages: those that torch
# asks for on a machine with a GPU follow from torch's own version.
lock:
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --group dev .
	$(BIN)/python -m pip uninstall --quiet --yes covid-qu-ex-segmentation
	$(BIN)/python -m pip freeze --exclude pip | sed 's/+cpu$$//' | grep -v -E '^(nvidia-|cuda-|triton)' > requirements.lock
	@touch .venv/installed

clean:
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache
