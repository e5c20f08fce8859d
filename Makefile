# `make demo`: a law on real text, its forecast checked. `make test`: the whole suite; `make quick`: its fast tests.
PYTHON ?= python3
BIN := .venv/bin

# As many processes as tests/conftest.py says; a file of tests stays in one process, so that its fixtures are made once.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

.PHONY: demo test quick check clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv || { $(PYTHON) -m venv --clear --without-pip .venv && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[data,slurm,ray,tensorboard,wandb,eval,export,test]'
	touch $@

demo: .venv/installed
	$(BIN)/scaling data prepare stdlib
	$(BIN)/scaling sweep plan stdlib_cpu
	$(BIN)/scaling sweep run stdlib_cpu
	$(BIN)/scaling eval out/stdlib_cpu
	$(BIN)/scaling sweep collect stdlib_cpu
	$(BIN)/scaling fit out/stdlib_cpu/results.parquet --law chosen --holdout largest
	$(BIN)/scaling downstream out/stdlib_cpu/results.parquet
	$(BIN)/scaling report out/stdlib_cpu --scans sweeps/catalog/stdlib_rates.json
	$(BIN)/scaling forecast out/stdlib_cpu/fit.json

test: .venv/installed
	$(PYTEST)

quick: .venv/installed
	$(PYTEST) -m "not slow and not cluster"

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check

clean:
	rm -rf .venv out
