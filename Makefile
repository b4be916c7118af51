# Every target makes the virtual environment that it needs; `make demo` or `make test` is all it takes.
#   make demo             train, encode and search on built-in pictures
#   make test             the tests, some four minutes
#   make test-slow        those that take longer
#   make test-sql         those that need chDB and LanceDB, 720 MB more in .venv
#   make test-milvus      those of the engine milvus, with a server on loopback
#   make test-sanitizers  those of compiled code, with checks of every access to memory
#   make check            formatting, lint, types
#   make docs             docs/cli.md, written from the commands' --help
#   make bench            times of the exact search
#   make torture MINUTES=5            many processes on one collection, killed all the time
#   make clean            removes caches and the demo's files; .venv and runs/ stay
#   make PYTHON=python3.12 demo       with another interpreter than python3

PYTHON ?= python3
# Processes that run the tests, and threads of each that computes.
JOBS ?= 2
THREADS ?= 1

BIN := .venv/bin
PIP = $(BIN)/python -m pip install --no-input --disable-pip-version-check --no-compile
READY := .venv/ready
DEV := .venv/ready-dev

# What is compiled is kept, wherever images of Python say otherwise: each process of the tests would
# compile all that it imports again.
unexport PYTHONDONTWRITEBYTECODE

# Of the torture, see benchmarks/torture; OPTIONS may be --json.
MINUTES ?= 5
SEED ?= 0
WRITERS ?= 3

.PHONY: demo test test-slow test-sql test-milvus test-sanitizers bench check docs torture clean .venv

demo: $(READY)
	$(BIN)/regionhash demo
	@echo "A page to search these scenes with: $(BIN)/regionhash demo --serve"

# Threads that wait by spinning slow each other down where cores are shared.
PYTEST := OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=$(THREADS) $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

test: $(DEV)
	$(PYTEST) -m "not slow"

test-slow: $(DEV)
	$(PYTEST) -m slow

test-sql: $(DEV)
	$(PIP) --editable ".[chdb]" lancedb
	$(PYTEST) tests/test_sql.py tests/test_parquet.py

# A server and a client of an environment of their own: their packages are older than those of .venv.
MILVUS := .venv-milvus
test-milvus: $(MILVUS)/ready
	$(MILVUS)/bin/python -W ignore::DeprecationWarning -m pytest -W ignore::DeprecationWarning \
	  --confcutdir=tests/with_milvus -o pythonpath=tests tests/with_milvus -rs

$(MILVUS)/ready: pyproject.toml setup.py src/regionhash/search/_scan.c
	@echo "Installing Milvus into $(MILVUS): once, a minute or two, about 900 MB of disk."
	$(PYTHON) -m venv $(MILVUS)
	$(MILVUS)/bin/python -m pip install --no-input --disable-pip-version-check --no-compile --editable ".[milvus]" \
	  milvus==2.3.5 "pymilvus<2.4" "setuptools<80" "marshmallow<4" "pandas<3" pytest pytest-timeout hypothesis httpx
	touch $@

# A copy, compiled with AddressSanitizer and UndefinedBehaviorSanitizer of gcc.
SANITIZED := build/sanitizers
test-sanitizers: $(DEV)
ifeq ($(shell command -v gcc),)
	@echo "There is no gcc: the compiled code is not tested with sanitizers."
else
	rm -rf $(SANITIZED) && mkdir -p $(SANITIZED)
	cp -r pyproject.toml setup.py README.md LICENSE src $(SANITIZED)
	rm -f $(SANITIZED)/src/regionhash/search/_scan.*.so
	cd $(SANITIZED) && CC=gcc CFLAGS="-g -fsanitize=address,undefined -fno-sanitize-recover=all" \
	  $(abspath $(BIN))/python setup.py --quiet build_ext --inplace
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=$(SANITIZED)/src \
	  $(BIN)/python -m pytest -p no:cacheprovider tests/test_scan.py
endif

bench: $(DEV)
	$(BIN)/python benchmarks/bench_scan.py

check: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(DEV)
	$(BIN)/python scripts/write_cli_docs.py

torture: $(DEV)
	$(BIN)/python benchmarks/torture --minutes $(MINUTES) --seed $(SEED) --writers $(WRITERS) $(OPTIONS)

clean:
	rm -rf build demo dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find benchmarks scripts src tests -name __pycache__ -prune -exec rm -rf {} +

.venv: $(DEV)

# A file is written last: an installation that was interrupted starts again.
$(READY): pyproject.toml setup.py src/regionhash/search/_scan.c
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit( \
	  "regionhash needs Python 3.11 or newer, $(PYTHON) is %d.%d; " % sys.version_info[:2] + \
	  "name another one: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	@echo "Installing regionhash into .venv: once, half a minute, about 310 MB of disk."
	$(PYTHON) -m venv .venv
	$(PIP) --editable .
	touch $@

$(DEV): $(READY)
	@echo "Installing what training and tests need: once, some minutes, about 7 GB of disk."
	$(PIP) --editable ".[dev]"
	touch $@
