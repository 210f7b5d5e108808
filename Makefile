PYTHON ?= python3
BIN := .venv/bin

.PHONY: install serve test chaos fuzz soak check bench perf-analyzer lock audit

install: .venv/installed

.venv/installed: pyproject.toml deploy/constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint deploy/constraints.txt --editable '.[dev]'
	touch $@

serve: install
	@exec $(BIN)/volo serve

test: install
	$(BIN)/pytest

# faults done to a running service, which take minutes
chaos: install
	$(BIN)/pytest tests/chaos

# pictures and archives by what they reach in the code, for FUZZ_S seconds; atheris is there for CPython 3.11 to 3.13
fuzz: install
	test -d .venv/atheris/atheris || $(BIN)/python -m pip install --quiet --no-deps --target .venv/atheris atheris==3.0.0
	PYTHONPATH=tests:tests/chaos:.venv/atheris $(BIN)/python tests/chaos/fuzz_pictures.py $(FILE)

# half an hour of traffic of all sorts while engines die
soak: install
	PYTHONPATH=tests $(BIN)/python tests/chaos/soak.py

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Triton's load generator for its protocol, whose test is skipped without it; it also wants Debian's libb64-0d.
# Newer clients come without it, and this one's Python part is not used.
perf-analyzer: install
	test -x .venv/perf_analyzer/bin/perf_analyzer || $(BIN)/python -m pip install --quiet --no-deps \
		--target .venv/perf_analyzer tritonclient==2.50.0 nvidia-cuda-runtime-cu12==12.9.79

bench: install
	$(BIN)/volo bench model
	$(BIN)/volo bench preprocess
	$(BIN)/volo bench serve

# what images install, to the byte; after a change of pyproject.toml or deploy/constraints.txt
lock: .venv/tools
	UV=.venv/tools/bin/uv deploy/lock.sh

# whether a weakness is known of anything in an image; asks PyPI, and fails where that cannot tell of all
audit: .venv/tools
	.venv/tools/bin/pip-audit --strict --require-hashes --disable-pip $(addprefix --requirement ,$(wildcard deploy/locks/*.txt))

.venv/tools:
	$(PYTHON) -m venv $@
	$@/bin/pip install --quiet uv==0.13.9 pip-audit==2.10.1
