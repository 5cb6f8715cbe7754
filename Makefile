# make run    raw scans to an evaluated model and a report
# make test   everything that must hold
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
DATA ?=
OUT ?= runs/$(notdir $(abspath $(DATA)))
PARAMS ?= neurofoundry/presets/first-look.yaml
TORCH := $(shell sed -n 's/^torch==//p' requirements.lock)
export TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

.PHONY: run test lint docs lock image wheels

ifeq ($(DATA),)
run: .venv/ready | data
	dvc repro
	@echo "\nReport: $(CURDIR)/evaluation/report.html"
else
run: .venv/ready
	neurofoundry run --data "$(DATA)" --out "$(OUT)" --params "$(PARAMS)"
endif

# In the order of the tree: e2e, which takes longest, comes early.
test: .venv/ready lint
	pytest -n auto --dist loadfile --no-loadscope-reorder

lint: .venv/ready
	ruff check .
	ruff format --check .
	mypy
	lint-imports

# The pages that follow from the code (parameters and command line), then the site: build/site/index.html.
# What makes it, and nothing else, is in an environment of its own.
docs: .venv/ready build/docs/.ready
	$(BIN)/python -m docs.reference
	NO_MKDOCS_2_WARNING=1 build/docs/bin/mkdocs build --strict --quiet
	@echo "$(CURDIR)/build/site/index.html"

build/docs/.ready: docs/requirements.lock
	$(PYTHON) -m venv build/docs
	build/docs/bin/pip install --quiet --requirement docs/requirements.lock
	@touch $@

data:
	neurofoundry phantom --out data

.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v < (3, 14) else \
	  f"neurofoundry needs Python 3.11 to 3.13; this is {v[0]}.{v[1]}. Give another: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	@# PyPI's torch is the build for CUDA, 6 GB with its libraries: without a GPU, the one for CPUs if
	@# it can be had.
	@command -v nvidia-smi >/dev/null || $(BIN)/pip install --quiet --no-deps --retries 1 \
	  --index-url $(TORCH_INDEX) 'torch==$(TORCH)+cpu' 2>/dev/null || echo \
	  "torch $(TORCH) for CPUs: not in $(TORCH_INDEX); pip takes the build that its index has."
	$(BIN)/pip install --quiet --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# The image of every stage (docs/kubeflow.md): TARGET=gpu for CUDA, BASE_IMAGE for another base. At the
# end the package runs in it, and an image in which it does not is removed.
TARGET ?= cpu
BASE_IMAGE ?= python:3.11-slim-bookworm
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' neurofoundry/__init__.py)
DOCKER ?= docker
OFFLINE := --interactive --rm --network none --read-only --tmpfs /tmp --user 10001:10001 --cap-drop ALL
image: wheels
	DOCKER_BUILDKIT=1 $(DOCKER) build --file docker/Dockerfile --build-arg TARGET=$(TARGET) \
	  --tag neurofoundry:$(TARGET)-unchecked --build-arg BASE_IMAGE=$(BASE_IMAGE) \
	  --build-arg VERSION=$(VERSION) --build-arg COMMIT=$$(git rev-parse HEAD) $(BUILD_FLAGS) .
	$(DOCKER) run $(OFFLINE) neurofoundry:$(TARGET)-unchecked python3 - < docker/check.py \
	  || { $(DOCKER) rmi neurofoundry:$(TARGET)-unchecked; exit 1; }
	$(DOCKER) tag neurofoundry:$(TARGET)-unchecked neurofoundry:$(TARGET)
	$(DOCKER) rmi neurofoundry:$(TARGET)-unchecked

# Wheels for the image's Python 3.11, fetched by this machine's pip with this machine's settings, and
# torch for CPUs from wherever it can be had. Take build/wheels along to build where there is no index.
wheels: build/wheels/.ready
build/wheels/.ready: docker/requirements.lock docker/wheels.py
	rm -rf build/wheels && mkdir -p build/wheels
	$(PYTHON) docker/wheels.py build/wheels
	@touch $@

# New versions of everything, from pyproject.toml. torch stands without its hardware build and
# without the CUDA packages, which torch itself pins exactly: the lock serves CPU and GPU machines.
# The image goes without what only `dvc exp run` needs and what has no wheel (antlr4, for hydra).
lock:
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet --upgrade pip
	build/lock/bin/pip install --quiet torch==2.13.0
	build/lock/bin/pip install --quiet 'setuptools>=77' '.[dvc,dev,kubeflow]'
	build/lock/bin/pip freeze --all --exclude neurofoundry --exclude pip \
	  | grep -v -E '^(nvidia|triton|cuda)' | sed 's/+cpu$$//' > requirements.lock
	rm -rf build/lock-image && $(PYTHON) -m venv build/lock-image
	build/lock-image/bin/pip install --quiet torch==2.13.0
	build/lock-image/bin/pip install --quiet --constraint requirements.lock setuptools '.[dvc]'
	build/lock-image/bin/pip freeze --all --exclude neurofoundry --exclude pip \
	  | grep -v -E '^(nvidia|triton|cuda|hydra|omegaconf|antlr4)' | sed 's/+cpu$$//' > docker/requirements.lock
