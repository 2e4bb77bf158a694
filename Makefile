# Each target makes its environment on first use. Needs Python 3.11 or newer, make and git.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# constraints.txt pins a CPU build of torch for local runs; GPU clusters install the package without it
CONSTRAINTS ?= constraints.txt
# one thread per process: threads that wait for one another cost more than they give
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --dist loadfile
CHAOS_TRIALS ?= 100
CHAOS_SEED ?= 1

.PHONY: demo check test test-nojit lint docs bench chaos

$(BIN)/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c $(CONSTRAINTS) torch
	$(BIN)/python -m pip install -q -c $(CONSTRAINTS) -e '.[dev]'
	touch $@

$(BIN)/.demo-ready: pyproject.toml constraints.txt  # the package alone, unless the tools for tests are there already
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -e $(BIN)/.ready || $(BIN)/python -m pip install -q -c $(CONSTRAINTS) torch
	test -e $(BIN)/.ready || $(BIN)/python -m pip install -q -c $(CONSTRAINTS) -e .
	touch $@

demo: $(BIN)/.demo-ready  ## synthetic faces, the whole job, a report; at most five minutes on two cores
	$(BIN)/fiqa-ray demo runs/demo

check: lint  ## what to run before each commit: lint, types, and the tests that start neither Ray nor an S3 server
	$(PYTEST) -n 2 -m "not ray and not s3 and not slow"

test: $(BIN)/.ready  ## all tests, two files at a time; core and models keep their coverage
	$(PYTEST) -n 2 --cov --cov-report=term

test-nojit: $(BIN)/.ready  ## kernels of label optimization as plain Python: indices out of range raise there
	NUMBA_DISABLE_JIT=1 $(PYTEST) -n 2 -W ignore::RuntimeWarning tests/core/test_labels.py tests/core/test_pairs.py

lint: $(BIN)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers 2
	$(BIN)/codespell fiqa_ray tests benchmarks jobs docs examples README.md CONTRIBUTING.md CHANGELOG.md

chaos: $(BIN)/.ready  ## faults of an S3 server, then 100 kills; hours. CHAOS_TRIALS and CHAOS_SEED choose fewer and others
	FIQA_RAY_CHAOS=1 $(BIN)/python -m pytest --timeout 1800 tests/chaos
	rm -rf runs/chaos
	$(BIN)/python tests/chaos/kills.py runs/chaos --trials $(CHAOS_TRIALS) --seed $(CHAOS_SEED)

docs: $(BIN)/.ready  ## the documentation, into site/; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

bench: $(BIN)/.ready  ## every benchmark, scaled down to a few minutes; docs/results.md names the command of each figure
	$(BIN)/python -m pip install -q -c $(CONSTRAINTS) -e '.[bench]'
	$(BIN)/python benchmarks/label_optimization.py --share 0.002
	$(BIN)/python benchmarks/full_size.py runs/benchmark --share 0.02
	$(BIN)/python benchmarks/ranking.py --keys 2000000 --ray-keys 500000 --scores 2000000
	$(BIN)/python benchmarks/final_sort.py runs/benchmark --images 1000000 --ranges 1 4 --workers 2
	$(BIN)/python benchmarks/clustering.py --images 1024
	$(BIN)/python benchmarks/ray_nodes.py --share 0.001 --nodes 1 2
	$(BIN)/python benchmarks/cost_model.py
	$(BIN)/python benchmarks/coverage.py --trials 20 --draws 200 --truth 200 --scenarios independent
	$(BIN)/python benchmarks/inference.py --share 0.02
	$(BIN)/python benchmarks/gpu.py --cpu
