# Needs Python 3.11 or later with pip, and make. Everything else goes into .venv.

PYTHON ?= python3
CORES  ?= 2
BIN    := .venv/bin
PIP    := $(PYTHON) -m pip --python $(BIN)/python --disable-pip-version-check
# The stamps' names say what was installed, and where: a stale or moved .venv is made anew.
HERE   := $(shell (echo $(CURDIR) $(PYTHON); cat requirements.lock) | cksum | cut -d' ' -f1)
LOCKED := .venv/locked-$(HERE)
STAMP  := .venv/setup-$(HERE)-$(shell cksum < pyproject.toml | cut -d' ' -f1)

# What the end-to-end test runs the scripts with.
E2E    := .venv/e2e
DYNAMO := 1.3.0.post1
AIPERF := $(shell sed -n 's/^ *aiperf: *//p' config/deploy.yaml)

# Where Snakemake runs with its plugin for Slurm.
SLURM  := .venv/slurm

.PHONY: help setup browser demo test test-all test-e2e test-slurm lint format lock bench support reference accuracy tutorial pictures clean

help:  ## list the targets
	@sed -n 's/^\([a-z0-9-]*\): .*## /make \1\t/p' Makefile | expand -t 16

setup: $(STAMP)  ## make .venv with every version as in requirements.lock

$(LOCKED):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "make: Python 3.11 or later is needed, $(PYTHON) is " + sys.version.split()[0] + "; name another with PYTHON=")'
	$(PYTHON) -m venv --clear --without-pip .venv
	$(PIP) install -qq --no-deps --require-hashes -r requirements.lock
	@touch $@

# Compiled here as pip compiles all else: where Python may not write bytecode, each call would do it.
$(STAMP): $(LOCKED)
	$(PIP) install -qq --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m compileall -q scripts/paretoserve
	@touch $@

demo: setup  ## answer the guide's example by the workflow, ending with the report
	$(BIN)/snakemake --cores $(CORES) --forcerun compare

# Without it the tests of the report's page are skipped, and say so.
browser:  ## install Chromium, which opens the report in tests (Debian, as root)
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit 0; done; \
	    { test "$$(id -u)" = 0 && apt-get update -qq \
	        && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; } \
	    || echo "no Chromium: the report's page is not tested"

test: setup browser  ## run the tests
	$(BIN)/python -m pytest -q -m "not slow and not e2e and not slurm"

test-all: setup browser  ## run the tests, the slow ones too
	$(BIN)/python -m pytest -q -m "not e2e and not slurm"

# The mocker is in the packages of Dynamo; etcd and NATS are Debian's, unpacked but not installed.
$(E2E)/ready: Makefile
	rm -rf $(E2E)
	mkdir -p $(E2E)/services
	$(PYTHON) -m venv $(E2E)/dynamo
	$(E2E)/dynamo/bin/pip install -q --disable-pip-version-check ai-dynamo==$(DYNAMO) ai-dynamo-runtime==$(DYNAMO)
	$(PYTHON) -m venv $(E2E)/aiperf
	$(E2E)/aiperf/bin/pip install -q --disable-pip-version-check aiperf==$(AIPERF)
	cd $(E2E)/services && apt-get download etcd-server nats-server
	cd $(E2E)/services && for package in *.deb; do dpkg -x $$package .; done
	@touch $@

test-e2e: setup $(E2E)/ready  ## start the scripts that deployments are started with (Debian, ports free)
	$(BIN)/python -m pytest -q -m e2e tests/e2e

# Not in .venv: every start of Snakemake would import the plugin.
$(SLURM)/ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv --clear $(SLURM)
	$(SLURM)/bin/pip install -qq --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(SLURM)/bin/pip install -qq --disable-pip-version-check --no-build-isolation --editable ".[slurm,kubernetes]"
	@touch $@

test-slurm: $(SLURM)/ready  ## run the workflow on a real Slurm of one node (Debian, as root: installs it)
	tests/slurm/packages.sh
	$(SLURM)/bin/python -m pytest -q -m slurm tests/slurm

lint: setup  ## check format and style of Python and Snakemake code
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/snakemake --lint

format: setup  ## put Python and Snakemake code into format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile rules

lock:  ## pin the newest versions that pyproject.toml allows
	$(PYTHON) -m venv --clear .venv/uv
	.venv/uv/bin/pip install --quiet --disable-pip-version-check uv
	.venv/uv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --extra dev \
	    --generate-hashes --no-annotate --custom-compile-command "make lock" \
	    --output-file requirements.lock pyproject.toml

bench: setup  ## print accuracy and speed; PEER="/path/to/python ..." times aiconfigurator too
	$(BIN)/python -m paretoserve.bench $(if $(PEER),--peer $(PEER))

support: setup  ## write docs/support.md: what can be answered (1 to 2 minutes)
	$(BIN)/paretoserve support --markdown > docs/support.md.new
	mv docs/support.md.new docs/support.md

reference: setup  ## write docs/reference.md: every field of the files that you write
	$(BIN)/python -m paretoserve.reference > docs/reference.md.new
	mv docs/reference.md.new docs/reference.md

accuracy: setup  ## put the held-out errors into docs/accuracy.md
	$(BIN)/paretoserve accuracy --markdown > docs/accuracy.new
	sed -i -e '/^<!-- paretoserve accuracy/,/^<!-- end/{//!d;}' \
	    -e '/^<!-- paretoserve accuracy/r docs/accuracy.new' docs/accuracy.md
	rm docs/accuracy.new

tutorial: setup  ## run the commands of docs/tutorial.md and put what they print into it (1 minute)
	$(BIN)/python tests/documents.py docs/tutorial.md docs/images/tpot_curves.png

pictures: setup browser  ## take the documents' pictures of the report anew (1 minute)
	$(BIN)/python tests/pictures.py

clean:  ## remove what the workflow and the tests left (not .venv)
	rm -rf results .snakemake .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -r {} +
