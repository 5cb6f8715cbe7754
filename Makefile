# make run    raw scans to an evaluated model and a report
# make test   everything that must hold
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# One thread a test process: two of them fill two cores.
test: export OMP_NUM_THREADS := 1
DATA ?=
OUT ?= runs/$(notdir $(abspath $(DATA)))
PARAMS ?= params/first-look.yaml

.PHONY: run test lint lock

ifeq ($(DATA),)
run: .venv/ready | data
	dvc repro
	@echo "\nReport: $(CURDIR)/evaluation/report.html"
else
run: .venv/ready
	neurofoundry run --data "$(DATA)" --out "$(OUT)" --params "$(PARAMS)"
endif

test: .venv/ready lint
	pytest -n auto --dist loadfile

lint: .venv/ready
	ruff check .
	ruff format --check .
	mypy
	lint-imports

data:
	neurofoundry phantom --out data

.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v < (3, 14) else \
	  f"neurofoundry needs Python 3.11 to 3.13; this is {v[0]}.{v[1]}. Give another: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# New versions of everything, from pyproject.toml. torch stands without its hardware build and
# without the CUDA packages, which torch itself pins exactly: the lock serves CPU and GPU machines.
lock:
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet --upgrade pip
	build/lock/bin/pip install --quiet torch==2.13.0
	build/lock/bin/pip install --quiet 'setuptools>=77' '.[dvc,dev]'
	build/lock/bin/pip freeze --all --exclude neurofoundry --exclude pip \
	  | grep -v -E '^(nvidia|triton|cuda)' | sed 's/+cpu$$//' > requirements.lock
