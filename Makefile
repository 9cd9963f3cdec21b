# make lab    everything a student needs, then JupyterLab on the first lecture
# make test   everything a contributor needs, then lint, unit tests and every notebook
# make exercises | student | grade FROM=folder   for instructors: see solutions/README.md
# make bench  the library beside its peers: takes minutes, prints ratios, asserts no time

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
PROXY := $(VENV)/node_modules/.bin/configurable-http-proxy
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
# Jupyter refuses to run as root, as in a container, unless told that this is meant.
ROOT_FLAG := $(if $(filter 0,$(shell id -u 2>/dev/null)),--allow-root)

.PHONY: lab test lint unit notebooks execute exercises student grade bench assets doctor clean

lab: $(VENV)/lab assets
	$(BIN)/jupyter lab $(ROOT_FLAG) --LabApp.default_url=/lab/tree/notebooks/01_motivation.ipynb

test: lint unit notebooks

lint: $(VENV)/test
	$(BIN)/ruff check
	$(BIN)/ruff format --check

# One thread a worker: two workers with two threads each on two cores would wait for each other.
unit: $(VENV)/test $(PROXY) assets
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadscope tests

notebooks: $(VENV)/test assets
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadscope --nbval-lax --nbval-current-env --nbval-cell-timeout=120 $(NOTEBOOKS)

assets: $(VENV)/lab
	@$(BIN)/python -m compresslab.assets

# Run every notebook and save its outputs: before a commit. Without a time limit nbconvert may hang.
execute: $(VENV)/test assets
	$(BIN)/jupyter nbconvert --to notebook --inplace --execute --ExecutePreprocessor.timeout=120 $(NOTEBOOKS)

# solutions/NAME -> exercises/NAME, with nbgrader.
exercises: $(VENV)/grade
	@$(BIN)/python -m compresslab.grading.release

# What students get, in one file: dist/compresslab-student.zip.
student: $(VENV)/grade
	@$(BIN)/python -m compresslab.grading.release student

# FROM is a folder or zip file as Moodle or Canvas exports it; OPTIONS as in the instructor's page.
grade: $(VENV)/grade
	@$(if $(FROM),,$(error What is to be graded? make grade FROM=folder-or-zip-file))
	@$(BIN)/python -m compresslab.grading.grade '$(FROM)' $(OPTIONS)

bench: $(VENV)/test assets
	@for file in benchmarks/*.py; do $(BIN)/python $$file; done

doctor: $(VENV)/lab
	@$(BIN)/python -m compresslab.doctor

clean:
	rm -rf $(VENV)

# A stamp for each set of extras: installed again only when what is asked for has changed.
$(VENV)/lab $(VENV)/test $(VENV)/grade: $(VENV)/%: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: run make again with PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[lab,$*]'
	@touch $@

# The proxy of JupyterHub comes from npm; where there is none, the test of the hub is skipped.
$(PROXY): | $(VENV)/test
	@command -v npm > /dev/null && npm install --silent --no-fund --no-audit --prefix $(VENV) \
	    configurable-http-proxy@5.3.0 || true
