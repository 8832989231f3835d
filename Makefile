# make demo    Run the whole pipeline on synthetic X-rays, in minutes, without network, account or GPU.
#              EXPERIMENTS=all trains every experiment of params.yaml instead of the preset's four.
# make serve   Run a Prefect server, a worker and the retrain deployment until Ctrl-C: [NAME=...] [REPORTS_URL=...] (docs/how-to/server.md)
# make worker  Run a worker of a pool: POOL=gpu SERVER=http://HOST:4200 [NAME=...] [LIMIT=N] [IDLE=MINUTES]
# make test    Run the tests.
# make soak    Run the tests that take minutes each: weekly, and before a release.
# make check   Run the linter and the type checker.
# make lock    Write requirements.lock from pyproject.toml. UPGRADE=all takes the newest versions that it allows,
#              UPGRADE="dvc prefect" those of these packages.
# make sbom    Write build/sbom.cdx.json, a CycloneDX list of what .venv holds.
# make install Install the locked versions and the command cxr into .venv. Every other target except lock does this first.

PYTHON ?= python3
BIN := .venv/bin
TOOLS := build/tools/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# Many container images set this variable. Python then writes no compiled modules, and each of the many processes of a
# run compiles all its imports again: 5 s instead of 2 s for torch alone.
unexport PYTHONDONTWRITEBYTECODE

# `auto` is twice the number of cores (tests/conftest.py), because many tests wait.
TEST_PROCESSES ?= auto

.PHONY: install demo serve worker test soak check lock sbom clean

install: $(BIN)/cxr

demo: $(BIN)/cxr
	@PREFECT_API_URL= PREFECT_PROFILE=ephemeral $(BIN)/cxr retrain --preset demo \
		$(if $(EXPERIMENTS),--experiments $(EXPERIMENTS))

serve: $(BIN)/cxr
	@exec $(BIN)/cxr serve $(if $(NAME),--name "$(NAME)") \
		$(if $(REPORTS_HOST),--reports-host "$(REPORTS_HOST)") $(if $(REPORTS_PORT),--reports-port "$(REPORTS_PORT)") \
		$(if $(REPORTS_URL),--reports-url "$(REPORTS_URL)")

worker: $(BIN)/cxr
	@exec $(BIN)/cxr worker --pool "$(POOL)" $(if $(SERVER),--server "$(SERVER)") \
		$(if $(NAME),--name "$(NAME)") $(if $(LIMIT),--limit "$(LIMIT)") \
		$(if $(IDLE),--exit-when-idle "$(IDLE)")

test: $(BIN)/cxr
	$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder --durations 10

soak: $(BIN)/cxr
	$(BIN)/python -m pytest -m soak --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 10

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The lock is complete, so pip resolves nothing (--no-deps). torch comes last, by a line of its own without hashes: pip
# takes the CPU build where an index has only that, else the CUDA build with its CUDA packages.
# Compile only the modules that are used, by importing them. With pip, compiling all modules takes a minute longer.
.venv/installed: requirements.lock
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is required; set for example PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(PIP_INSTALL) --no-compile --no-deps --require-hashes --requirement requirements.lock
	$(PIP_INSTALL) --no-compile $$(sed -n 's/^# \(torch==.*\)/\1/p' requirements.lock)
	@$(BIN)/python -c 'import dvc.cli, dvc.commands.repro, dvc_s3, pandas, prefect.main, prefect.server.api.server, scipy.ndimage, torch'
	@touch $@

# Starts as a shell script that executes Python, because a shebang line limits the length of the path and allows no
# spaces in it.
$(BIN)/cxr: .venv/installed flows/commands/launcher.py
	@bin=$$(cd $(BIN) && pwd -P) && { \
		printf '%s\n' '#!/bin/sh' "'''exec' \"$$bin/python\" \"\$$0\" \"\$$@\"" "' '''"; \
		cat flows/commands/launcher.py; } > $@.part
	@chmod +x $@.part && mv $@.part $@

# uv alone resolves for all Python versions and architectures at once, and lists the hash of every file of each version.
lock: $(TOOLS)/uv
	$< pip compile --quiet --universal --python-version 3.11 --extra pipeline --extra sweep --group dev --generate-hashes --no-emit-package torch \
		--no-header $(if $(filter all,$(UPGRADE)),--upgrade,$(addprefix --upgrade-package=,$(UPGRADE))) --output-file requirements.lock pyproject.toml
	{ echo '# By `make lock`, from pyproject.toml. `make install` installs the packages below, and then, without a hash:'; \
		sed -n 's/^ *"\(torch==[^"]*\)".*/# \1/p' pyproject.toml; cat requirements.lock; } > requirements.lock.part
	mv requirements.lock.part requirements.lock

sbom: .venv/installed $(TOOLS)/cyclonedx-py
	$(TOOLS)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
		--output-file build/sbom.cdx.json $(BIN)/python

# Programs that are none of the project's dependencies, each in an environment of its own.
$(TOOLS)/uv: TOOL = uv==0.13.9
$(TOOLS)/cyclonedx-py: TOOL = cyclonedx-bom==7.5.0
$(TOOLS)/uv $(TOOLS)/cyclonedx-py: Makefile
	$(PYTHON) -m venv --clear build/tools/$(@F)
	build/tools/$(@F)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile $(TOOL)
	@mkdir -p $(@D) && ln -sf ../$(@F)/bin/$(@F) $@ && touch $@

clean:
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache
