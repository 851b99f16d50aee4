# Everything needed is set up on the way: a .venv with the locked requirements, the project itself,
# and the npm packages the tests drive. Stamp files in .venv remember what was installed, so a target
# with nothing to set up starts at once.
#
#   make run ARGS="--port 5000"      more arguments for the command behind a target
#   make test WORKERS=0 ARGS="-x"    one process, for debuggers
#   make test PYTHON=python3.13      the interpreter a new .venv is made of

VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
WORKERS ?= 2

# Python 3.11 or newer, the first that runs; looked for only when .venv has to be made.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.14 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && \
	{ echo $$python; break; }; done)

# Wheels only: building a source distribution would fetch a build backend nobody has locked. Where a
# platform has no wheel: make run PIP_INSTALL_ARGS=
PIP_INSTALL_ARGS ?= --only-binary :all:
PIP := $(BIN)/python -m pip --quiet --no-input --disable-pip-version-check

NPM := $(shell command -v npm 2>/dev/null)
NPM_QUIET := --no-audit --no-fund --no-update-notifier --loglevel=error

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help run demo test coverage lint format torture bench schema requirements clean distclean no-npm

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

# --- Use ------------------------------------------------------------------------------------------

run: $(VENV)/.runtime ## Start the sidecar (steer serve)
	@$(BIN)/steer serve $(ARGS)

demo: $(VENV)/.demo ## See it at work, without any API key (steer demo)
	@$(BIN)/steer demo $(ARGS)

# --- Develop --------------------------------------------------------------------------------------

test: $(VENV)/.dev $(if $(NPM),tests/npm/node_modules/.installed,no-npm) ## Run every test
	@$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

coverage: $(VENV)/.dev ## Show that the policies' own tests reach every branch of them
	@$(BIN)/python -m pytest -n $(WORKERS) --cov=steer_policies --cov-branch --cov-fail-under=100 \
		tests/policies $(ARGS)

lint: $(VENV)/.dev ## Check format, style, types and layers
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: $(VENV)/.dev ## Format the code and fix what can be fixed
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

torture: $(VENV)/.dev ## Kill and pause sidecars under load (ARGS="--seconds 600 --seed 7")
	@$(BIN)/python -m tests.torture $(ARGS)

bench: $(VENV)/.dev ## Measure what the sidecar costs
	@$(BIN)/python -m bench $(ARGS)

schema: $(VENV)/.dev ## Write what is made of the code: the settings' JSON Schema, new files' SQL
	@$(BIN)/python -m steer_proxy.settings
	@$(BIN)/python -m steer_proxy.ledger

requirements: $(VENV)/.dev ## Lock requirements/*.in anew (UPGRADE=1: to the newest versions)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and \
		"Lock with the lowest supported Python, 3.11: make distclean && make requirements PYTHON=python3.11")'
	@for name in build runtime demo dev; do \
		echo "Locking requirements/$$name.txt"; \
		CUSTOM_COMPILE_COMMAND="make requirements" $(BIN)/python -m piptools compile --quiet \
			--generate-hashes --allow-unsafe --strip-extras $(if $(UPGRADE),--upgrade) \
			--no-emit-index-url --no-emit-trusted-host --no-emit-find-links \
			--output-file requirements/$$name.txt requirements/$$name.in || exit; done

clean: ## Remove caches and build results
	@rm -rf build dist htmlcov .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache \
		.pytest_cache
	@find . \( -path ./$(VENV) -o -name node_modules -o -name .git \) -prune -o \
		\( -name __pycache__ -o -name .ruff_cache \) -prune -exec rm -rf {} +

distclean: clean ## Remove what was installed, too
	@rm -rf $(VENV) tests/npm/node_modules

# --- Set up ---------------------------------------------------------------------------------------

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Steer needs Python 3.11 or newer; name one with PYTHON=..." >&2; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); \
		echo "$(PYTHON) -m venv failed (on Debian and Ubuntu it needs the package python3-venv)" >&2; exit 1; }

define install
@echo "Installing requirements/$(1).txt"
@$(PIP) install $(PIP_INSTALL_ARGS) --require-hashes -r requirements/$(1).txt
endef

# The project comes first: it needs its locked build backend, and nothing of what it depends on.
$(VENV)/.project: requirements/build.txt pyproject.toml | $(BIN)/python
	$(call install,build)
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

# Each set holds the one before it, at the same versions.
$(VENV)/.runtime: requirements/runtime.txt | $(VENV)/.project
	$(call install,runtime)
	@touch $@

$(VENV)/.demo: requirements/demo.txt | $(VENV)/.project
	$(call install,demo)
	@touch $(VENV)/.runtime $@

$(VENV)/.dev: requirements/dev.txt | $(VENV)/.project
	$(call install,dev)
	@touch $(VENV)/.runtime $(VENV)/.demo $@

tests/npm/node_modules/.installed: tests/npm/package-lock.json
	@echo "Installing tests/npm/package-lock.json"
	@if $(NPM) ci --prefix tests/npm --ignore-scripts $(NPM_QUIET) >/dev/null; then touch $@; else \
		echo "npm could not install them: tests with the JavaScript SDKs will be skipped" >&2; fi

no-npm:
	@echo "npm is not installed: tests with the JavaScript SDKs will be skipped"
