# Everything here can be done by hand, too; see README.md.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint strict mutants chaos bench clean

# Trains configs/digits.py and shows raw against averaged weights.
demo: .venv/runtime
	$(BIN)/python main.py --config=configs/digits.py --workdir=runs/digits

test: .venv/dev
	$(BIN)/python -m pytest -n auto --maxprocesses=8

lint: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Asks also for docstrings and types everywhere, as in the project's own code.
strict: lint
	$(BIN)/ruff check --select D100,D101,D102,D103,ANN0,ANN1,ANN2 .
	$(BIN)/mypy --disallow-untyped-defs

# Seeds every fault and sees that the tests catch each of them.
mutants: .venv/dev
	$(BIN)/python tests/mutants/mutants.py

# Kills a hundred runs at random moments and compares what becomes of them; takes about 25 minutes on two cores.
chaos: .venv/dev
	$(BIN)/python tests/chaos/chaos.py --out=benchmarks/results/chaos.json

# Every timing that needs no other checkout, one after another. For a machine that does nothing else.
bench: .venv/benchmarks
	$(BIN)/python -m benchmarks.dispatch
	$(BIN)/python -m benchmarks.average_cost
	$(BIN)/python -m benchmarks.convolution
	$(BIN)/python -m benchmarks.peers --name=peers_mnist
	$(BIN)/python -m benchmarks.peers --name=peers_cifar10 --config=configs/cifar10_small.py --steps=5
	$(BIN)/python -m benchmarks.start
	$(BIN)/python -m benchmarks.overhead --config.duration="1 epochs"
	$(BIN)/python -m benchmarks.recompute_cost --config=configs/cifar10_batch_stats.py
	$(BIN)/python -m benchmarks.report
	$(BIN)/python -m benchmarks.stream
	$(BIN)/python -m benchmarks.time_to_accuracy

clean:
	rm -rf .venv

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: $(PYTHON) is older than Python 3.11; make PYTHON=python3.12 names another"; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

.venv/runtime: requirements.txt constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet -r requirements.txt
	@touch $@

.venv/dev: requirements-dev.txt .venv/runtime
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	@touch $@

.venv/benchmarks: requirements-benchmarks.txt .venv/runtime
	$(BIN)/python -m pip install --quiet -r requirements-benchmarks.txt
	@touch $@
