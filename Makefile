# Two commands do everything on a fresh machine: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
EXTRAS ?= dev
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow test-gpu check bench-checks clean

demo: $(STAMP)
	$(BIN)/resnet-onnx demo

test: $(STAMP)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow" $(PYTEST_ARGS)

# What takes longer than the suite's budget allows.
test-slow: $(STAMP)
	$(BIN)/python -m pytest -q -m slow $(PYTEST_ARGS)

# What needs an NVIDIA GPU; skips itself with the reason where there is none.
test-gpu: $(STAMP)
	$(BIN)/python -m pytest -q -rs tests/gpu tests/test_runtime_contract.py $(PYTEST_ARGS)

# What only a quiet machine can show, in some 20 minutes: 40 comparisons of the same and ten of 5 % more work, with their
# counts; what `bench` costs beside a hand-written loop; its throughput beside benchmark_app and the best hand-written one.
bench-checks: $(STAMP)
	@failed=0; \
	$(BIN)/python -m pytest -q -s -n 0 -m slow tests/test_compare.py || failed=1; \
	$(BIN)/python benchmarks/bench_overhead.py || failed=1; \
	$(BIN)/python benchmarks/bench_throughput.py --model resnet50 --batch 1,8 || failed=1; \
	$(BIN)/python benchmarks/bench_throughput.py --model cifar-resnet20 || failed=1; \
	exit $$failed

check: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) demo runs build *.egg-info
