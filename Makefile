# make demo   teach a small model a rule, on two CPU ranks or on all GPUs (ARGS=--steps=100)
# make test   every test this machine can run      make quick      the unit tier
# make check  lint, format, types, layers          make coverage   what the tests reach
# make soak   what takes hours: random tests with hundreds of draws, faults, several machines, four ranks, comparisons
# make faults   ranks that are killed, stopped or lied to, at every phase; makes a table of docs/fault-tolerance.md
# make docs    the reference of all public names, as pages: build/docs/unsloth_accel.html
# make any-cpu   every test as on other CPUs and on a busy machine (FILES=... for some)
# make browser-test   the notebooks and the report in a real browser (installs Debian's chromium)
#
# They install what they need into .venv first. Where nothing can be installed, `VENV=` uses a Python that has it all:
#   make test VENV= PYTHON=/path/to/python

PYTHON ?= python3
VENV ?= .venv
DRAWS ?= 300
GPUS := $(shell nvidia-smi --list-gpus 2>/dev/null | grep -c ^GPU)
# T4, V100, RTX 20 and older compute no bf16.
OLD_GPUS := $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | grep -c '^[1-7]\.')

ifeq ($(GPUS),0)
CONFIG ?= cpu_gloo
else ifneq ($(OLD_GPUS),0)
CONFIG ?= ddp_fp16
else ifeq ($(GPUS),1)
CONFIG ?= single
else
CONFIG ?= ddp
endif

ifeq ($(VENV),)
PY := $(PYTHON)
else
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
endif

PYTEST := $(PY) -m pytest

.PHONY: demo test soak faults any-cpu quick coverage check docs browser-test clean

# Nothing is downloaded, and nothing compiled, which would take a minute (docs/host_costs.md).
DEMO_ENVIRONMENT := HF_HUB_OFFLINE=1 UNSLOTH_COMPILE_DISABLE=1
ifeq ($(CONFIG),cpu_gloo) # accelerate_configs/cpu_gloo.yaml says why
DEMO_ENVIRONMENT += ACCELERATE_USE_CPU=true CUDA_VISIBLE_DEVICES=-1
endif

demo: $(INSTALLED)
	$(DEMO_ENVIRONMENT) $(PY) -m accelerate.commands.accelerate_cli launch \
		--config_file accelerate_configs/$(CONFIG).yaml examples/demo.py $(ARGS)

test: $(INSTALLED)
	$(PY) tests/tiers.py

soak: $(INSTALLED)
	$(PYTEST) -m "soak or long" --draws $(DRAWS) --timeout 7200

faults: $(INSTALLED)
	PYTHONPATH=tests:. $(PY) tests/recovery/faults.py $(ARGS)

any-cpu: $(INSTALLED)
	PYTHON=$(PY) tests/any_cpu.sh $(FILES)

quick: $(INSTALLED)
	$(PYTEST) -m unit -n 2

coverage: $(INSTALLED)
	$(PYTEST) --cov --cov-report=term-missing:skip-covered

check: $(INSTALLED)
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	$(PY) -c "from importlinter.cli import lint_imports_command; lint_imports_command()"

docs: $(INSTALLED)
	$(PY) docs/reference.py && echo build/docs/unsloth_accel.html

# The notebooks in JupyterLab, and a report, in a real Chromium; the screenshots are in build/browser/.
browser-test: $(INSTALLED)
	apt-get install --yes --quiet chromium
	npm install --silent --prefix build/playwright playwright-core
	NODE_PATH=build/playwright/node_modules $(PYTEST) tests/docs/test_browser.py tests/report/test_browser.py

clean:
	rm -rf .venv build dist *.egg-info .coverage* .*_cache outputs
	find . -name __pycache__ -prune -exec rm -rf {} +

$(INSTALLED): setup.cfg requirements/cpu.txt requirements/cpu-unsloth.txt
	$(PYTHON) -m venv $(VENV)
ifeq ($(GPUS),0)
	$(PY) -m pip install --quiet -r requirements/cpu.txt
	$(PY) -m pip install --quiet --no-deps -r requirements/cpu-unsloth.txt
	$(PY) -m pip install --quiet --no-deps --no-build-isolation -e .
else
	$(PY) -m pip install --quiet -e ".[gpu,dev]"
endif
	touch $@
