# make lab    everything a student needs, then JupyterLab on the first lecture
# make test   everything a contributor needs, then lint, unit tests and every notebook
# make slides | site    the lectures as decks, dist/slides, and the course as a website, dist/site
# make exercises | student | grade FROM=folder | leaderboard FROM=folder
#             for instructors: see solutions/README.md
# make bench  the library beside its peers: takes some hours, prints ratios, asserts no time

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
NODE_MODULES := node_modules/.package-lock.json
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
# Jupyter refuses to run as root, as in a container, unless told that this is meant.
ROOT_FLAG := $(if $(filter 0,$(shell id -u 2>/dev/null)),--allow-root)

.PHONY: lab test lint unit notebooks execute slides site exercises student grade leaderboard bench
.PHONY: assets wheels doctor clean

lab: $(VENV)/lab assets
	$(BIN)/jupyter lab $(ROOT_FLAG) --LabApp.default_url=/lab/tree/notebooks/01_motivation.ipynb

test: lint unit notebooks

lint: $(VENV)/test
	$(BIN)/ruff check
	$(BIN)/ruff format --check

# One thread a worker, or they would wait for each other on two cores; three workers, since those
# that wait for a browser or for the sandbox leave half a core. They are the longest, and their
# folders the first: in the order of folders, they are not left over at the end.
unit: $(VENV)/test $(if $(shell command -v npm),$(NODE_MODULES)) assets
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 3 --dist loadscope --no-loadscope-reorder tests

notebooks: $(VENV)/test assets
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadscope --nbval-lax --nbval-current-env --nbval-cell-timeout=120 $(NOTEBOOKS)

assets: $(VENV)/lab
	@$(BIN)/python -m compresslab.assets

# Run every notebook and save its outputs: before a commit. Without a time limit nbconvert may hang.
execute: $(VENV)/test assets
	$(BIN)/jupyter nbconvert --to notebook --inplace --execute --ExecutePreprocessor.timeout=120 $(NOTEBOOKS)

slides: $(VENV)/site $(NODE_MODULES)
	@$(BIN)/python docs/slides/build.py

# make site REPOSITORY=https://github.com/OWNER/NAME: the links to Binder and Colab are made from it.
# Without it, the git remote `origin` is taken, if it is on GitHub.
site: $(VENV)/site $(NODE_MODULES)
	@$(BIN)/python docs/build_site.py

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

# FROM as above; PRIVATE is a table of sentences that nobody was given.
leaderboard: $(VENV)/grade assets
	@$(if $(FROM),,$(error What is to be measured? make leaderboard FROM=folder-or-zip-file))
	@$(BIN)/python -m compresslab.grading.leaderboard '$(FROM)' $(if $(PRIVATE),--private '$(PRIVATE)')

bench: $(VENV)/bench assets
	@failed=; for file in benchmarks/*.py; do $(VENV)/bench/bin/python $$file || failed=1; done; test -z "$$failed"

# All that `make lab` fetches, in one folder, for a room without good wifi: see docs/instructors.md.
# For laptops of another system, for example: OPTIONS='--platform win_amd64 --only-binary=:all:'
wheels: $(VENV)/lab
	@mkdir -p dist/wheels
	@$(BIN)/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb")); \
	    print(*p["project"]["dependencies"], *p["project"]["optional-dependencies"]["lab"], \
	    *p["build-system"]["requires"], sep="\n")' > dist/wheels/requirements.txt
	$(BIN)/python -m pip download --quiet --disable-pip-version-check -c constraints.txt \
	    -r dist/wheels/requirements.txt -d dist/wheels $(OPTIONS)
	@$(BIN)/python -m compresslab.assets dist/wheels

doctor: $(VENV)/lab
	@$(BIN)/python -m compresslab.doctor

clean:
	rm -rf $(VENV) node_modules

# A stamp for each set of extras: installed again only when what is asked for has changed.
$(VENV)/lab $(VENV)/test $(VENV)/grade $(VENV)/site: $(VENV)/%: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15) and "Python 3.11 to 3.14 is needed: run make again with PYTHON=python3.12, for example")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[lab,$*]'
	@touch $@

# Peers that only benchmarks need, beside the environment: transformers imports torchao, if it is
# there, and torchao prints warnings into every notebook. OpenVINO and NNCF report what they are
# used for over the network, unless openvino-telemetry is missing.
PEERS := onnx==1.23.2 onnxruntime==1.32.0 onnxscript==0.7.2 torchao==0.18.0 \
	nncf==3.4.0 openvino==2026.4.1 \
	dahuffman==0.4.2 faiss-cpu==1.15.1 zstandard==0.25.0 \
	linformer==0.2.3 local-attention==1.11.2 mambapy==1.2.0 performer-pytorch==1.1.4
# On PyPI as source only.
COMPILED := llama-cpp-python==0.3.36
$(VENV)/bench: $(VENV)/test Makefile
	$(BIN)/python -m venv $@
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' > $$(echo $@/lib/python*/site-packages)/course.pth
	$@/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PEERS)
	@echo "$(COMPILED) is compiled, which takes a quarter of an hour"
	$@/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(COMPILED) \
		|| echo "It could not be built; it takes a C++ compiler. To try again: rm -r $@ && make $@"
	$@/bin/python -m pip uninstall --quiet --yes openvino-telemetry
	@touch $@

# For slides and site. Where there is no npm, the tests that need it are skipped and say so.
$(NODE_MODULES): package-lock.json
	@command -v npm > /dev/null || { echo 'npm is needed: install Node.js 20 or newer' >&2; exit 1; }
	npm ci --silent --no-fund --no-audit
	@touch $@
