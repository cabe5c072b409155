# Everything that is done with a checkout. No target needs root; only `install` and `lock` use the network.
PYTHON ?= python3
# Options passed on: make run ARGS="--port 9000", make test ARGS="-k queue -x", make lock ARGS=--upgrade.
ARGS ?=

STAMP := .venv/installed
# A virtual environment holds its own path: one that was moved or copied is made again.
MOVED := $(shell test ! -e $(STAMP) || grep -qxF '$(CURDIR)' $(STAMP) || echo moved)
SOURCES := api worker shared tests bench docs/examples

.PHONY: install run test lint chaos bench lock clean moved

install: $(STAMP)

# The stamp comes last: after a step that failed, the next call starts over. The checkout is built by the setuptools of
# the lock, so nothing that is not in the lock is ever installed.
$(STAMP): requirements.lock pyproject.toml $(MOVED)
	@rm -f $@
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Tandem needs Python 3.11 or newer, and '$(PYTHON)' is not (or is missing): try make PYTHON=python3.12" >&2; \
		exit 1; }
	@$(if $(MOVED),false,.venv/bin/python -m pip --version >/dev/null 2>&1) || $(PYTHON) -m venv --clear .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-build-isolation -e .
	@echo '$(CURDIR)' > $@

run: install
	.venv/bin/tandem dev $(ARGS)

# Four processes on two cores: the tests wait for Redis and for child processes more than they compute.
test: install
	.venv/bin/python -m pytest -n 4 --dist worksteal $(ARGS)

lint: install
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m mypy $(SOURCES)

# Everything is hurt for a while, and what was promised is checked: make chaos ARGS="--seconds 600 --seed 7".
chaos: install
	.venv/bin/python -m tests.chaos $(ARGS)

bench: install
	.venv/bin/python -m bench $(ARGS)

# One lock for every Python and platform: all extras, and the build system's requirements for the step after it. What
# is locked stays as it is while pyproject.toml allows it; ARGS=--upgrade or ARGS="-P fastapi" asks for newer ones.
lock: install
	.venv/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
		| UV_CUSTOM_COMPILE_COMMAND="make lock" .venv/bin/uv pip compile --quiet --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --all-extras $(ARGS) -o requirements.lock pyproject.toml -

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
