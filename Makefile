# tokensvc. `make help` lists the targets; nothing but python3 (>= 3.11, with venv) and make is needed.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Test files are shared out among this many processes: much of a test is waiting, so two cores have room for three.
TEST_PROCESSES ?= 3

# What is installed depends on the lock and on nothing of the caller's environment.
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
# Node trusts its own list of authorities; behind a company's proxy, npm needs the system's as well, as pip does.
export NODE_EXTRA_CA_CERTS ?= $(wildcard /etc/ssl/certs/ca-certificates.crt)

.PHONY: help
help: ## show this help
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo "tokensvc needs Python 3.11 or newer as $(PYTHON); set PYTHON=..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
		|| { rm -rf $(VENV); \
			echo "Python's venv module is missing (Debian: apt-get install python3-venv)"; exit 1; }

# Two stamps: running needs less than testing. Each is renewed when its lock changes.
$(VENV)/.run: requirements.lock pyproject.toml | $(BIN)/python
	@echo "Installing the pinned dependencies into $(VENV) ..."
	@$(BIN)/python -m pip install -q --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install -q --no-build-isolation --no-deps -e .
	@# So that not even the first start has to compile, nor any where Python may not write.
	@$(BIN)/python -m compileall -q tokensvc
	@touch $@

$(VENV)/.dev: requirements-dev.lock pyproject.toml | $(BIN)/python
	@echo "Installing the pinned dependencies and test tools into $(VENV) ..."
	@$(BIN)/python -m pip install -q --require-hashes -r requirements-dev.lock
	@$(BIN)/python -m pip install -q --no-build-isolation --no-deps -e .
	@touch $@ $(VENV)/.run

.PHONY: run
run: $(VENV)/.run ## start the service with the embedded IVS emulator; prints a curl line
	@exec $(BIN)/tokensvc dev

.PHONY: check
check: $(VENV)/.dev ## format, lint, types, import layers, dependency audit
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python .ci/audit.py

.PHONY: test
test: $(VENV)/.dev ## install what the tests need (Chromium, Node, PostgreSQL) and run every test
	@.ci/ensure-browser
	@.ci/ensure-postgres
	$(BIN)/pytest -n $(TEST_PROCESSES) --dist loadfile

.PHONY: bench
bench: $(VENV)/.dev ## measure signatures, mints, latency, memory; ONLY=mints,rows ROWS=10000000 ROUNDS=5 for some
	@.ci/ensure-bench
	@.ci/ensure-postgres
	$(BIN)/python -m tests.bench --json $(or $(JSON),.bench/bench.json) --rounds $(or $(ROUNDS),5) \
		--rows $(or $(ROWS),1000000) $(if $(ONLY),--only $(ONLY))

.PHONY: pictures
pictures: $(VENV)/.dev ## draw docs/pictures from docs/pictures/bench.json, which make bench writes with JSON=
	$(BIN)/python -m tests.bench.pictures docs/pictures/bench.json docs/pictures

.PHONY: flamegraph
flamegraph: $(VENV)/.dev ## draw where a worker's time goes under load: docs/pictures/flamegraph.svg
	@.ci/ensure-bench
	$(BIN)/python -m tests.bench.flame_graph docs/pictures/flamegraph.svg

.PHONY: bench-ledger
bench-ledger: $(VENV)/.dev ## measure the ledger with ROWS living tokens (default 1000000)
	$(BIN)/python -m tests.bench.ledger --rows $(or $(ROWS),1000000)

.PHONY: bench-loss
bench-loss: $(VENV)/.dev ## measure what a crash loses where the ledger is relaxed
	$(BIN)/python -m tests.bench.loss

.PHONY: bench-commits
bench-commits: $(VENV)/.dev ## measure what a commit of the ledger costs on SQLite and PostgreSQL
	@.ci/ensure-postgres
	$(BIN)/python -m tests.bench.commits

.PHONY: scaling
scaling: $(VENV)/.dev ## do the arithmetic of docs/scaling.md again; JSON=.bench/bench.json takes measured inputs from there
	$(BIN)/python -m tests.bench.scaling $(if $(JSON),--json $(JSON))

.PHONY: fuzz
fuzz: $(VENV)/.dev ## let atheris look for a token that inspection fails on, for SECONDS (default 300)
	@mkdir -p .fuzz
	$(BIN)/python -m tests.fuzz.atheris_run .fuzz -max_total_time=$(or $(SECONDS),300) -artifact_prefix=.fuzz/

.PHONY: chaos
chaos: $(VENV)/.dev ## three replicas under load while all around them fails, for MINUTES (default 10); SEED=n repeats
	@.ci/ensure-postgres
	$(BIN)/python -m tests.e2e.chaos --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED))

.PHONY: format
format: $(VENV)/.dev ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: lock
lock: $(VENV)/.dev ## renew requirements.lock and requirements-dev.lock (needs uv)
	uv pip compile -q --universal --generate-hashes --no-emit-index-url --no-header --upgrade \
		--extra build pyproject.toml -o requirements.lock
	uv pip compile -q --universal --generate-hashes --no-emit-index-url --no-header --upgrade \
		--extra build --extra dev -c requirements.lock pyproject.toml -o requirements-dev.lock

.PHONY: clean
clean: ## remove what make has installed and built; keys/ stays
	rm -rf $(VENV) .fuzz .mypy_cache .ruff_cache .hypothesis tests/e2e/browser/node_modules
	find . -name __pycache__ -prune -exec rm -rf {} +
