# One command each. `make demo` and `make test` set up everything they need in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

# A process a core, each on one thread; the tests of a file share what they trained, and files come
# in the order of tests/conftest.py.
SHARED = -n auto --dist loadfile --no-loadscope-reorder

# uv brings everything in seconds; where it cannot, pip does.
define install
$(BIN)/python -m pip install -q --disable-pip-version-check uv
$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e $(1) || \
  $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e $(1)
endef

.PHONY: demo test quick coverage check docs bench clean

demo: $(VENV)/.ready
	$(BIN)/nearkin train glyphs --out runs/glyphs $(if $(wildcard runs/glyphs),--force)

test: $(VENV)/.ready-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(SHARED)

quick: $(VENV)/.ready-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(SHARED) -m "not slow"

# Counting lines makes tests slower by half.
coverage: $(VENV)/.ready-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(SHARED) --cov=nearkin --cov-report=term:skip-covered

check: $(VENV)/.ready-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest tests/test_layers.py

docs: $(VENV)/.ready-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q

bench: $(VENV)/.ready-dev
	$(BIN)/python benchmarks/loop_overhead.py
	$(BIN)/python benchmarks/evaluation_memory.py
	$(BIN)/python benchmarks/evaluate.py recall metrics plain
	$(BIN)/python benchmarks/input.py
	$(BIN)/python benchmarks/extraction.py
	$(BIN)/python benchmarks/losses.py

clean:
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .hypothesis .coverage

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "nearkin needs Python 3.11 or newer; name one: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(call install,.)
	touch $@

$(VENV)/.ready-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(call install,'.[dev]')
	touch $@ $(VENV)/.ready
