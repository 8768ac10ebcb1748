# Each target works from a clean clone: it makes the virtual environment first, from the hashed lock file.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: reference docs dist security failpoints fuzz help venv demo test check lint types imports bench bench-profile bench-smoke clean lock image image-test chart manifests dashboard-picture screenshots faults faults-report outage soak

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(READY): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed: make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

venv: $(READY) ## make the virtual environment in .venv

demo: $(READY) ## the main job in front of your eyes (ARGS=--keep leaves it running)
	$(BIN)/python -m demo $(ARGS)

test: $(READY) ## every test, on a real Kafka and PostgreSQL, with coverage (ARGS=-k... to choose)
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report $(if $(ARGS),--fail-under=0)

lint: $(READY) ## ruff: rules and format; bandit
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive sync_worker

security: $(READY) ## bandit over the worker; pip-audit over the locked dependencies, where its data can be reached
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive sync_worker
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/audit.txt
	$(VENV)/audit/bin/pip-audit --strict --disable-pip --require-hashes -r requirements/dev.txt || { \
	  echo "not clean, or not audited at all: a package that its data can't be had for fails, too (see above)"; exit 1; }

types: $(READY) ## mypy --strict
	$(BIN)/mypy

imports: $(READY) ## the import contracts of pyproject.toml
	$(BIN)/lint-imports

check: lint types imports docs bench-smoke test ## what CI runs

# Peers of the bench, and its profiler, have an environment of their own; only what runs them needs it.
$(VENV)/bench/.installed: requirements/bench.txt
	$(PYTHON) -m venv $(VENV)/bench
	$(VENV)/bench/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bench.txt
	@touch $@

bench: $(READY) $(if $(filter peers all,$(or $(CASE),all)),$(VENV)/bench/.installed) ## measure a case, or all of them in about an hour (CASE=throughput; ARGS=--help tells its sizes)
	$(BIN)/python -m bench run $(CASE) $(ARGS)

bench-profile: $(READY) $(VENV)/bench/.installed ## flame graphs, statement statistics and plans into docs/profiles
	$(BIN)/python -m bench profile $(ARGS)

bench-smoke: $(READY) ## counts, not times: does a batch still cost the statements, rows, WAL and calls that it should?
	$(BIN)/python -m bench smoke

fuzz: $(READY) ## hostile bytes for framing, decoding and schemas (INPUTS=10000000)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: \
	  -r requirements/fuzz.txt || echo "no coverage-guided fuzzer for this Python: going on without"
	$(BIN)/python -m tests.fuzz $(if $(INPUTS),--inputs $(INPUTS)) $(ARGS)

screenshots: $(READY) ## the page in each state, as pictures in docs/images
	$(BIN)/python -m tests.support.screenshots

failpoints: $(READY) ## kill workers at every failpoint, alone and in pairs (TIMES=20 at each, at least)
	$(BIN)/python -m tests.crash $(if $(TIMES),--times $(TIMES)) $(ARGS)

faults: $(READY) ## try to make the worker lose, repeat or reorder (SEED=, or MINUTES=10 from where the ledger ends; WORKERS=)
	$(BIN)/python -m tests.faults run $(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES)) \
	  $(if $(WORKERS),--workers $(WORKERS)) $(ARGS)

faults-report: $(READY) ## the tables of docs/reliability.md from the ledger of the runs
	$(BIN)/python -m tests.faults report

outage: $(READY) ## a service away under full input (PART=database, broker or registry; MINUTES=10)
	$(BIN)/python -m tests.faults outage $(or $(PART),database) $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

soak: $(READY) ## an hour at half rate with a fault every minute, and its plot in docs/images/soak.png (MINUTES=60)
	$(BIN)/python -m tests.faults soak $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

image: $(READY) ## the image sync-worker:local (root, docker.io and debootstrap; or BASE_IMAGE=, where an engine can pull it)
	$(BIN)/python -m deploy.image

image-test: $(READY) ## build the image and run it in containers on the real services, with an engine of its own where none answers
	$(BIN)/python -m deploy.image test $(ARGS)

reference: $(READY) ## the pages and pictures of docs/ that are made from the code
	$(BIN)/python -m docs.generate

$(VENV)/docs/.installed: requirements/docs.txt
	$(PYTHON) -m venv $(VENV)/docs
	$(VENV)/docs/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/docs.txt
	@touch $@

docs: $(READY) $(VENV)/docs/.installed ## the site of docs/, in site/: every link followed, nothing fetched from elsewhere
	$(BIN)/python -m docs.generate --check
	NO_MKDOCS_2_WARNING=1 $(VENV)/docs/bin/mkdocs build --strict
	$(BIN)/python -m docs.generate.outside site

dist: $(READY) ## wheel and sdist in dist/, the same bytes each time
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct 2>/dev/null || echo 1735689600) $(BIN)/python -m hatchling build --directory dist

chart: $(READY) ## judge chart, manifests and alerts: helm, kubernetes-validate, kube-score, promtool (Go, for the first time)
	$(PYTHON) -m venv $(VENV)/chart
	$(VENV)/chart/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/chart.txt
	$(BIN)/python -m deploy.chart $(ARGS)

manifests: $(READY) ## write deploy/manifests, the chart's schema of values and the dashboard anew, from what they are made of
	$(BIN)/python -m deploy.observability.dashboard
	$(BIN)/python -m deploy.chart.values_schema
	$(BIN)/python -m deploy.chart write

dashboard-picture: $(READY) ## docs/images/dashboard.png: two workers under traffic, and what Prometheus answers to each panel's queries
	DEVSTACK=native $(BIN)/python -m tests.support.dashboard_picture

lock: $(READY) ## renew the pins of requirements/
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/python requirements/lock.py

clean: ## remove the environment and everything that tools leave behind
	rm -rf $(VENV) .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build site
	find . -name __pycache__ -prune -exec rm -rf {} +
