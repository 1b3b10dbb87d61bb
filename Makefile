# make demo   set-up, then the main job: CE against NCE+RCE on 40 % wrong labels, a table and a picture
# make test   set-up, then the tests but for the slow ones, which are make test-slow
# make lint   set-up, then ruff and mypy
# make docs   set-up, then a page of each module, in site/
# PYTHON=...  the interpreter that makes .venv (Python >= 3.10)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo

.PHONY: setup install demo test test-slow lint docs clean

setup install: $(VENV)/.installed

# Rebuilt only when what it installs changes. Where Python comes without ensurepip, its pip fills the new environment.
# The stamp is written last: an interrupted set-up is taken up again.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python >= 3.10 is needed; this is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.11")'
	@echo "set-up: $(VENV) gets torch, transformers and what they need (2 GB on disk, one to ten minutes); once"
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m venv --without-pip $(VENV) && \
	    $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# Without OMP_NUM_THREADS, accelerate gives a process one thread; one process takes one GPU.
demo: setup
	@echo "demo: two trainings on 40 % wrong labels, two to ten minutes; the table comes at the end"
	CUDA_VISIBLE_DEVICES=$${CUDA_VISIBLE_DEVICES-0} \
	OMP_NUM_THREADS=$$($(BIN)/python -c 'import os; print(os.cpu_count())') \
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
	    scripts/sweep_robust.py --dataset digits --losses ce nce+rce --noises symmetric_40 --models cnn_small \
	    --seeds 0 --num_train_epochs 30 --output_dir $(DEMO)

# A file's tests stay in one process, for they share what they train; a thread each, for the processes are several.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

test: setup
	@echo "test: all but the slow tests, in up to 4 processes; about nine minutes on 2 cores; what failed comes at the end"
	$(PYTEST) -m 'not slow'

test-slow: setup
	@echo "test-slow: those that take over 20 seconds each"
	$(PYTEST) -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/python scripts/make_docs.py site

clean:
	rm -rf $(VENV) runs site .mypy_cache
