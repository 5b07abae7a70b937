# Everything a contributor may run; plain `make` lists it. Each target sets up what it needs in $(VENV).

PYTHON ?= python3
VENV ?= .venv
# What to give pytest, for example: make test PYTEST_ARGS="-m 'not slow' tests/unit/test_api.py".  These tests run one after
# the other; without it all run, several at a time.
PYTEST_ARGS ?=
# How many at a time.  Three keep two cores busy, because a test waits for a third of its time.
WORKERS ?= 3
# The plugin for notebooks takes each process seconds to import; the tests of notebooks start it themselves.
UNUSED := -p no:nbval
# Workers have whole files, as the tests of a file share farms; tests/conftest.py says in which order.  One that dies is
# not replaced: its successor would be given the test that it died of.
BESIDE := --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0

# Of what chaos and soak do by chance; and how long a soak is, in seconds.
SEED ?= $(shell date +%s)
SOAK_S ?= 14400

# Debian packages that the tests need beyond python3 and its venv.
APT_PACKAGES := chromium fish iproute2 iptables munge openssh-client openssh-server shellcheck slurm-client slurmctld slurmd zsh

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet
export PYTHONNOUSERSITE := 1

.DEFAULT_GOAL := help
.PHONY: help demo test tests lint bench chaos worst live-check soak docs screenshot notebooks vendor clean apt
.DELETE_ON_ERROR:

help:
	@echo "make demo        start a small farm, run the quick start on it, stop it again"
	@echo "make test        lint, then all tests: most of them beside each other, then those that measure, alone"
	@echo "make lint        ruff check, ruff format --check, mypy --strict"
	@echo "make bench       throughput beside multiprocessing.Pool in the same run"
	@echo "make chaos       ten minutes of killed engines, controllers and agents, and ten thousand simulated lives"
	@echo "make worst       what make test leaves out: long tests of rare faults, and many more random examples"
	@echo "make live-check  the live view behind proxies, and what it costs: five pages, a million tasks, 10,000 engines"
	@echo "make soak        the same for hours: SOAK_S=14400"
	@echo "make docs        the documentation, into docs/_build/html"
	@echo "make notebooks   run them again, and save what they say now"
	@echo "make screenshot  take the README's picture of a notebook anew"
	@echo "make vendor      bring the libraries of the live view's page anew, as docs/vendor.py names them"
	@echo "make clean       remove all that the others have made, $(VENV) too"

demo: $(VENV)/stamp-run
	@$(BIN)/ipytaskfarm demo

test: lint tests

# `make --jobs=2` runs them beside lint, which uses one core at first: so the tests that measure come last.
tests: $(VENV)/stamp-test,lint apt
ifneq ($(strip $(PYTEST_ARGS)),)
	@$(BIN)/python -m pytest $(PYTEST_ARGS)
else
	@failed=""; \
	$(BIN)/python -m pytest $(UNUSED) --cache-clear -m "not alone" $(BESIDE) || failed="$$failed $$?"; \
	$(BIN)/python -m pytest $(UNUSED) -m alone || failed="$$failed $$?"; \
	case "$$failed" in \
	"") ;; \
	" 1" | " 1 1") $(BIN)/python -m tests.support.once_more ;; \
	*) echo "pytest itself failed, see above"; exit 1 ;; \
	esac
endif

lint: $(VENV)/stamp-test,lint
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

bench: $(VENV)/stamp-bench
	@$(BIN)/python -m benchmarks --write

chaos: $(VENV)/stamp-test
	@$(BIN)/python -m tests.support.simulation $(SEED) 10000
	@$(BIN)/python -m tests.support.chaos 600 $(SEED)

worst: $(VENV)/stamp-test
	@THOROUGH=1 $(BIN)/python -m pytest $$(grep -rl --include='test_*.py' 'from tests.support.thorough import' tests)

# The proxies come from npm and Debian; node and npm are there, or the tests with JupyterHub's proxy are skipped.
live-check: APT_PACKAGES += nginx-light
live-check: $(VENV)/stamp-test apt
	@! command -v npm >/dev/null || npm install --silent --no-audit --no-fund --prefix $(VENV)/npm configurable-http-proxy@5
	@PATH="$(abspath $(VENV))/npm/node_modules/.bin:$$PATH" $(BIN)/python -m pytest tests/browser/test_live_proxies.py \
	    tests/browser/test_live_lab.py::test_a_persons_hour_through_the_proxy_of_a_hub
	@$(BIN)/python -m benchmarks.live_view

soak: $(VENV)/stamp-test
	@$(BIN)/python -m tests.support.chaos $(SOAK_S) $(SEED)

docs: $(VENV)/stamp-docs
	@$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

# Without times: what has not changed is to look unchanged.
notebooks: $(VENV)/stamp-test
	@$(BIN)/jupyter nbconvert --log-level ERROR --to notebook --execute --inplace \
	    --ExecutePreprocessor.timeout=60 --ExecutePreprocessor.record_timing=False \
	    --KernelManager.transport_encryption=auto notebooks/*.ipynb

# The page's libraries from the npm registry, into the package: see docs/vendor.py.
vendor: $(VENV)/stamp-run
	@$(BIN)/python -m docs.vendor

screenshot: $(VENV)/stamp-test apt
	@$(BIN)/python -m docs.screenshot
	@$(BIN)/python -m docs.live_screenshot

clean:
	rm -rf $(VENV) .venv build dist docs/_build docs/notebooks *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp says which extras of which pyproject.toml are installed; a newer pyproject.toml renews it.
$(VENV)/stamp-run: pyproject.toml | $(BIN)/python
	@echo "installing ipytaskfarm into $(VENV)"
	@$(PIP) install --editable .
	@touch $@

$(VENV)/stamp-%: pyproject.toml | $(BIN)/python
	@echo "installing ipytaskfarm[$*] into $(VENV)"
	@$(PIP) install --editable ".[$*]"
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	    echo "$(PYTHON) cannot make a virtual environment. On Debian: apt-get install python3-venv"; exit 1; }

# Installs only what is missing, and lets no package start its service: tests start their own.  Without root it asks sudo,
# without sudo or apt-get it says what to do.
apt:
	@missing=""; for p in $(APT_PACKAGES); do \
	    dpkg-query --show --showformat='$${Status}' $$p 2>/dev/null | grep -q "ok installed" || missing="$$missing $$p"; \
	done; \
	test -z "$$missing" && exit 0; \
	if test "$$(id -u)" = 0; then sudo=""; else sudo="sudo -n"; fi; \
	if ! command -v apt-get >/dev/null || ! $$sudo true 2>/dev/null; then \
	    echo "the tests need these Debian packages:$$missing; install them, then try again"; exit 1; \
	fi; \
	echo "installing$$missing"; \
	apt="$$sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq"; \
	policy=/usr/sbin/policy-rc.d; \
	if ! test -e $$policy; then \
	    trap "$$sudo rm -f $$policy" EXIT; trap "exit 1" INT TERM; \
	    printf '#!/bin/sh\nexit 101\n' | $$sudo tee $$policy >/dev/null && $$sudo chmod 755 $$policy; \
	fi; \
	$$apt update </dev/null && $$apt install -y --no-install-recommends $$missing </dev/null >/dev/null
