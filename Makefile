# make demo | test | lint | faults | soak | fuzz | bench | references | pictures | clean.  Everything is installed into .venv. Nothing else on the
# machine changes, except that faults installs the Debian packages that it needs and that are missing.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 4
BENCH_RESULTS := tests/bench/results
PARALLEL := --numprocesses $(JOBS) --dist worksteal
# a fixed seed: what property tests execute must not change from run to run
COVERAGE := --cov --cov-report= --cov-report=json:build/coverage.json --hypothesis-seed=0

# Tests start hundreds of processes: the first one writes the bytecode and the others read it.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint faults faults-root soak fuzz bench references pictures clean
.DEFAULT_GOAL := demo

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "make: Python 3.11 or newer is needed; install it, or run make PYTHON=/path/to/python" >&2; exit 1; }
	@# without the module ensurepip a program is left that has no pip: the next run starts again
	$(PYTHON) -m venv $(VENV) || { rm -f $@; exit 1; }

$(VENV)/installed: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/installed-dev: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(VENV)/installed $@

$(VENV)/installed-plots: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[plots]'
	@touch $@

demo: $(VENV)/installed
	@$(BIN)/nodepass-orch demo $(DEMO_ARGS)

# The unit tests of tunnel/ measure its coverage and pass the gate. The other tests run without it, because before Python 3.12 measuring
# doubles the CPU of what runs in the test process. A selection (ARGS="-k pool") measures nothing.
test: $(VENV)/installed-dev
ifeq ($(ARGS),)
	@$(BIN)/python -c 'import hypothesis.strategies as st; st.text().validate()'  # its table of characters, once for all processes
	@failed=0; \
	$(BIN)/python -m pytest $(PARALLEL) $(COVERAGE) tests/tunnel || failed=1; \
	$(BIN)/python -m tests.coverage_gate build/coverage.json || failed=1; \
	$(BIN)/python -m pytest $(PARALLEL) --ignore=tests/tunnel tests || failed=1; \
	exit $$failed
else
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)
endif

FAULTS_TOOLS := ip:iproute2 iptables:iptables mosquitto:mosquitto mosquitto_sub:mosquitto-clients faketime:faketime

# Checked before .venv is made: without root nothing is installed.
faults-root:
	@test "$$(id -u)" = 0 || { echo "make: the fault cases use network namespaces, which need root: sudo make faults" >&2; exit 1; }
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

# Without a build of atheris for this Python the command prints that and exits with 2.
fuzz: $(VENV)/installed-dev
	@$(BIN)/python -c 'import atheris' 2>/dev/null || \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]' 2>/dev/null || true
	$(BIN)/python -m tests.fuzz $(FUZZ_ARGS)

# The generated pages of docs/reference, the frame table of PROTOCOL.md and the JSON schema.
references: $(VENV)/installed-dev
	@$(BIN)/python -m tests.references

# Screenshots of the dashboard on the running demonstration; check them before you commit them.
pictures: $(VENV)/installed
	$(BIN)/python -m tests.pictures $(PICTURES_FOLDER)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage
