# `make setup` is done by every other target when it is needed.
PYTHON ?= python3
MACHINE ?= here
TEST_PROCESSES ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo serve check test test-slow test-model test-clients test-all compose-check bench clean

setup: $(STAMP)

# pip compiles nothing, since all 24,000 modules would take a minute: Python compiles what is imported, and keeps it
# also where the environment forbids that. Without it, each process would compile all of torch again.
export PYTHONDONTWRITEBYTECODE :=

$(STAMP): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Tunesmith needs Python 3.11 or newer; set PYTHON=…")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e '.[worker,dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/python examples/demo.py

serve: $(STAMP)
	$(BIN)/tunesmith up

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m app check-migrations

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder --durations 15

# Everything once: processes that train, serve and are killed included.
test: $(STAMP)
	$(PYTEST) -m "not slow and not exhaustive and not clients"

# More of the same: every kind of fault and format, and the small real model. Files without a slow test are not
# imported.
test-slow: $(STAMP)
	$(PYTEST) -m slow $$(grep -rl --include='test_*.py' 'mark\.slow' tests)

# Those that use the small real model from end to end: the demo, the walk with curl, answers equal to PEFT's.
test-model: $(STAMP)
	$(PYTEST) -m slow tests/end_to_end/test_demo.py tests/docs/test_curl_walk.py \
		tests/worker/inference/test_equal_to_peft_small_model.py

# The usual clients of OpenAI's API, and llm-compressor, in environments of their own, which are made from the
# package registries.
test-clients: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m clients tests/clients tests/worker/exports/calibrated

# All of these, every model family, thousands of made-up requests, and property tests with examples never tried.
test-all: $(STAMP)
	$(PYTEST) --hypothesis-profile explore

# The machine's name becomes part of the result's file name.
bench: $(STAMP)
	$(BIN)/python -m worker.models.demo_model --models-dir data/models
	$(BIN)/python -m benchmarks.serving --model data/models/SmolLM2-135M-Instruct --machine $(MACHINE) \
		--batches 1 16 --adapters 0 8 --prompt-tokens 64 --new-tokens 48
	$(BIN)/python -m benchmarks.relay

# Builds the images and walks through the CPU stack on the container engine at DOCKER_HOST.
compose-check: $(STAMP)
	$(BIN)/python -m pytest -x --durations=5 docker/checks

clean:
	rm -rf $(VENV) .clients tests/clients/node/node_modules data .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build *.egg-info
