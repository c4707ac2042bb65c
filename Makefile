# Two commands do everything on a fresh machine: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
EXTRAS ?= dev
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow test-gpu test-compile check bench-checks compare-study optimize-study family env-pair paired-noise race-study clean

demo: $(STAMP)
	$(BIN)/resnet-onnx demo

# A worker process that crashes ends the run: pytest-xdist would wait forever for the rest of its file.
test: $(STAMP)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --max-worker-restart 0 -m "not slow and not compiler" $(PYTEST_ARGS)

# What takes longer than the suite's budget allows.
test-slow: $(STAMP)
	$(BIN)/python -m pytest -q -m "slow and not env_pair" $(PYTEST_ARGS)

# Two environments with two releases of ONNX Runtime, which it downloads, compared in turns.
env-pair: $(STAMP)
	$(BIN)/python -m pytest -q -rs -n 0 -m env_pair $(PYTEST_ARGS)

# How often a comparison in turns is wrong: 10,000 of them on each recording of a machine's noise, in some minutes.
paired-noise: $(STAMP)
	$(BIN)/python benchmarks/paired_noise.py simulate benchmarks/noise/*.json

# The race of `optimize` in simulated time, with known truths: some 900 races and 1,000 with limits, in some 15 minutes.
race-study: $(STAMP)
	$(BIN)/python -m pytest -q -s -n 0 -m slow tests/test_race.py

# What needs an NVIDIA GPU; skips itself with the reason where there is none.
test-gpu: $(STAMP)
	$(BIN)/python -m pytest -q -rs tests/gpu tests/test_runtime_contract.py $(PYTEST_ARGS)

# What compiles with torch.compile, in some ten minutes; needs a C++ compiler and Python's headers.
test-compile: $(STAMP)
	$(BIN)/python -m pytest -q -m compiler tests/test_torch_compile.py $(PYTEST_ARGS)

# What only a quiet machine can show, in some 20 minutes: ten pairs compared in turns, every second of 5 % more work; what
# `bench` costs beside a hand-written loop; its throughput beside benchmark_app and the best hand-written one.
bench-checks: $(STAMP)
	@failed=0; \
	$(BIN)/python benchmarks/compare_study.py --check 10 || failed=1; \
	$(BIN)/python benchmarks/bench_overhead.py || failed=1; \
	$(BIN)/python benchmarks/bench_throughput.py --model resnet50 --batch 1,8 || failed=1; \
	$(BIN)/python benchmarks/bench_throughput.py --model cifar-resnet20 || failed=1; \
	exit $$failed

# 120 pairs compared in turns, left alone and beside a neighbour, in pieces of at most 30 minutes: run it again to go on.
compare-study: $(STAMP)
	$(BIN)/python benchmarks/compare_study.py --minutes 30

# One network of each design in timm and torchvision, exported and compared; run it again to go on.
family: $(STAMP)
	$(BIN)/python benchmarks/family.py

# How good the answers of optimize are on five nets, in pieces of at most 30 minutes: run it again to go on.
optimize-study: $(STAMP)
	$(BIN)/python benchmarks/optimize_study.py --minutes 30

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
