# make demo | test | lint | faults | soak | fuzz | bench | pictures | clean.  Everything is installed into .venv; nothing else of the
# machine is touched, except that faults installs the Debian packages it needs where they are missing.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 3
BENCH_RESULTS := tests/bench/results

.PHONY: demo test lint faults faults-root soak fuzz bench pictures clean
.DEFAULT_GOAL := demo

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "make: Python 3.11 or newer is needed; install it, or say make PYTHON=/path/to/it" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

$(VENV)/installed-plots: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[plots]'
	@touch $@

demo: $(VENV)/installed
	@$(BIN)/nodepass-orch demo $(DEMO_ARGS)

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal $(ARGS)

FAULTS_TOOLS := ip:iproute2 iptables:iptables mosquitto:mosquitto mosquitto_sub:mosquitto-clients faketime:faketime

# Root first: without it nothing is installed, not even into .venv.
faults-root:
	@test "$$(id -u)" = 0 || { echo "make: faults are made in network namespaces, which need root: sudo make faults" >&2; exit 1; }
	@for tool in $(FAULTS_TOOLS); do command -v $${tool%%:*} >/dev/null || missing="$$missing $${tool##*:}"; done; \
	test -z "$$missing" || { echo "installing$$missing"; apt-get update -qq && apt-get install -qq --no-install-recommends $$missing; }

faults: faults-root $(VENV)/installed-dev
	NODEPASS_TEST_SCALE=full $(BIN)/python -m pytest tests/faults $(FAULTS_ARGS)

lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/installed-plots
	$(BIN)/python -m tests.bench --results $(BENCH_RESULTS) $(BENCH_ARGS)

soak: $(VENV)/installed-dev
	$(BIN)/python -m tests.soak $(SOAK_ARGS)

# Where there is no build of atheris, the command says so.
fuzz: $(VENV)/installed-dev
	@$(BIN)/python -c 'import atheris' 2>/dev/null || \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]' 2>/dev/null || true
	$(BIN)/python -m tests.fuzz $(FUZZ_ARGS)

# Screenshots of the dashboard on the running demonstration; check them before you commit them.
pictures: $(VENV)/installed
	$(BIN)/python -m tests.pictures $(PICTURES_FOLDER)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
