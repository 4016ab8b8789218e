# Everything a fresh machine needs: `make demo` and `make test` set the environment up themselves.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# Without an NVIDIA GPU: the CPU build of torch.
CONSTRAINTS := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 || echo --constraint constraints/cpu.txt)

.PHONY: setup demo test test-ui test-slow check docs format bench figures screenshots serve clean
setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints/cpu.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) --editable ".[dev]"
	touch $@

demo: setup
	$(BIN)/canvas-fm demo --out demo

# A file's tests stay in one process, so that what they share is made once; one thread each, unless
# OMP_NUM_THREADS says otherwise. A process that died fails its test and is not replaced: the run would not end.
test test-ui: export OMP_NUM_THREADS ?= 1
# Modules are compiled once, not by each of the many processes that tests start.
test test-ui: export PYTHONDONTWRITEBYTECODE :=
# A test that no exception reaches, in its end or in compiled code, shows where each thread is and fails.
STUCK := -o faulthandler_timeout=600 -o faulthandler_exit_on_timeout=true
test: setup
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 $(STUCK)

# In a real browser. Debian's Chromium is installed where that is allowed; where there is none the tests say so.
test-ui: setup
	command -v chromium >/dev/null || { test "$$(id -u)" = 0 && apt-get update -qq && \
	  apt-get install -y -qq --no-install-recommends chromium; } || true
	$(BIN)/python -m pytest -m ui -rs tests/ui $(STUCK)

test-slow: setup
	$(BIN)/python -m pytest -m slow --timeout 3600

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The site in build/site; a broken link fails. Nothing is fetched, at building or at reading.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) --editable ".[bench]"
	$(BIN)/python -m tests.benchmarks

# Figures of README and docs measured again: all take hours, `make figures FIGURES="cfos peaks"` those named.
FIGURES ?=
figures: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) --editable ".[bench]"
	$(BIN)/python -m tests.benchmarks.figures $(FIGURES)

# Pictures of the service's page in docs/images, by the Chromium of `test-ui`.
screenshots: setup
	$(BIN)/python -m tests.ui.screenshots

MODEL ?= demo/run/encoder
serve: setup $(filter demo/run/encoder,$(MODEL))
	$(BIN)/canvas-fm serve $(MODEL)

demo/run/encoder: | setup
	$(BIN)/canvas-fm demo --out demo

clean:
	rm -rf $(VENV) dist build *.egg-info .pytest_cache .mypy_cache .ruff_cache
