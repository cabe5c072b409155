# The commands of a checkout. No target needs root; only `install` and `lock` use the network.
PYTHON ?= python3
# Options to pass on: make run ARGS="--port 9000", make test ARGS="-k queue -x".
ARGS ?=

STAMP := .venv/installed
# A virtual environment contains its own path, so one that was moved or copied is recreated.
MOVED := $(shell test ! -e $(STAMP) || grep -qxF '$(CURDIR)' $(STAMP) || echo moved)
PIP := .venv/bin/python -m pip --disable-pip-version-check
SOURCES := api worker shared tests bench docs/examples

.PHONY: install run test lint chaos fuzz bench lock clean moved

install: $(STAMP)

# The stamp is written last: after a failed step, the next call starts over. The checkout is built
# with the setuptools from the lock, so nothing outside the lock is ever installed.
$(STAMP): requirements.lock pyproject.toml $(MOVED)
	@rm -f $@
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Tandem needs Python 3.11 or newer; '$(PYTHON)' is older or missing:" \
			"try make install PYTHON=python3.12" >&2; \
		exit 1; }
	@$(if $(MOVED),false,$(PIP) --version >/dev/null 2>&1) || $(PYTHON) -m venv --clear .venv
	$(PIP) install --quiet --require-hashes -r requirements.lock
	$(PIP) install --quiet --no-index --no-deps --no-build-isolation -e .
	@echo '$(CURDIR)' > $@

run: install
	.venv/bin/tandem dev $(ARGS)

# Four processes even on two cores: tests mostly wait for Redis and for child processes.
test: install
	.venv/bin/python -m pytest -n 4 --dist worksteal $(ARGS)

lint: install
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m mypy $(SOURCES)

# Injects faults for a while, then checks every promise: make chaos ARGS="--seconds 600 --seed 7".
chaos: install
	.venv/bin/python -m tests.chaos $(ARGS)

# Runs random jobs of every built-in task for a while: make fuzz ARGS="--seconds 600 --seed 7".
fuzz: install
	.venv/bin/python -m tests.fuzz $(ARGS)

bench: install
	.venv/bin/python -m bench $(ARGS)

# One lock for every Python and platform, with all extras and the build requirements. Locked
# versions stay while pyproject.toml allows them; ARGS=--upgrade or ARGS="-P fastapi" renews them.
lock: install
	.venv/bin/python -c 'import tomllib; \
		build = tomllib.load(open("pyproject.toml", "rb"))["build-system"]; \
		print(*build["requires"], sep="\n")' \
		| UV_CUSTOM_COMPILE_COMMAND="make lock" .venv/bin/uv pip compile --quiet --universal \
		--python-version 3.11 \
		--generate-hashes --no-emit-index-url --all-extras $(ARGS) -o requirements.lock pyproject.toml -

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
